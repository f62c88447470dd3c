"""(Classifier, images, attacks, threat model) -> per-sample verdicts, chunk by chunk, whoever computes them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robench.data.augment import to_unit
from robench.evaluation.chunk import attack_chunk, classify_chunk, pass_over, pass_over_gradients
from robench.evaluation.crafting import ChunkData, Conditions
from robench.evaluation.guard import Guard
from robench.evaluation.store import (
    BLIND,
    CLEAN,
    LEFT_OUT,
    Chunk,
    ChunkVerdicts,
    RunFolder,
    attack_folder,
    chunk_seed,
    keeps_images,
    split,
)
from robench.models.classifier import Classifier
from robench.models.failures import is_device_failure
from robench.processes import Processes
from robench.progress import duration, progress
from robench.types import Outcome, RobenchError, Suite, ThreatModel

if TYPE_CHECKING:
    from robench.evaluation.adv_images import PackedImages

LONG = 30  # seconds that are worth a forecast

Made = tuple[str, ChunkVerdicts, "PackedImages | None"]


@dataclass(frozen=True, eq=False)
class Job:
    """What is the same for every chunk of a run, wherever it is computed.

    Attributes:
        classifier: on its device.
        threat: the threat model.
        seed: of the run.
        save: keep adversarial images.
    """

    classifier: Classifier
    threat: ThreatModel
    seed: int
    save: bool = False

    @cached_property
    def guard(self) -> Guard:
        return Guard(self.classifier)


@dataclass(frozen=True)
class Unit:
    """Columns that are computed together on a chunk: a cascade, one attack, or several that share one trajectory. None: no attack."""

    suites: tuple[Suite, ...]

    @property
    def name(self) -> str:
        return ",".join(suite.name for suite in self.suites) or CLEAN

    @property
    def folders(self) -> list[str]:
        """Where its chunks lie, in the order in which they are written."""
        return [attack_folder(suite, member) for suite in self.suites for member in suite.members] or [CLEAN]


def plan(suites: Iterable[Suite], *, share: bool = True) -> list[Unit]:
    """The columns in groups that one computation serves.

    Attacks of one trajectory are ordered by their steps, so that the longest, which pays for all, is written last.

    Args:
        suites: the columns.
        share: group attacks whose steps are the same but for their number.
    """
    groups: dict[str, list[Suite]] = {}
    for suite in suites:
        together = "" if suite.cascade or not share else suite.members[0].prefix_of
        groups.setdefault(together or f"alone {suite.name}", []).append(suite)
    return [Unit(tuple(sorted(group, key=_steps))) for group in groups.values()]


def _steps(suite: Suite) -> int:
    return suite.members[0].params.get("steps", 0) if len(suite.members) == 1 else 0


def compute(
    job: Job, unit: Unit, images: Tensor, labels: Tensor, chunk: Chunk, known: Mapping[str, ChunkVerdicts]
) -> Iterator[Made]:
    """Whatever of a unit is not known yet on a chunk, in the order in which it must be stored.

    Args:
        job: the run.
        unit: the columns.
        images, labels: of the chunk, uint8 or float in [0, 1].
        chunk: its place.
        known: the unit's finished folders, and ``CLEAN``.

    Raises:
        RobenchError: the device is lost.
    """
    try:
        images = images.to(job.classifier.device)
        images = to_unit(images) if images.dtype == torch.uint8 else images.float()
        labels = labels.to(images.device, torch.int64)
        if not unit.suites:
            yield CLEAN, classify_chunk(job.classifier, images, labels, chunk), None
            return
        data = ChunkData(chunk, images, labels, known[CLEAN])
        yield from _cascade(job, unit.suites[0], data, known) if unit.suites[0].cascade else _together(job, unit, data, known)
    except RuntimeError as error:
        if not is_device_failure(error):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RobenchError(f"the device is lost ({first[:150]}); what was finished is kept, and the same command goes on") from None


def _cascade(job: Job, suite: Suite, data: ChunkData, known: Mapping[str, ChunkVerdicts]) -> Iterator[Made]:
    """Each member gets what the earlier ones left undecided or robust; behind a member of doubt only if that one broke something. Where
    the suite allows it, members that need a gradient are left out once the model has passed none to one of them."""
    before = data.clean.outcome
    if suite.skip:
        decided = np.isin(data.clean.index, list(suite.skip)) & (before != Outcome.MISCLASSIFIED)
        before = np.where(decided, Outcome.SKIPPED, before)
    needed, previous, failed, blind = True, data.clean, False, False
    for member in suite.members:
        folder = attack_folder(suite, member)
        verdicts = known.get(folder)
        if verdicts is None and (not needed or (blind and member.gradients)):
            verdicts = pass_over(previous, BLIND if needed else f"{suite.doubt} broke nothing")
            yield folder, verdicts, None
        elif verdicts is None:
            seed = chunk_seed(job.seed, member.family, data.chunk)
            conditions = Conditions(job.threat, seed, counts_best=suite.counts_best, save=job.save)
            ((_, verdicts, images),) = attack_chunk(job.classifier, job.guard, member, data, before, conditions)
            if suite.blind and BLIND in verdicts.message:
                verdicts = pass_over_gradients(verdicts, previous)
            yield folder, verdicts, images
        blind |= verdicts.mode == f"{LEFT_OUT}: {BLIND}"
        failed |= blind or bool(verdicts.undecided.any())  # trusted as little as one that was caught
        needed = failed or bool((verdicts.outcome == Outcome.BROKEN).any()) if member.name == suite.doubt else needed
        before, previous = verdicts.outcome, verdicts


def _together(job: Job, unit: Unit, data: ChunkData, known: Mapping[str, ChunkVerdicts]) -> Iterator[Made]:
    """The missing ones of attacks that share a trajectory, of which the longest runs."""
    folders = {suite.members[0].name: attack_folder(suite, suite.members[0]) for suite in unit.suites}
    *shorter, longest = [suite.members[0] for suite in unit.suites if folders[suite.members[0].name] not in known]
    conditions = Conditions(job.threat, chunk_seed(job.seed, longest.family, data.chunk), save=job.save, craft_all=job.save)
    made = attack_chunk(job.classifier, job.guard, longest, data, data.clean.outcome, conditions, tuple(shorter))
    for attack, verdicts, images in made:
        yield folders[attack.name], verdicts, images


@dataclass(frozen=True, eq=False)
class Worklist:
    """What is left to do in a run folder.

    Attributes:
        folder: the run.
        save: whether adversarial images are to be there as well.
    """

    folder: RunFolder
    save: bool = False

    def known(self, unit: Unit, chunk: Chunk) -> dict[str, ChunkVerdicts] | None:
        """What the folder has of a unit, and the clean chunk; None where nothing is missing.

        A failed attack is missing, and so are the stages of a cascade behind a missing one.
        """
        found: dict[str, ChunkVerdicts] = {}
        cascade = bool(unit.suites) and unit.suites[0].cascade
        for place, where in enumerate(unit.folders):
            if cascade and len(found) < place:
                break
            verdicts = self.folder.read(where, chunk)
            if (
                verdicts is not None
                and not verdicts.failed
                and (not self.save or self._has_images(where, chunk, verdicts, cascade))
            ):
                found[where] = verdicts
        if len(found) == len(unit.folders):
            return None
        clean = self.folder.read(CLEAN, chunk)
        return found if clean is None else found | {CLEAN: clean}

    def take(self, unit: Unit, chunk: Chunk) -> dict[str, ChunkVerdicts] | None:
        """As ``known``, of what is about to be computed.

        The stages of a cascade behind one that failed or is not there do not hold any more: they are removed first, so that a kill
        leaves none of them. Behind one that is only computed again for its images they hold, and stay until they are replaced.
        """
        if unit.suites and unit.suites[0].cascade:
            holds = True
            for where in unit.folders:
                verdicts = self.folder.read(where, chunk) if holds else None
                if not holds:
                    self.folder.forget(where, chunk)
                holds = verdicts is not None and not verdicts.failed
        return self.known(unit, chunk)

    def _has_images(self, where: str, chunk: Chunk, verdicts: ChunkVerdicts, cascade: bool) -> bool:
        if verdicts.adv_digest:
            return self.folder.images_path(where, chunk).exists()
        return where == CLEAN or not keeps_images(verdicts, cascade)

    def seconds(self, unit: Unit, chunks: Iterable[Chunk]) -> tuple[float, int]:
        """Seconds and samples of the chunks of a unit that are finished."""
        total, samples = 0.0, 0
        for chunk in chunks:
            parts = [self.folder.read(where, chunk) for where in unit.folders]
            if all(part is not None for part in parts):
                total += sum(part.seconds for part in parts if part is not None)
                samples += chunk.stop - chunk.start
        return total, samples


def evaluate_suites(
    classifier: Classifier, images: Tensor, labels: Tensor, suites: list[Suite], *, threat: ThreatModel, folder: RunFolder,
    processes: Processes | None = None, save: bool = False, share: bool = True, show_progress: bool = True,
) -> None:  # fmt: skip
    """Computes every chunk whose file does not exist yet and which is this process's share: first without attack, then suite by suite.

    Args:
        classifier: on its device.
        images: (N, C, H, W), uint8 or float32 in [0, 1].
        labels: int64 (N,).
        suites: the columns to fill.
        threat: the threat model.
        folder: where verdicts go.
        processes: who we are among how many; chunk k is the share of process k modulo their number.
        save: keep adversarial images.
        share: let one trajectory serve several columns where their verdicts stay what they are.
        show_progress: a bar per column and a forecast on stderr.

    Raises:
        RobenchError: the model cannot classify a single clean image, the device is lost, or the folder cannot be written. What an attack
            raises is recorded as its outcome on that chunk, and the run goes on.
    """
    here = processes or Processes()
    chunks = split(len(images), folder.spec.chunk)[here.rank :: here.world_size]
    job = Job(classifier, threat, folder.spec.seed, save)
    worklist = Worklist(folder, save)
    units = plan(suites, share=share)

    def finish(unit: Unit, chunk: Chunk) -> None:
        known = worklist.take(unit, chunk)
        if known is not None:
            part = slice(chunk.start, chunk.stop)
            for where, verdicts, adv_images in compute(job, unit, images[part], labels[part], chunk, known):
                folder.write(where, chunk, verdicts, adv_images)

    for chunk in progress(chunks, CLEAN, show_progress):
        finish(Unit(()), chunk)
    refuse_unclassified(folder, split(len(images), folder.spec.chunk))
    for unit in progress(units if len(chunks) > 1 else [], "first chunk", show_progress, "column"):
        finish(unit, chunks[0])
    if show_progress:
        _forecast(worklist, units, chunks)
    for unit in units:
        for chunk in progress(chunks, unit.name, show_progress):
            finish(unit, chunk)


def refuse_unclassified(folder: RunFolder, chunks: list[Chunk]) -> None:
    """Refuses to attack a model that said no class of any clean image, once that is known of all of them.

    Raises:
        RobenchError: so it is, with what the model raised or said.
    """
    message = ""
    for chunk in chunks:
        clean = folder.read(CLEAN, chunk)
        if clean is None or (clean.clean_pred >= 0).any():
            return
        message = message or clean.message
    raise RobenchError(f"{message}; so it is with every other, and nothing can be said about it")


def _forecast(worklist: Worklist, units: list[Unit], chunks: list[Chunk]) -> None:
    """Says on stderr how long the missing chunks will take, judged by the finished ones."""
    left: dict[str, float] = {}
    for unit in units:
        missing = [chunk for chunk in chunks if worklist.known(unit, chunk) is not None]
        seconds, samples = worklist.seconds(unit, [chunk for chunk in chunks if chunk not in missing])
        left[unit.name] = seconds / max(samples, 1) * sum(chunk.stop - chunk.start for chunk in missing)
    total = sum(left.values())
    if total > LONG:
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in left.items() if seconds > total / 20)
        print(f"robench: about {duration(total)} to go ({parts})", file=sys.stderr)
