"""The stronger attacks that findings call for, on what is left: all of it, or as much as fits into the time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from robench.audit.forecast import distillation_seconds, random_order, units_of_name
from robench.audit.measurements import Measurements
from robench.audit.panel import CONSEQUENCES, LADDER, consequences
from robench.audit.rules import GRADIENT_FREE
from robench.audit.schedule import NO_TIME, Experiment, Missed
from robench.audit.surrogate import SURROGATE, surrogate_attack
from robench.report.accuracy import title
from robench.types import Column, Dataset

PART = "part of "  # begins the name of a column that saw some of the samples that were left
ROOM_LEFT = 0.95  # of the time that is left may be planned
MOST_PARTS = 5  # that a stronger attack is split into
LEAST_PART = 5  # samples that a part has at least


@dataclass(eq=False)
class FollowUp:
    """One audit's stronger attacks.

    Attributes:
        measured: the audit.
        learn_from: images for a surrogate.
        covered: see ``Evidence``.
    """

    measured: Measurements
    learn_from: Dataset
    covered: np.ndarray | None = None

    def run(self, names: list[str]) -> None:
        """Together those that fit on all that is left, then one by one those that do not, on a random part of it."""
        schedule = self.measured.schedule
        if self._is_there(names):
            schedule.try_one(self._together(names, known=True))
            return
        fitting: list[str] = []
        budget = ROOM_LEFT * schedule.deadline.left
        for name in names:
            seconds = self.seconds(name, self.measured.left)
            if seconds <= budget:
                fitting.append(name)
                budget -= seconds
        if fitting:
            schedule.try_one(self._together(fitting))
        others = [name for name in names if name not in fitting]
        for place, name in enumerate(others):
            self._on_a_part(name, share=1 / (len(others) - place))

    def seconds(self, name: str, samples: int) -> float:
        """The forecast of an attack."""
        return units_of_name(name) * samples * self.measured.schedule.pace + self._distillation([name])

    def longest(self) -> float:
        """Seconds that all stronger attacks with gradients take on what is left."""
        return sum(self.seconds(each.name, self.measured.left) for each in LADDER if each.name not in GRADIENT_FREE)

    def _together(self, names: list[str], *, known: bool = False) -> Experiment:
        measured = self.measured
        return Experiment(
            name=", ".join(map(title, names)), changes=measured.open_text, run=partial(self._attack, CONSEQUENCES, names),
            units=lambda: 0.0 if known else sum(map(units_of_name, names)) * measured.left, fixed=0.0 if known else self._distillation(names),
        )  # fmt: skip

    def _is_there(self, names: list[str]) -> bool:
        """Whether an earlier call has run just these; to name an attack of a surrogate, that has to be there too."""
        if SURROGATE in names and not self._surrogate_file.exists():
            return False
        return self.measured.is_there([self._column(CONSEQUENCES, names, self.measured.decided())])

    def _column(self, column_name: str, names: list[str], decided: np.ndarray) -> Column:
        measured, transfers = self.measured, {}
        if SURROGATE in names:
            transfers[SURROGATE] = surrogate_attack(
                measured.subject, self.learn_from, measured.threat, self._surrogate_file, measured.request.seed
            )
        return replace(consequences(names, measured.threat, measured.n_classes, decided, transfers), name=column_name)

    def _attack(self, column_name: str, names: list[str], besides: np.ndarray | None = None) -> None:
        self.measured.add([self._column(column_name, names, self.measured.decided() if besides is None else besides)])

    def _on_a_part(self, name: str, *, share: float) -> None:
        """A stronger attack that does not fit on all that is left, on as many samples as fit into a share of the time, in the fixed random
        order; then on more of them, since what breaks early leaves time."""
        measured, schedule = self.measured, self.measured.schedule
        order, tried = random_order(measured.n, measured.request.seed).numpy(), np.zeros(measured.n, dtype=bool)
        fixed = self.seconds(name, 0)
        one = self.seconds(name, 1) - fixed
        for place in range(MOST_PARTS):
            open_ = self._open(order, tried)
            room = share * ROOM_LEFT * schedule.deadline.left - (0 if tried.any() else fixed)
            many = max(0, min(len(open_), int(room / one)))
            if not len(open_) or (many < LEAST_PART and many < len(open_)):
                break
            besides = np.ones(measured.n, dtype=bool)
            besides[open_[:many]] = False
            column_name = f"{PART}{name}" + (f", {place + 1}" if place else "")
            experiment = Experiment(
                name=f"{title(name)} on {many} of {len(open_)} samples", changes=measured.open_text, units=partial(float, units_of_name(name) * many),
                run=partial(self._attack, column_name, [name], besides), fixed=0 if place else fixed,
            )  # fmt: skip
            if not schedule.try_one(experiment):
                return
            tried[open_[:many]] = True
        open_ = self._open(order, tried)
        if not len(open_):
            return
        schedule.missed.append(Missed(f"{title(name)} on {len(open_)} samples", NO_TIME, one * len(open_) + fixed))
        if tried.any():
            seen = np.zeros(measured.n, dtype=bool)
            seen[order[: np.flatnonzero(order == open_[0])[0]]] = True
            self.covered = seen if self.covered is None else self.covered & seen

    def _open(self, order: np.ndarray, tried: np.ndarray) -> np.ndarray:
        """Places of samples that nothing has broken and this attack has not seen, in the fixed random order."""
        return order[~(self.measured.decided() | tried)[order]]

    @property
    def _surrogate_file(self) -> Path:
        return self.measured.path("surrogate").with_suffix(".safetensors")

    def _distillation(self, names: list[str]) -> float:
        """Seconds that the surrogate takes to learn."""
        if SURROGATE not in names or self._surrogate_file.exists():
            return 0.0
        return distillation_seconds(self.learn_from, self.measured.schedule.pace)
