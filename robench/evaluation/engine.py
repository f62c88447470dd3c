"""(Classifier, images, attacks, threat model) -> per-sample verdicts, chunk by chunk, whoever computes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from robench.data.augment import in_unit
from robench.evaluation.attack_chunk import attack_chunk, classify_chunk, leave_out, pass_over_gradients
from robench.evaluation.cascade import Standing
from robench.evaluation.crafting import ChunkData, Conditions
from robench.evaluation.guard import Guard
from robench.evaluation.read_ahead import ReadAhead
from robench.evaluation.run_folder import (
    BLIND,
    CLEAN,
    Chunk,
    ChunkVerdicts,
    RunFolder,
    attack_folder,
    chunk_seed,
    follows,
    keeps_images,
    split,
)
from robench.models.classifier import Classifier
from robench.models.failures import is_device_failure
from robench.processes import Processes
from robench.progress import duration, progress
from robench.types import Attack, Column, RobenchError, StoredImages, ThreatModel

if TYPE_CHECKING:
    from robench.evaluation.packed_images import PackedImages

WORTH_A_FORECAST = 30  # seconds that are worth a forecast


class Made(NamedTuple):
    """Something to store of a chunk: in which folder of the run, the verdicts, and the images, None where there are none."""

    folder: str
    verdicts: ChunkVerdicts
    images: PackedImages | None


@dataclass(frozen=True, eq=False)
class Job:
    """What is the same for every chunk of a run, wherever it is computed.

    Attributes:
        classifier: on its device.
        threat: the threat model.
        seed: of the run.
        save: keep adversarial images.
        graphed: record the passes of attacks and replay them where the device has that.
    """

    classifier: Classifier
    threat: ThreatModel
    seed: int
    save: bool = False
    graphed: bool = True

    @cached_property
    def guard(self) -> Guard:
        return Guard(self.classifier)


@dataclass(frozen=True)
class ColumnGroup:
    """Columns that are computed together on a chunk: a cascade, one attack, or several that share one trajectory. None: no attack."""

    columns: tuple[Column, ...]

    @property
    def name(self) -> str:
        return ",".join(column.name for column in self.columns) or CLEAN

    @property
    def folders(self) -> list[str]:
        """Where its chunks lie, in the order in which they are written."""
        return [attack_folder(column, stage) for column in self.columns for stage in column.stages] or [CLEAN]


def group_columns(columns: Iterable[Column], *, share: bool = True) -> list[ColumnGroup]:
    """The columns in groups that one computation serves.

    Attacks of one trajectory are ordered by their steps, so that the longest, which pays for all, is written last.

    Args:
        columns: the columns.
        share: group attacks whose steps are the same but for their number.
    """
    by_trajectory: dict[str, list[Column]] = {}
    for column in columns:
        together = "" if column.is_cascade or not share else column.stages[0].prefix_of
        by_trajectory.setdefault(together or f"alone {column.name}", []).append(column)
    return [ColumnGroup(tuple(sorted(of_one, key=_steps))) for of_one in by_trajectory.values()]


def _steps(column: Column) -> int:
    return column.stages[0].identity.steps or 0 if len(column.stages) == 1 else 0


class PlannedCall(NamedTuple):
    """A call that a group needs: the column, its stage, attacks that the same steps serve, and the verdicts where they are there."""

    column: Column
    stage: Attack
    prefixes: tuple[Attack, ...] = ()
    verdicts: ChunkVerdicts | None = None


def _calls(group: ColumnGroup, finished: Mapping[str, ChunkVerdicts]) -> list[PlannedCall]:
    """The stages of a cascade; or the longest of the attacks that are missing, whose steps serve the shorter ones."""
    first = group.columns[0]
    if first.is_cascade:
        return [PlannedCall(first, stage, verdicts=finished.get(attack_folder(first, stage))) for stage in first.stages]
    missing = [column for column in group.columns if attack_folder(column, column.stages[0]) not in finished]
    return [PlannedCall(missing[-1], missing[-1].stages[0], tuple(column.stages[0] for column in missing[:-1]))]


def compute(
    job: Job, group: ColumnGroup, images: Tensor, labels: Tensor, chunk: Chunk, finished: Mapping[str, ChunkVerdicts]
) -> Iterator[Made]:
    """Whatever of a group is not finished yet on a chunk, in the order in which it must be stored.

    Args:
        job: the run.
        group: the columns.
        images, labels: of the chunk, uint8 or float in [0, 1].
        chunk: its place.
        finished: the group's folders that are, and ``CLEAN``.

    Raises:
        RobenchError: the device is lost.
    """
    with device_loss_in_one_message():
        images = images.to(job.classifier.device)
        images = in_unit(images)
        labels = labels.to(images.device, torch.int64)
        if not group.columns:
            yield Made(CLEAN, classify_chunk(job.classifier, images, labels, chunk), None)
            return
        data = ChunkData(chunk, images, labels, finished[CLEAN])
        folders = {stage.name: attack_folder(column, stage) for column in group.columns for stage in column.stages}
        standing = Standing.at_first(group.columns[0], data.clean)
        for column, stage, prefixes, known in _calls(group, finished):
            verdicts, why = known, standing.reason_to_leave_out(stage)
            if verdicts is None and why:
                verdicts = leave_out(standing.previous, why)
                yield Made(folders[stage.name], verdicts, None)
            elif verdicts is None:
                attacked = attack_chunk(
                    job.classifier, job.guard, stage, data, before=standing.outcome, conditions=_conditions(job, column, stage, chunk),
                    prefixes=prefixes,
                )  # fmt: skip
                for each in attacked:
                    verdicts = each.verdicts
                    if column.blind and BLIND in verdicts.message:
                        verdicts = pass_over_gradients(verdicts, standing.previous)
                    yield Made(folders[each.attack.name], verdicts, each.images)
            assert verdicts is not None
            standing = standing.after(stage, verdicts)


def _conditions(job: Job, column: Column, stage: Attack, chunk: Chunk) -> Conditions:
    """How a stage is run. What a cascade did not give it has no image to keep; of any other attack every sample's is kept."""
    return Conditions(
        job.threat, chunk_seed(job.seed, stage.family, chunk), count_queries=column.count_queries, save=job.save,
        craft_all=job.save and not column.is_cascade, graphed=job.graphed,
    )  # fmt: skip


