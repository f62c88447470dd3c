"""The only arithmetic on accuracies. Accuracies are fractions; the denominator is all samples, clean mistakes included."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robench.evaluation.results import Results, decide
from robench.evaluation.run_folder import CLEAN, LEFT_OUT
from robench.types import AUTOATTACK_UNITS, Outcome

UNION = "union"
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Both ends of a confidence interval, of 95 % where nothing else is said, in the unit of what it is about."""

    low: float
    high: float


@lru_cache(maxsize=10_000)  # scipy takes a millisecond, and of a thousand classes many have the same counts
def interval(successes: int, n: int) -> Interval:
    """95 % interval of a share: Wilson's, and Clopper-Pearson's at 0 and n. It covers the sampling of test images only."""
    from scipy.stats import binomtest

    method = "exact" if successes in (0, n) else "wilson"
    bounds = binomtest(successes, n).proportion_ci(CONFIDENCE, method=method)
    return Interval(float(bounds.low), float(bounds.high))


def summarise(results: Results) -> pd.DataFrame:
    """One row for clean, each column, each stage, and the union.

    ``robust_accuracy`` is empty where an attack failed on samples; then ``robust_low`` and ``robust_high`` are its bounds. A
    stage's robust accuracy is what is left after it; ``broken`` and ``attack_success_rate`` are its own, over the samples that it was given.
    For clean, ``broken`` counts the mistakes. The union counts every adversarial image that an attack came across, a column those
    that it returned; ``best_broken`` is what the column would have with the former. Costs per sample are over those decided.
    """
    verdicts = {str(name): rows for name, rows in results.verdicts.groupby("attack", sort=False)}
    cost = results.ledger.groupby("attack")[["forwards", "backwards", "seconds"]].sum()
    rows = [_row(CLEAN, verdicts[CLEAN], cost.loc[CLEAN])]
    for column in results.columns:
        stages = results.stages[column]
        rows.append(_row(column, verdicts[column], cost.loc[stages or [column]].sum()))
        for place, stage in enumerate(stages):
            so_far = decide([verdicts[name] for name in stages[: place + 1]], stage)
            rows.append(_row(stage, so_far, cost.loc[stage]) | _own_success(verdicts[stage], cost.loc[stage]))
    if results.columns:
        union = union_rows(results)
        rows.append(_row(UNION, union.assign(outcome=union["best"]), cost.drop(CLEAN).sum()))
    modes = results.ledger.groupby("attack")["mode"].agg(_modes)
    return pd.DataFrame(rows).assign(mode=lambda table: table["attack"].map(modes).fillna(""))


def union_rows(results: Results) -> pd.DataFrame:
    """What all columns together say: a row per sample, ``outcome`` by the images that were returned, ``best`` by every query."""
    verdicts = {str(name): rows for name, rows in results.verdicts.groupby("attack", sort=False)}
    return decide([verdicts[column] for column in results.columns], UNION)


def _modes(of_chunks: pd.Series) -> str:
    """How an attack was run; where chunks differ, all ways."""
    ways = list(dict.fromkeys(of_chunks))
    return ways[0] if len(ways) == 1 else ", ".join(way or "alone" for way in ways)


def _own_success(rows: pd.DataFrame, cost: pd.Series) -> dict[str, Any]:
    """What a stage did to the samples that it was given."""
    outcomes = rows["outcome"]
    broken = int((outcomes == Outcome.BROKEN).sum())
    given = int((~outcomes.isin((Outcome.MISCLASSIFIED, Outcome.SKIPPED))).sum())
    best_broken = int((rows["best"] == Outcome.BROKEN).sum())
    success = {"broken": broken, "best_broken": best_broken, "attack_success_rate": broken / given if given else float("nan")}
    return success | _per_sample(cost, given - int(outcomes.isin(Outcome.UNDECIDED).sum()))


def _per_sample(cost: pd.Series, decided: int) -> dict[str, Any]:
    return {f"{name}_per_sample": float(cost[name]) / decided if decided else float("nan") for name in cost.index}


def robust_share(outcomes: pd.Series) -> dict[str, Any]:
    """What outcomes of all samples say: robust accuracy, empty where samples are undecided, its bounds and its 95 % interval."""
    counts, n = outcomes.value_counts(), len(outcomes)
    robust = int(counts.get(Outcome.ROBUST, 0))
    undecided = sum(int(counts.get(outcome, 0)) for outcome in Outcome.UNDECIDED)
    return {
        "n": n,
        "robust_accuracy": robust / n if not undecided else float("nan"),
        "ci_low": interval(robust, n).low,
        "ci_high": interval(robust + undecided, n).high,
        "undecided": undecided,
        "robust_low": robust / n,
        "robust_high": (robust + undecided) / n,
    }


