"""What an audit still wants to do, what each experiment may change and costs, and what fits into the time that was promised."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from robench.models.failures import first_line, is_device_failure
from robench.progress import duration
from robench.types import RobenchError

Clock = Callable[[], float]  # seconds since some time
NO_TIME = "did not fit into the time"
ROOM = 1.2  # times the forecast that a longer call is told to take


class Unfinished(Exception):
    """Time did not suffice for an experiment that was begun; what was computed of it is kept."""


@dataclass(eq=False)
class Deadline:
    """The time that an audit has, in seconds from when this was made; ``clock`` is another one in tests."""

    seconds: float
    clock: Clock = time.perf_counter
    started: float = field(default=math.nan)

    def __post_init__(self) -> None:
        self.started = self.clock() if math.isnan(self.started) else self.started

    @property
    def spent(self) -> float:
        return self.clock() - self.started

    @property
    def left(self) -> float:
        return self.seconds - self.spent


@dataclass(frozen=True, eq=False, kw_only=True)
class Experiment:
    """One thing that an audit may do.

    Attributes:
        name: of it.
        changes: what it can still change, in words.
        units: its forecast in passes, in samples: a forward pass 1, a backward pass 2; asked when its turn comes, since what was broken
            by then costs less.
        run: does it.
        feeds: the checks that read it.
        fixed: seconds that it takes beside its passes.
    """

    name: str
    changes: str
    units: Callable[[], float]
    run: Callable[[], object]
    feeds: tuple[str, ...] = ()
    fixed: float = 0.0


@dataclass(frozen=True)
class Missed:
    """An experiment that gave nothing: its name, why, the seconds that it would take (0 where time was not the reason), and what it feeds."""

    name: str
    why: str
    seconds: float = 0.0
    feeds: tuple[str, ...] = ()


@dataclass(eq=False)
class Schedule:
    """Runs experiments while there is time, the cheapest first.

    Attributes:
        deadline: of the audit.
        pace: seconds a unit, from a timed pass.
        show: say on stderr what runs, why, and how much time is left.
        whole: seconds that all samples take, where only a part of them is taken.
        missed: what gave nothing.
        waiting: what waits for something more decisive, see ``run``.
        interrupted: whether the user asked for what is known.
    """

    deadline: Deadline
    pace: float
    show: bool = True
    whole: float = 0.0
    missed: list[Missed] = field(default_factory=list)
    waiting: list[Experiment] = field(default_factory=list)
    interrupted: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether an experiment that has begun is to go on."""
        return not self.interrupted and self.deadline.left > 0

    def seconds(self, experiment: Experiment) -> float:
        """The forecast."""
        return experiment.units() * self.pace + experiment.fixed

    def run(self, experiments: Iterable[Experiment], reserve: Callable[[float], float] = lambda needs: 0.0) -> None:
        """Runs what fits. What fails, and what does not fit, is remembered as missed.

        Args:
            experiments: in any order.
            reserve: seconds that are kept for what is more decisive, given those that the next experiment needs. What fits but for them waits,
                see ``run_waiting``.

        Raises:
            RobenchError: what the user has to mend: the folder cannot be written, or the device is lost.
        """
        for experiment in sorted(experiments, key=self.seconds):
            self.try_one(experiment, reserve)

    def run_waiting(self) -> None:
        """Runs what has waited, as far as it fits by now."""
        waiting, self.waiting = self.waiting, []
        self.run(waiting)

    def try_one(self, experiment: Experiment, reserve: Callable[[float], float] = lambda needs: 0.0) -> bool:
        """Runs an experiment if it fits; whether it was run to its end."""
        needs = self.seconds(experiment)
        if self.interrupted:
            self.miss(experiment, "the audit was interrupted before", needs)
            return False
        if needs > 0 and needs > self.deadline.left:
            self.miss(experiment, NO_TIME, needs)
            return False
        if needs > 0 and needs > self.deadline.left - reserve(needs):
            self.waiting.append(experiment)
            return False
        if self.show:
            left = "" if math.isinf(self.deadline.left) else f"; {duration(max(0.0, self.deadline.left))} left"
            print(
                f"robench: {experiment.name} ({experiment.changes}), at most {duration(needs)}{left}", file=sys.stderr, flush=True
            )
        try:
            experiment.run()
        except KeyboardInterrupt:
            self.interrupted = True
            if self.show:
                print("robench: interrupted; what is known follows, Ctrl-C again ends", file=sys.stderr, flush=True)
            self.miss(experiment, "the audit was interrupted", needs)
            return False
        except Unfinished as error:
            self.miss(experiment, str(error), needs)
            return False
        except RobenchError:
            raise
        except Exception as error:  # somebody else's model may raise anything
            if is_device_failure(error):
                raise
            self.miss(experiment, f"ended with {type(error).__name__}: {first_line(error)}")
            return False
        return True

    def miss(self, experiment: Experiment, why: str, seconds: float = 0.0) -> None:
        """Remembers an experiment that gave nothing."""
        self.missed.append(Missed(experiment.name, why, seconds, experiment.feeds))

    @property
    def minutes(self) -> float:
        """That a call would need which runs everything."""
        needs = self.deadline.spent + sum(each.seconds for each in self.missed)
        return math.ceil(ROOM * max(needs, self.whole) / 6) / 10


def with_minutes(command: str, minutes: float) -> str:
    """The command that takes so many minutes, or what to change where it was no command."""
    if not command:
        return f"give `minutes={minutes:g}`"
    plain = re.sub(r"\s--minutes[ =]\S+", "", command)
    return f"`{plain} --minutes {minutes:g}`"
