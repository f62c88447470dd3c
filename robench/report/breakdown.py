"""Where a model errs: which samples an attack alone breaks, in which classes, and how far the wrong answers are from the right ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from robench.evaluation.results import Results
from robench.evaluation.run_folder import CLEAN
from robench.report.accuracy import UNION, interval, per_class, union_rows
from robench.types import Outcome

MANY = 100  # classes up to which a page shows each; of more it shows the worst first
WORST_SAYS = (
    "Ordered by the upper end of the interval, which is of each class by itself: the worst of so many classes are in part those that chance made "
    "look worse than they are."
)
_FIXED = ("class", "label", "samples", "ci_low", "ci_high")  # columns of classes.csv that are about no attack
WORST = 10  # classes and confusions that are shown of many


def broken_alone(results: Results) -> dict[str, list[int]]:
    """Places of the samples that one column breaks and no other one does, by what each came across (``best``)."""
    rows = results.verdicts[results.verdicts["attack"].isin(results.columns)]
    broken = rows.assign(broken=rows["best"] == Outcome.BROKEN).pivot(index="index", columns="attack", values="broken")
    alone = broken[broken.sum(axis=1) == 1]
    return {name: alone.index[alone[name]].tolist() for name in results.columns}


@dataclass(frozen=True)
class SuperclassErrors:
    """Wrong answers of one attack that stay inside the superclass of the right class.

    Attributes:
        attack: a column, or "clean" for the mistakes without attack.
        errors: wrong answers.
        within: of these, with the right superclass.
        low, high: 95 % interval of within / errors.
        chance: what within / errors would be, were every other class as likely.
    """

    attack: str
    errors: int
    within: int
    low: float
    high: float
    chance: float


def superclass_errors(results: Results) -> list[SuperclassErrors]:
    """Whether wrong answers land within or across the superclass, per attack; empty where the data has no superclasses."""
    coarse = results.description["data"].get("coarse")
    if coarse is None or None in coarse["of_class"]:
        return []
    of_class = np.array(coarse["of_class"])
    siblings = np.bincount(of_class)[of_class] - 1  # other classes of the same superclass, per class
    errors = []
    for name in [CLEAN, *results.columns]:
        rows = results.verdicts[results.verdicts["attack"] == name]
        wrong = rows[rows["outcome"] == (Outcome.MISCLASSIFIED if name == CLEAN else Outcome.BROKEN)]
        if len(wrong):
            label, answer = wrong["label"].to_numpy(), wrong["adv_pred"].to_numpy()
            within = int((of_class[label] == of_class[answer]).sum())
            chance = float(siblings[label].mean() / (len(of_class) - 1))
            bounds = interval(within, len(wrong))
            errors.append(SuperclassErrors(name, len(wrong), within, low=bounds.low, high=bounds.high, chance=chance))
    return errors


def has_many_classes(results: Results) -> bool:
    """Whether the data has more classes than a reader looks at one by one."""
    return len(results.description["data"]["classes"]) > MANY


def class_shares(results: Results) -> pd.DataFrame:
    """classes.csv: of every class its ``samples``, and the share of them that is robust under each attack.

    A row per class: class, label, samples, clean, every column, union, ci_low, ci_high. The interval is of the union (of clean where nothing
    was attacked); samples that an attack failed on lengthen it. Shares of a class without samples are NaN.
    """
    shares = (
        per_class(results, [CLEAN, *results.columns])
        .rename(columns={name: f"{name} (attack)" for name in _FIXED})
        .rename_axis(None)
    )
    if results.columns:
        rows, last = union_rows(results), UNION
        outcomes = rows["best"]
    else:
        rows, last = results.verdicts[results.verdicts["attack"] == CLEAN], CLEAN
        outcomes = rows["outcome"]
    said = pd.DataFrame({"robust": outcomes == Outcome.ROBUST, "undecided": outcomes.isin(Outcome.UNDECIDED), "samples": 1})
    counts = said.groupby(rows["label"]).sum().reindex(shares.index, fill_value=0).astype(int)
    shares[last] = counts["robust"] / counts["samples"].where(counts["samples"] > 0)
    bounds = [
        (interval(robust, n).low, interval(robust + undecided, n).high) if n else (float("nan"), float("nan"))
        for robust, undecided, n in counts.itertuples(index=False)
    ]
    shares[["ci_low", "ci_high"]] = np.array(bounds)
    shares.insert(0, "samples", counts["samples"])
    shares.insert(0, "label", range(len(shares)))
    shares.insert(0, "class", results.description["data"]["classes"])
    return shares


def attacks_of(shares: pd.DataFrame) -> list[str]:
    """The columns of ``class_shares`` that are about an attack; the interval is of the last one."""
    return list(shares.columns[3:-2])


def worst_classes(shares: pd.DataFrame) -> pd.DataFrame:
    """The ``WORST`` classes that are the most surely bad, by the upper end of the interval: a class of one sample, broken, is not among them."""
    return shares[shares["samples"] > 0].sort_values(["ci_high", "label"]).head(WORST)


def confusions(results: Results) -> pd.DataFrame:
    """The ``WORST`` most frequent wrong answers to returned adversarial images: ``label``, ``answer``, ``samples``; each sample under the attack
    that decided it."""
    if not results.columns:
        return pd.DataFrame(columns=["label", "answer", "samples"])
    rows = union_rows(results)
    wrong = rows[(rows["outcome"] == Outcome.BROKEN) & (rows["adv_pred"] >= 0)]
    counts = wrong.groupby(["label", "adv_pred"]).size().rename("samples").reset_index().rename(columns={"adv_pred": "answer"})
    return counts.sort_values(["samples", "label", "answer"], ascending=[False, True, True]).head(WORST)
