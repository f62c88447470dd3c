"""What a cascade knows between two of its stages: which samples are left, and whether the next stage is needed at all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from robench.evaluation.run_folder import BLIND, LEFT_OUT, ChunkVerdicts
from robench.types import Attack, Column, Outcome


@dataclass(frozen=True, eq=False)
class Standing:
    """Where a column stands on a chunk. A column that is no cascade has one stage, and stands at its beginning.

    Attributes:
        column: the column.
        previous: the verdicts of the stage before, at first those without attack.
        outcome: what is known of each sample, values of ``Outcome``.
        needed: whether stages run: behind a gate, only where it broke something.
        failed: whether a stage left samples undecided: such a gate is trusted as little as one that broke something.
        blind: whether the model passed no gradient to a stage.
    """

    column: Column
    previous: ChunkVerdicts
    outcome: np.ndarray
    needed: bool = True
    failed: bool = False
    blind: bool = False

    @classmethod
    def at_first(cls, column: Column, clean: ChunkVerdicts) -> Standing:
        """Before the first stage; samples that something else decided are left out."""
        decided = np.isin(clean.index, list(column.skip)) & (clean.outcome != Outcome.MISCLASSIFIED)
        return cls(column, clean, np.where(decided, Outcome.SKIPPED, clean.outcome) if column.skip else clean.outcome)

    def reason_to_leave_out(self, stage: Attack) -> str:
        """Why a stage need not run, or ""."""
        if not self.needed:
            return f"{self.column.gate} broke nothing"
        return BLIND if self.blind and stage.gradients else ""

    def after(self, stage: Attack, verdicts: ChunkVerdicts) -> Standing:
        """The same behind a stage: the next gets what this one left undecided or robust."""
        blind = self.blind or verdicts.mode == f"{LEFT_OUT}: {BLIND}"
        failed = self.failed or blind or bool(verdicts.undecided.any())
        broke = bool((verdicts.outcome == Outcome.BROKEN).any())
        needed = failed or broke if stage.name == self.column.gate else self.needed
        return replace(self, previous=verdicts, outcome=verdicts.outcome, needed=needed, failed=failed, blind=blind)
