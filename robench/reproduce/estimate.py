"""How long a reproduction will take here, before it begins: some steps and passes are timed, and scaled by what each model costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robench.data.augment import to_unit
from robench.models.multihead import MAIN_HEAD, MultiHead
from robench.progress import duration
from robench.run.request import DEFAULT_CHUNK
from robench.training.adversarial import ADVERSARIAL
from robench.training.objectives import OBJECTIVES
from robench.training.precision import quicker, step_times
from robench.training.spec import TrainSpec
from robench.types import Dataset

STEPS = 24  # of a training are timed
SECONDS = 2.0  # after which no further step, and no further pass, is timed
# Forward and backward passes per test sample under both protocols: means over the models in reports/paper.
PLAIN = (40, 36)
DEFENDED = (1130, 310)  # adversarially trained: AutoAttack goes to its end on what survives


class Remaining(NamedTuple):
    """How a model is trained, and the steps that are left of that."""

    spec: TrainSpec
    steps: int


@dataclass(frozen=True)
class Work:
    """What a call has still to do.

    Attributes:
        trainings: that are not finished.
        models: to be attacked.
        plain, defended: test samples of these models, of undefended and of adversarially trained ones.
    """

    trainings: tuple[Remaining, ...]
    models: int
    plain: int
    defended: int


def forecast(work: Work, train_set: Dataset, test_set: Dataset, spec: TrainSpec, device: str) -> str:
    """How long the work takes, in words; changes no random state.

    Args:
        work: what is to be done.
        train_set: of the first training.
        test_set: of the first model that is attacked.
        spec: of that model.
        device: where all of it is done.
    """
    training = _training_seconds(work, train_set, device) if work.trainings else 0.0
    attacking = _attack_seconds(work, test_set, spec, device)
    parts = [f"{_count(len(work.trainings), 'training')} about {duration(training)}"] if work.trainings else []
    parts.append(f"attacks on {_count(work.models, 'model')} about {duration(attacking)}")
    return f"about {duration(training + attacking)} to go on this machine, as fast as it is now: {', '.join(parts)}"


def epochs_done(state: Path) -> int:
    """Of an unfinished training, 0 where there is none."""
    if not state.exists():
        return 0
    try:
        return len(torch.load(state, map_location="cpu", weights_only=True, mmap=True)["history"])
    except Exception:  # a damaged state is refused, with its reason, where it is resumed
        return 0


def _training_seconds(work: Work, train_set: Dataset, device: str) -> float:
    """A step of the first training, times all steps, each by what it costs against that one."""
    first = work.trainings[0].spec
    if first.precision == "auto":
        first = replace(first, precision=quicker(first, train_set, device).precision)
    times = step_times(first, train_set, device, images=first.batch_size, steps=STEPS, seconds=SECONDS)
    return sum(times) / len(times) * sum(left.steps * _cost(left.spec) / _cost(first) for left in work.trainings)


def _cost(spec: TrainSpec) -> int:
    """Of a step, in forward and backward passes of a batch."""
    return OBJECTIVES[spec.arch].n_views * ADVERSARIAL[spec.adversarial].passes


def _attack_seconds(work: Work, test_set: Dataset, spec: TrainSpec, device: str) -> float:
    each = _pass_seconds(test_set, spec, device)
    return sum(n * (f * each.forward + b * each.backward) for n, (f, b) in ((work.plain, PLAIN), (work.defended, DEFENDED)))


class PassSeconds(NamedTuple):
    """Of a forward and of a backward pass of one sample."""

    forward: float
    backward: float


def _pass_seconds(test_set: Dataset, spec: TrainSpec, device: str) -> PassSeconds:
    """What a sample costs in a chunk of them, through a model that is thrown away."""
    with torch.random.fork_rng(devices=[]):
        model = MultiHead(spec.backbone, spec.heads(test_set))
    model = model.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    part = slice(0, DEFAULT_CHUNK)
    images, labels = to_unit(test_set.pixels(part).to(device)), test_set.labels[part].to(device)

    @torch.no_grad()
    def forward() -> Tensor:
        return model(images)[MAIN_HEAD].sum()

    def both() -> Tensor:
        moved = images.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(model(moved)[MAIN_HEAD], labels), moved)[0].sum()

    once, twice = _mean_seconds(forward), _mean_seconds(both)
    return PassSeconds(forward=once / len(images), backward=max(twice - once, 0.0) / len(images))


def _mean_seconds(pass_: Callable[[], Tensor]) -> float:
    spent: list[float] = []
    began = time.perf_counter()
    while len(spent) <= STEPS and (len(spent) < 2 or time.perf_counter() - began < SECONDS / 2):
        started = time.perf_counter()
        float(pass_())  # waits for the device
        spent.append(time.perf_counter() - started)
    return sum(spent[1:]) / len(spent[1:])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