def _row(name: str, rows: pd.DataFrame, cost: pd.Series) -> dict[str, Any]:
    outcomes, share = rows["outcome"].value_counts(), robust_share(rows["outcome"])
    n, undecided, wrong = share["n"], share["undecided"], int(outcomes.get(Outcome.MISCLASSIFIED, 0))
    broken = wrong if name == CLEAN else int(outcomes.get(Outcome.BROKEN, 0))
    return {
        "attack": name,
        **{key: share[key] for key in ("n", "robust_accuracy", "ci_low", "ci_high")},
        "broken": broken,
        "forwards": int(cost["forwards"]),
        "backwards": int(cost["backwards"]),
        "seconds": round(float(cost["seconds"]), 3),
        "misclassified": wrong,
        **{key: share[key] for key in ("undecided", "robust_low", "robust_high")},
        "attack_success_rate": float("nan") if name == CLEAN or undecided or n == wrong else broken / (n - wrong),
        "best_broken": broken if name == CLEAN else int((rows["best"] == Outcome.BROKEN).sum()),
    } | _per_sample(cost, n if name == CLEAN else n - wrong - undecided)


def shortfall(summary: pd.DataFrame, least: float) -> str:
    """Why robust accuracy cannot be said to reach ``least``: the upper bound of the union's interval lies below it; or "".

    Args:
        summary: of ``summarise``, with a union.
        least: a fraction of all samples.
    """
    union = summary[summary["attack"] == UNION].iloc[0]
    if union["ci_high"] >= least:
        return ""
    columns = [name for name in summary["attack"] if not is_stage(name) and name not in (CLEAN, UNION)]
    return (
        f"robust accuracy is {accuracy_text(union)} % of {union['n']:,} samples (union of {', '.join(columns)}); the upper 95 % bound, "
        f"{percent(union['ci_high'])} %, lies below {percent(least)} %"
    )


def verdict_rows(verdicts: pd.DataFrame) -> pd.DataFrame:
    """verdicts.csv: one row per sample and attack; ``adv_pred`` is empty where no image was judged."""
    rows = verdicts[["attack", "index", "label", "clean_pred", "outcome", "adv_pred", "distance", "margin", "best"]].copy()
    rows["adv_pred"] = rows["adv_pred"].astype("Int64").where(rows["adv_pred"] >= 0)
    return rows


def per_class(results: Results, columns: list[str]) -> pd.DataFrame:
    """Share of each class that is robust: a row per class, a column per attack, NaN for a class without samples."""
    rows = results.verdicts[results.verdicts["attack"].isin(columns)]
    robust = (rows["outcome"] == Outcome.ROBUST).groupby([rows["label"], rows["attack"]]).mean().unstack()
    return robust.reindex(index=range(len(results.description["data"]["classes"])), columns=columns)


def percent(fraction: float) -> str:
    """A fraction as it is printed in reports."""
    return "-" if np.isnan(fraction) else f"{100 * fraction:.2f}"


def accuracy_text(row: pd.Series) -> str:
    """A row's robust accuracy in percent, as bounds where samples are undecided."""
    if not row["undecided"]:
        return percent(row["robust_accuracy"])
    return f"{percent(row['robust_low'])} to {percent(row['robust_high'])}"


def left_out(row: pd.Series) -> bool:
    """Whether a row is a stage that its cascade needed on no chunk, so that it says nothing of its own."""
    return row["mode"].startswith(LEFT_OUT) and not row["forwards"]


def is_stage(attack: str) -> bool:
    """Whether a name is ``column/stage``; a slash in a column's parameters, as in ``pgd20(step=1/255)``, or in a file's name is none."""
    return "/" in re.sub(r"\([^)]*\)", "", attack.partition("@")[0])


def table_rows(summary: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """The rows of a summary with their names; neighbouring stages that a cascade left out for one reason are one row."""
    rows: list[tuple[str, pd.Series]] = []
    for _, row in summary.iterrows():
        column, _, stage = row["attack"].rpartition("/")
        if (
            left_out(row)
            and rows
            and left_out(rows[-1][1])
            and rows[-1][1]["mode"] == row["mode"]
            and rows[-1][0].startswith(f"{column}/")
        ):
            rows[-1] = (f"{rows[-1][0]}, {stage}", row)
        else:
            rows.append((row["attack"], row))
    return rows


def in_autoattacks(forwards: int, backwards: int, samples: int) -> float:
    """Passes as a multiple of what AutoAttack costs on so many samples that survive it."""
    return (forwards + 2 * backwards) / (AUTOATTACK_UNITS * samples) if samples else float("nan")


def title(attack: str) -> str:
    """An attack as papers write it: fgsm -> FGSM, pgd20 -> PGD-20, pgd20@other -> PGD-20 @ other (transfer)."""
    attack, at, source = attack.partition("@")
    if at:
        return f"{title(attack)} @ {source} (transfer)" if attack != "adv" else f"stored images {source}"
    known = {"clean": "natural", "fgsm": "FGSM", "autoattack": "AutoAttack", "union": "union"}
    if attack.startswith("pgd"):
        return "PGD-" + attack[3:] if attack[3:] else "PGD"
    return known.get(attack, attack)
