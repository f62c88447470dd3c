"""Where a model errs: which samples an attack alone breaks, and how far the wrong answers are from the right ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robench.evaluation.results import Results
from robench.evaluation.run_folder import CLEAN
from robench.report.accuracy import interval
from robench.types import Outcome


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
