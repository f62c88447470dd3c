"""How robust accuracy fell as an attack spent: the curve against cost, and what more of it might still break."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robench.evaluation.results import Results
from robench.evaluation.run_folder import CLEAN
from robench.report.accuracy import CONFIDENCE, title
from robench.types import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def cost_curve(results: Results, column: str) -> pd.DataFrame:
    """``units`` a sample of the data and the ``robust_accuracy`` that was left by then, every query counted; one row for each sample broken.

    A forward pass is 1 unit, a backward pass 2. The chunks are taken as if they were attacked side by side. Begins with nothing spent and
    ends with all of it. Empty where the attack cost nothing of its own (a prefix of another, stored images), or the run is of a version
    that did not note when samples broke.
    """
    when, total = [], 0.0
    n = results.description["n"]
    sizes = results.verdicts[results.verdicts["attack"] == CLEAN].groupby("chunk", sort=False).size()
    offset = pd.Series(0.0, index=sizes.index)
    for stage in results.stages[column] or [column]:
        rows = results.verdicts[(results.verdicts["attack"] == stage) & (results.verdicts["best"] == Outcome.BROKEN)]
        costs = results.ledger[results.ledger["attack"] == stage].set_index("chunk")
        if rows["broken_at"].isna().any() or costs["mode"].str.startswith("prefix").any():
            return pd.DataFrame(columns=["units", "robust_accuracy"])
        chunks = rows["chunk"]
        when.append((rows["broken_at"].to_numpy() + offset[chunks].to_numpy()) / sizes[chunks].to_numpy())
        offset = offset + costs["forwards"] + 2 * costs["backwards"]
        total += float((costs["forwards"] + 2 * costs["backwards"]).sum()) / n
    if not total:
        return pd.DataFrame(columns=["units", "robust_accuracy"])
    units = np.sort(np.concatenate(when))
    clean = float((results.verdicts[results.verdicts["attack"] == CLEAN]["outcome"] == Outcome.ROBUST).mean())
    left = clean - np.arange(len(units) + 1) / n
    return pd.DataFrame({"units": [0.0, *units, max(total, units.max(initial=0.0))], "robust_accuracy": [*left, left[-1]]})


@dataclass(frozen=True)
class Outlook:
    """What as much again would break, if finds become no more frequent than they were at last.

    Attributes:
        late, before: samples broken in the second half of the cost, and in the quarter before it.
        more: expected, if they go on becoming rarer as they did.
        most: upper 95 % bound, if they become no rarer (a Poisson bound on ``late``).
    """

    late: int
    before: int
    more: float
    most: float


def outlook(curve: pd.DataFrame) -> Outlook | None:
    """The outlook at the end of a curve; None where it has none."""
    from scipy.stats import chi2

    if not len(curve):
        return None
    units, total = curve["units"].to_numpy()[1:-1], float(curve["units"].iloc[-1])
    late, before = int((units > total / 2).sum()), int(((units > total / 4) & (units <= total / 2)).sum())
    more = late * min(1.0, late / before) if before else float(late)
    return Outlook(late, before, more, float(chi2.ppf(CONFIDENCE, 2 * (late + 1)) / 2))


def outlook_lines(results: Results) -> list[str]:
    """A sentence on each cascade about what it might still have broken, and where it did not trust its gradients."""
    lines = []
    for column in (name for name in results.columns if results.stages[name]):
        seen = outlook(cost_curve(results, column))
        if seen is not None:
            lines.append(
                f"- {title(column)}: the second half of its cost broke {seen.late} of {results.description['n']:,} samples, the quarter before it "
                f"{seen.before}; as much again would break about {seen.more:.0f} more if they go on becoming rarer like that, at most "
                f"{seen.most:.0f} (95 %) if they become no rarer."
            )
        doubted = _doubted(results, column)
        if doubted:
            lines.append(f"- **{title(column)} does not trust its gradients here:** {doubted}")
    return lines


def _doubted(results: Results, column: str) -> str:
    """What a search without gradients found behind the gradients, or ""."""
    stage = f"{column}/suspect"
    if stage not in results.stages[column]:
        return ""
    broken = results.verdicts[(results.verdicts["attack"] == stage) & (results.verdicts["best"] == Outcome.BROKEN)]
    if not len(broken):
        return ""
    chunks, stages = results.ledger["chunk"].nunique(), results.stages[column]
    *others, last = (each.rpartition("/")[2] for each in stages[stages.index(stage) + 1 :])
    return (
        f"Square broke {len(broken)} samples that they had left, in {broken['chunk'].nunique()} of {chunks} chunks, where AutoAttack's "
        f"{', '.join(others)} and {last} followed; `robench audit` says why"
    )


def draw_costs(results: Results) -> Figure | None:
    """Robust accuracy against cost, a line for each column that noted when samples broke; None where there is none."""
    curves = {column: cost_curve(results, column) for column in results.columns}
    curves = {column: curve for column, curve in curves.items() if len(curve) > 2}
    if not curves:
        return None
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes: Axes = figure.subplots()
    for column, curve in curves.items():
        axes.step(curve["units"].clip(lower=1), 100 * curve["robust_accuracy"], where="post", label=title(column))
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("units a sample: a forward pass 1, a backward pass 2")
    axes.set_ylabel("samples left, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure
