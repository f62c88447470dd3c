"""Runs an attack on some samples of a chunk, under watch."""

from __future__ import annotations

import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robench.evaluation.early_stop import AllDecided, Referee, Snapshot, queries_between_looks
from robench.evaluation.guard import Guard
from robench.evaluation.memory import smaller_passes
from robench.evaluation.run_folder import BLIND, Chunk, ChunkVerdicts
from robench.evaluation.search_precision import searched_in
from robench.models.classifier import Classifier, computed_by
from robench.models.failures import is_device_failure, is_out_of_memory
from robench.models.graphed import graphed
from robench.models.rewrite import cheaper_twin
from robench.models.seeded import seeded
from robench.types import Attack, ReturnPolicy, ThreatModel

if TYPE_CHECKING:
    from robench.types import Images, Labels

CUT: Any = object()


@dataclass(frozen=True, eq=False)
class ChunkData:
    """A chunk on the classifier's device.

    Attributes:
        chunk: its place in the data set.
        images, labels: float32 in [0, 1] and int64, of every sample.
        clean: the chunk without attack.
    """

    chunk: Chunk
    images: Images
    labels: Labels
    clean: ChunkVerdicts


@dataclass(frozen=True)
class Conditions:
    """How an attack is run.

    Attributes:
        threat: the threat model.
        seed: see ``chunk_seed``.
        count_queries: the outcome is what the best query shows, not what was returned; the call ends once every sample is decided.
        save: keep the adversarial images.
        craft_all: with ``save``, craft on misclassified samples too.
        graphed: record the attack's passes and replay them where the device has that, see ``robench.models.graphed``.
    """

    threat: ThreatModel
    seed: int
    count_queries: bool = False
    save: bool = False
    craft_all: bool = False
    graphed: bool = True


@dataclass(frozen=True, eq=False)
class Crafted:
    """What an attack left behind for the samples that it was given.

    Attributes:
        returned: its images, or None where it failed.
        best, broken, broken_at: see ``Referee``; of no meaning where it was not watched.
        message: what it failed with, or "".
        ties: see ``ChunkVerdicts``.
    """

    returned: Images | None
    best: Images
    broken: Tensor
    broken_at: Tensor
    message: str = ""
    ties: int = 0


@dataclass(frozen=True)
class Cost:
    """Passes in samples, seconds, and how the attack was run where that is not by itself."""

    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    mode: str = ""


class Attempt(NamedTuple):
    """What an attack left behind, what was known after so many of its steps, and what it cost."""

    crafted: Crafted
    snapshots: dict[int, Snapshot]
    cost: Cost


def craft(
    classifier: Classifier, guard: Guard, attack: Attack, data: ChunkData, *, places: np.ndarray, conditions: Conditions,
    prefixes: tuple[Attack, ...] = (),
) -> Attempt:  # fmt: skip
    """Runs an attack on the samples at ``places``; what it does to the weights is undone.

    Args:
        classifier, guard: the model under test and its weights.
        prefixes: attacks that take the same steps, but fewer: a snapshot is made after the steps of each.
    """
    chosen = torch.from_numpy(places).to(data.images.device)
    images, labels = data.images[chosen], data.labels[chosen]
    nobody = torch.zeros(len(places), dtype=torch.bool, device=images.device)
    nothing = Crafted(None, images, nobody, torch.full_like(nobody, float("nan"), dtype=torch.float32))
    if not len(places):
        return Attempt(nothing, {}, Cost())
    if attack.external_images is not None:
        stored = attack.external_images[data.chunk.start : data.chunk.stop][places].to(images.device)
        return Attempt(replace(nothing, returned=stored), {}, Cost())
    started = time.perf_counter()
    victim, victim_labels = _victim(classifier, attack, data)
    labels, victim = victim_labels[chosen], cheaper_twin(victim, attack.pass_options, images)
    replays = conditions.graphed and not attack.pass_options.compiled
    victim_guard = guard if victim is classifier else Guard(victim)
    for trial in smaller_passes(victim, len(images)):
        referee: Any = None  # that of an earlier try is let go before memory is asked for again
        with trial:
            call = WatchedCall(victim, len(images))
            with victim.counting() as passes:
                referee = Referee(
                    images, labels, conditions.threat, classify=partial(unwatched, victim.exact),
                    cut=_cut(classifier, attack, conditions), taps=[prefix.identity.steps or 0 for prefix in prefixes], passes=passes,
                    every=queries_between_looks(images.device),
                )  # fmt: skip
                with (
                    searched_in(attack.pass_options.precision, victim, referee), victim.forgiving(), call, graphed(victim) if replays else nullcontext(),
                    seeded(conditions.seed, images.device), torch.enable_grad(),  # left as it was, whatever the attack switches
                ):  # fmt: skip
                    call.returned(attack.fn(victim, images.clone(), labels.clone(), conditions.threat, conditions.seed))
                    if images.is_cuda:
                        torch.cuda.synchronize(images.device)
            complaint = victim_guard.restore()
            if complaint:
                unwatched(victim, images)  # would a mere pass have changed it, too?
                call.failed(victim_guard.restore(by="the model's own forward pass") or complaint)
    broken = referee.broken if attack.crafting_target is None else torch.zeros_like(referee.broken)
    crafted = Crafted(
        returned=referee.best if call.adv_images is CUT else call.adv_images, best=referee.best, broken=broken,
        broken_at=torch.where(broken, referee.broken_at, float("nan")), message=call.error, ties=referee.ties,
    )  # fmt: skip
    return Attempt(crafted, referee.snapshots, Cost(passes.forwards, passes.backwards, time.perf_counter() - started))


class Victim(NamedTuple):
    """What images are crafted on: a classifier, and the labels (N,) of the whole chunk that it is to be turned away from."""

    classifier: Classifier
    labels: Labels


def _victim(classifier: Classifier, attack: Attack, data: ChunkData) -> Victim:
    if attack.crafting_target is None:
        return Victim(classifier, data.labels)
    return Victim(*attack.crafting_target.prepare(data.images, data.labels, torch.from_numpy(data.clean.index)))


def _cut(classifier: Classifier, attack: Attack, conditions: Conditions) -> ReturnPolicy:
    """By what queries the call may be ended. One draw of a random model decides nothing, nor does a query to another model."""
    if classifier.draws > 1 or attack.crafting_target is not None:
        return ReturnPolicy.LAST
    return ReturnPolicy.ANY if conditions.count_queries else attack.returns


class WatchedCall:
    """The call of an attack, as a block. An attack is somebody else's code: whatever it raises is a result about it, and kept. A lost
    device is none, nor is memory that would suffice for smaller passes.

    Attributes:
        adv_images: what it returned, ``CUT`` where the referee ended it, None where it failed.
        error: what it raised, or "".
    """

    def __init__(self, victim: Classifier, n: int) -> None:
        self._victim, self._n = victim, n
        self.adv_images: Any = None
        self.error = ""

    def returned(self, adv_images: Any) -> None:
        """Says what the attack returned."""
        self.adv_images = adv_images
        self.error = "the attack returned None, expected adversarial images" if adv_images is None else ""

    def failed(self, error: str) -> None:
        """Says why what the attack returned does not count."""
        self.adv_images, self.error = None, error

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if isinstance(error, AllDecided):
            self.adv_images = CUT
            return True
        if not isinstance(error, Exception | SystemExit):
            return False
        if is_device_failure(error) or (is_out_of_memory(error) and (self._victim.largest_pass or self._n) > 1):
            return False
        place = traceback.extract_tb(trace)[-1]
        self.failed(f"{type(error).__name__}: {error} ({place.name}, line {place.lineno}){_hint(str(error))}")
        return True


NO_GRADIENT = (
    "does not require grad",
    "Can't call numpy() on Tensor that requires grad",
    "'NoneType' object has no attribute 'contiguous'",
)


def _hint(message: str) -> str:
    """What to do about an exception that says little by itself, or ""."""
    if not any(sign in message for sign in NO_GRADIENT):
        return ""
    return (
        f"; {BLIND} (no_grad, detach, rounding, NumPy or a quantised layer in it?): ask an attack that needs none, such as square, or "
        "`robench audit`"
    )


def unwatched(classifier: Classifier, images: Images) -> Tensor:
    """Logits, by a pass that is the engine's own and not the attack's; NaN for an image that the model raises on."""
    with classifier.counting(), classifier.watched_by(None), computed_by(classifier, None):
        return classifier.heard(images)[0]