@contextmanager
def device_loss_in_one_message() -> Iterator[None]:
    """A lost device ends the run: what it raised becomes one sentence.

    Raises:
        RobenchError: the device is lost.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_device_failure(error):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RobenchError(
            f"the device is lost ({first[:150]}); what was finished is kept in the run folder; start the same run again, and it goes on from there"
        ) from None


class Spent(NamedTuple):
    """Seconds, and the samples that they were spent on."""

    seconds: float
    samples: int


@dataclass(frozen=True, eq=False)
class Worklist:
    """What is left to do in a run folder.

    Attributes:
        folder: the run.
        save: whether adversarial images are to be there as well.
    """

    folder: RunFolder
    save: bool = False

    def finished(self, group: ColumnGroup, chunk: Chunk) -> dict[str, ChunkVerdicts]:
        """What the folder has of a group of columns.

        A failed attack is missing, and so are the stages of a cascade behind a missing one, and those that do not follow from the one before
        them, see ``follows``.
        """
        verdicts_of: dict[str, ChunkVerdicts] = {}
        previous: ChunkVerdicts | None = None
        is_cascade = bool(group.columns) and group.columns[0].is_cascade
        for place, subfolder in enumerate(group.folders):
            if is_cascade and len(verdicts_of) < place:
                break
            verdicts = self.folder.read(subfolder, chunk)
            if (
                verdicts is not None
                and not verdicts.failed
                and (previous is None or follows(verdicts, previous))
                and (not self.save or self._has_images(subfolder, chunk, verdicts, is_cascade))
            ):
                verdicts_of[subfolder] = verdicts
                previous = verdicts if is_cascade else None
        return verdicts_of

    def is_complete(self, group: ColumnGroup, chunk: Chunk) -> bool:
        """Whether nothing of a group of columns is missing."""
        return len(self.finished(group, chunk)) == len(group.folders)

    def take(self, group: ColumnGroup, chunk: Chunk) -> dict[str, ChunkVerdicts] | None:
        """What is finished of what is about to be computed, and the clean chunk; None where nothing is missing.

        The stages of a cascade behind one that failed, is not there or does not follow do not hold any more: they are removed first, so
        that a kill leaves none of them. Behind one that is only computed again for its images they hold, and stay until they are replaced.
        """
        if group.columns and group.columns[0].is_cascade:
            holds, previous = True, None
            for subfolder in group.folders:
                verdicts = self.folder.read(subfolder, chunk) if holds else None
                if not holds:
                    self.folder.forget(subfolder, chunk)
                holds = verdicts is not None and not verdicts.failed and (previous is None or follows(verdicts, previous))
                previous = verdicts
        finished = self.finished(group, chunk)
        if len(finished) == len(group.folders):
            return None
        clean = self.folder.read(CLEAN, chunk)
        return finished if clean is None else finished | {CLEAN: clean}

    def _has_images(self, subfolder: str, chunk: Chunk, verdicts: ChunkVerdicts, is_cascade: bool) -> bool:
        if verdicts.adv_digest:
            return self.folder.images_path(subfolder, chunk).exists()
        return subfolder == CLEAN or not keeps_images(verdicts, is_cascade)

    def spent(self, group: ColumnGroup, chunks: Iterable[Chunk]) -> Spent:
        """On the chunks of a group that are finished."""
        total, samples = 0.0, 0
        for chunk in chunks:
            parts = [self.folder.read(subfolder, chunk) for subfolder in group.folders]
            if all(part is not None for part in parts):
                total += sum(part.seconds for part in parts if part is not None)
                samples += chunk.stop - chunk.start
        return Spent(total, samples)


def evaluate_columns(
    classifier: Classifier, images: Tensor | StoredImages, labels: Tensor, columns: list[Column], *, threat: ThreatModel, folder: RunFolder,
    processes: Processes | None = None, save: bool = False, share: bool = True, graphed: bool = True, show_progress: bool = True,
    goes_on: Callable[[], bool] = lambda: True,
) -> None:  # fmt: skip
    """Computes every chunk whose file does not exist yet and which is this process's share: first without attack, then suite by suite.

    Args:
        classifier: on its device.
        images: (N or more, C, H, W), uint8 or float32 in [0, 1]; or stored, and read chunk by chunk.
        labels: int64 (N,), of the first N images.
        columns: the columns to fill.
        threat: the threat model.
        folder: where verdicts go.
        processes: who we are among how many; chunk k is the share of process k modulo their number.
        save: keep adversarial images.
        share: let one trajectory serve several columns where their verdicts stay what they are.
        graphed: record the passes of attacks and replay them where the device has that, see ``robench.models.graphed``.
        show_progress: a bar per column and a forecast on stderr.
        goes_on: asked before every attack on a chunk; where it says no, what is missing stays so. Chunks without attack are all computed.

    Raises:
        RobenchError: the model cannot classify a single clean image, the device is lost, or the folder cannot be written. What an attack
            raises is recorded as its outcome on that chunk, and the run goes on.
    """
    processes = processes or Processes()
    chunks = split(len(labels), folder.spec.chunk)[processes.rank :: processes.world_size]
    job = Job(classifier, threat, folder.spec.seed, save, graphed)
    worklist = Worklist(folder, save)
    groups = group_columns(columns, share=share)

    with closing(ReadAhead(images)) as ahead:
        for phase in _phases(worklist, groups, chunks, len(labels), show_progress):
            for place, (group, chunk) in enumerate(progress(phase.work, phase.name, show_progress, phase.unit)):
                if group.columns and not goes_on():
                    return
                finished = worklist.take(group, chunk)
                if finished is None:
                    continue
                pixels = ahead.pixels(chunk)
                if ahead.is_stored:
                    for _, later in islice((each for each in phase.work[place + 1 :] if not worklist.is_complete(*each)), 1):
                        ahead.expect(later)
                for made in compute(job, group, pixels, labels[chunk.start : chunk.stop], chunk=chunk, finished=finished):
                    folder.write(made.folder, chunk, made.verdicts, made.images)
                    if group.columns and not goes_on():
                        return


class Phase(NamedTuple):
    """A part of a run that has a bar of its own: its name, what an item is called, and the groups and chunks to go through."""

    name: str
    unit: str
    work: list[tuple[ColumnGroup, Chunk]]


def _phases(worklist: Worklist, groups: list[ColumnGroup], chunks: list[Chunk], n: int, show_progress: bool) -> Iterator[Phase]:
    """What is done in turn: every chunk without attack, the first chunk of every column, for a forecast, and column after column.

    Raises:
        RobenchError: see ``refuse_unclassified``.
    """
    yield Phase(CLEAN, "chunk", [(ColumnGroup(()), chunk) for chunk in chunks])
    refuse_unclassified(worklist.folder, split(n, worklist.folder.spec.chunk))
    if len(chunks) > 1:
        yield Phase("first chunk", "column", [(group, chunks[0]) for group in groups])
    if show_progress:
        _forecast(worklist, groups, chunks)
    for group in groups:
        yield Phase(group.name, "chunk", [(group, chunk) for chunk in chunks])


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
    raise RobenchError(f"{message}; it can classify none of the other images either, so there is nothing to attack")


def _forecast(worklist: Worklist, groups: list[ColumnGroup], chunks: list[Chunk]) -> None:
    """Says on stderr how long the missing chunks will take, judged by the finished ones."""
    left: dict[str, float] = {}
    for group in groups:
        missing = [chunk for chunk in chunks if not worklist.is_complete(group, chunk)]
        spent = worklist.spent(group, [chunk for chunk in chunks if chunk not in missing])
        left[group.name] = spent.seconds / max(spent.samples, 1) * sum(chunk.stop - chunk.start for chunk in missing)
    total = sum(left.values())
    if total > WORTH_A_FORECAST:
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in left.items() if seconds > total / 20)
        print(f"robench: about {duration(total)} to go ({parts})", file=sys.stderr)
