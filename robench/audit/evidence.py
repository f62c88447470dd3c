"""Everything that the checks may look at: verdicts of the audit's runs, what the probes measured, and where stored images come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robench.audit.schedule import Missed
from robench.evaluation.results import Results, failing
from robench.evaluation.run_folder import CLEAN
from robench.report.paired import Paired, paired
from robench.types import Outcome

AUDITED_RADIUS = "eps"  # the run at the audited radius


@dataclass(frozen=True)
class ExternalImages:
    """A column of images that were made before the audit.

    Attributes:
        column: its name.
        weights: digest of the weights that they were crafted on, or "" where nobody knows.
        source: that model's name, or "".
        heads: the heads that they were crafted on, where not on the judged one alone.
    """

    column: str
    weights: str = ""
    source: str = ""
    heads: tuple[str, ...] = ()


class RobustCount(NamedTuple):
    """Samples that are robust, and at most, where attacks failed or images are invalid and nothing is known."""

    robust: int
    most: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """The measurements of one audit.

    Attributes:
        runs: radius to results; ``MAIN`` for the audited one, else a name of the grid such as "x2", "half" or "unbounded".
        probes: name to what it measured, or to ``{"failed": reason}``.
        model: digest of the evaluated weights.
        classes: of the main task.
        dataset: its name.
        norm, eps_text: the threat model.
        defended: whether the model is known to be adversarially trained; None where nobody knows.
        protocol: what the claim says about itself: "white-box", "transfer" or "unknown".
        external: columns of images that were made before.
        draws: forward passes that a verdict is voted by; 1 where the model is not random.
        claimed: whether a number of somebody's is judged.
        claim: that number, a fraction of all samples.
        missed: experiments that gave nothing, with the reason.
        remedy: the command that runs them.
        covered: samples of which no attack that was begun left any out for want of time, bool (n,); None for all. They are a random part of all.
    """

    runs: Mapping[str, Results]
    probes: Mapping[str, Mapping[str, Any]]
    model: str
    classes: int
    dataset: str
    norm: str
    eps_text: str
    defended: bool | None = None
    protocol: str = "unknown"
    external: tuple[ExternalImages, ...] = ()
    draws: int = 1
    claimed: bool = False
    claim: float | None = None
    missed: tuple[Missed, ...] = ()
    remedy: str = ""
    covered: np.ndarray | None = None
    _frames: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict)

    def rows(self, column: str, at: str = AUDITED_RADIUS) -> pd.DataFrame | None:
        """The verdicts of a column or stage, sorted by sample; None where it was not measured."""
        if at not in self.runs:
            return None
        if (at, column) not in self._frames:
            verdicts = self.runs[at].verdicts
            self._frames[at, column] = verdicts[verdicts["attack"] == column].sort_values("index")
        rows = self._frames[at, column]
        return rows if len(rows) else None

    def said(self, column: str, *, best: bool = True, at: str = AUDITED_RADIUS) -> np.ndarray | None:
        """What an attack made of the samples that the model can classify without one, values of ``Outcome``; None where it was not
        measured or failed on one of them. The others say nothing about the attack, and no comparison holds them."""
        rows = self.rows(column, at)
        if rows is None:
            return None
        said = rows["best" if best else "outcome"].to_numpy()[~self.unclassified()[: len(rows)]]
        return None if np.isin(said, Outcome.UNDECIDED).any() else said

    def robust(self, column: str, *, best: bool = True, at: str = AUDITED_RADIUS) -> np.ndarray | None:
        """Which samples an attack left standing, bool, of those of ``outcomes``; None where it was not measured or failed on a sample.

        Args:
            column: its name.
            best: by every image that it came across, else by those that it returned.
            at: the radius.
        """
        outcomes = self.said(column, best=best, at=at)
        return None if outcomes is None else outcomes == Outcome.ROBUST

    def broken(self, column: str, *, at: str = AUDITED_RADIUS) -> np.ndarray | None:
        """Which samples an attack broke by any image that it came across, clean mistakes left out, bool, of those of ``said``; None where it
        is missing or failed."""
        said = self.said(column, at=at)
        return None if said is None else said == Outcome.BROKEN

    def failed(self) -> dict[str, str]:
        """Attacks at the audited radius that failed, with the reason."""
        messages = failing(self.runs[AUDITED_RADIUS].ledger)
        messages = messages[messages["attack"] != CLEAN]
        return {str(name): str(message) for name, message in messages.groupby("attack", sort=False)["message"].first().items()}

    def unclassified(self) -> np.ndarray:
        """Which samples the model cannot classify even without attack, so that nothing can be said of them, bool (n,)."""
        clean = self.rows(CLEAN)
        assert clean is not None  # every run has it
        return clean["outcome"].isin(Outcome.UNDECIDED).to_numpy(copy=True)

    def correct(self) -> np.ndarray:
        """Which samples are right without attack, bool (n,)."""
        clean = self.rows(CLEAN)
        assert clean is not None  # every run has it
        return (clean["outcome"] == Outcome.ROBUST).to_numpy()

    def compare(self, first: str, second: str, *, best: bool = True) -> Paired | None:
        """Accuracy under the first attack against that under the second, on the same samples; None where either is missing."""
        one, two = self.robust(first, best=best), self.robust(second, best=best)
        return None if one is None or two is None else paired(one, two)

    def columns(self) -> list[str]:
        """The columns of the audited radius."""
        return self.runs[AUDITED_RADIUS].columns

    def external_bounds(self) -> RobustCount | None:
        """On the stored images that break most, how many samples are right; None without any."""
        counts = []
        for each in self.external:
            rows = self.rows(each.column)
            if rows is not None:
                right = int((rows["outcome"] == Outcome.ROBUST).sum())
                counts.append(RobustCount(right, right + int(rows["outcome"].isin(Outcome.UNDECIDED).sum())))
        return min(counts, key=lambda standing: standing.most) if counts else None

    def union(self, columns: list[str], among: np.ndarray | None = None) -> RobustCount:
        """How many samples no attack breaks; those that failed say nothing, nor does the model of a clean image that it cannot classify.

        Args:
            columns: whose every image counts.
            among: samples that are counted, bool (n,); all by default.
        """
        open_ = self.unclassified()
        left = self.correct() | open_
        for name in columns:
            rows = self.rows(name)
            if rows is not None:
                outcomes = rows["best"].to_numpy()
                left = left & ~np.isin(outcomes, (Outcome.BROKEN,))
                open_ |= np.isin(outcomes, Outcome.UNDECIDED)
        if among is not None:
            left = left & among
        return RobustCount(int((left & ~open_).sum()), int(left.sum()))
