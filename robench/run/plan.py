"""From what was asked for to what is measured: one way for the commands, for Python and for audits."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from robench.attacks import parse_columns, source_paths
from robench.attacks.crafting_targets import make_heads_target, on_heads
from robench.data.augment import in_unit
from robench.evaluation.chunk_size import PROBED, ask_device, chunk_on_cpu, largest_chunk
from robench.evaluation.external_images import external_column
from robench.evaluation.run_folder import read_run
from robench.identity import AttackIdentity
from robench.models.multihead import MAIN_HEAD
from robench.models.quicker import quicker_precision
from robench.models.subject import Subject, classifier_of_checkpoint
from robench.run.request import DEFAULT_CHUNK, AttackRequest
from robench.types import Column, Dataset, RobenchError, ThreatModel

TIMED_IMAGES, TIMED_ON_CUDA = 64, 256  # by which precisions are timed; on a GPU fewer take as long in any


@dataclass(frozen=True, eq=False)
class Run:
    """What is to be measured.

    Attributes:
        subject: the model.
        data: the split.
        n: its first samples.
        columns: to be filled.
        threat: the threat model.
        path: the run folder.
        seed: of the attacks.
        chunk: samples a chunk.
        save: keep adversarial images.
        share: let one trajectory serve several columns.
        graphed: record the passes of attacks where the device has that.
    """

    subject: Subject
    data: Dataset
    n: int
    columns: list[Column]
    threat: ThreatModel
    path: Path
    seed: int = 0
    chunk: int = DEFAULT_CHUNK
    save: bool = False
    share: bool = True
    graphed: bool = True


def plan(
    request: AttackRequest, subject: Subject, data: Dataset, folder: Path, *, device: str, whole: Dataset | None = None, task: str | None = None,
    alone: bool = True,
) -> Run:  # fmt: skip
    """The run that was asked for; computes nothing but a few passes where ``precision`` is "auto" or the chunk's size is.

    Args:
        request: what was asked for.
        subject: the model under test.
        data: the split, with the labels of the judged head.
        folder: where the run lies, or will.
        device: for the models that images are crafted on.
        whole: the split with the labels of the main task, by default ``data``.
        task: of the checkpoints that images are crafted on, which must then be of the same data set; by default the main task of any.
        alone: no other process plans the same run: several may not find the same chunk size.

    Raises:
        RobenchError: there are fewer samples than ``n``; see ``parse_columns``, ``on_heads`` and ``external_column``.
    """
    n, threat = samples(request.n, len(data)), request.threat(data)
    checked = None if task is None else data
    sources = {
        path: classifier_of_checkpoint(Path(path), checked, device, task or MAIN_HEAD) for path in source_paths(request.names)
    }
    settled = replace(
        request, precision=settled_precision(request, subject, data, folder), chunk=settled_chunk(request, subject, data, folder, alone=alone)
    )  # fmt: skip
    columns = [
        *request.columns,
        *_crafted(settled, subject, data if whole is None else whole, data, n, sources),
        *(external_column(source, data, n) for source in request.adv),
    ]
    return Run(
        subject, data, n, columns, threat, folder, seed=request.seed, chunk=settled.chunk, save=request.save_adv, share=request.share,
        graphed=request.graphed,
    )  # fmt: skip


def _crafted(
    request: AttackRequest, subject: Subject, whole: Dataset, data: Dataset, n: int, sources: dict[str, Subject]
) -> list[Column]:  # fmt: skip
    """The columns whose images are made here: on the judged head, on other heads, or on other models."""
    if request.names is None:
        return []
    threat, options = request.threat(data), request.options(request.precision)
    if request.attack_heads in (None, request.head):
        return parse_columns(request.names, threat, len(data.classes), options, sources)
    target = make_heads_target(str(request.attack_heads), subject, whole)
    n_classes = target.n_classes(min(request.chunk, n % request.chunk or request.chunk, n))
    return on_heads(parse_columns(request.names, threat, n_classes, options, sources), str(request.attack_heads), target)


def samples(n: int | None, total: int) -> int:
    """How many samples ``n`` means.

    Raises:
        RobenchError: there are not so many.
    """
    if n is None:
        return total
    if not 1 <= n <= total:
        raise RobenchError(f"`n={n}`: expected 1 to {total}, the samples of the test split")
    return n


def settled_precision(request: AttackRequest, subject: Subject, data: Dataset, folder: Path) -> str:
    """What "auto" means here: what the run began with, else what this processor does faster."""
    if request.precision != "auto":
        return request.precision
    if (folder / "run.json").exists():
        stages = [AttackIdentity.of_member(stage) for column in read_run(folder)["suites"] for stage in column["members"]]
        crafted = [stage for stage in stages if stage.images is None]
        if crafted:
            return next((stage.passes.precision for stage in crafted if stage.passes.precision != "fp32"), "fp32")
    device = subject.classifier.device
    images = data.pixels(slice(0, TIMED_ON_CUDA if device.type == "cuda" else TIMED_IMAGES)).to(device)
    return quicker_precision(subject.classifier, in_unit(images), request.graphed)


def settled_chunk(request: AttackRequest, subject: Subject, data: Dataset, folder: Path, *, alone: bool = True) -> int:
    """Samples a chunk: what was asked for, else what the run began with, else, on a GPU, as many as fit, which is said on stderr, and elsewhere
    fewer of large images."""
    if not request.auto_chunk:
        return request.chunk
    if (folder / "run.json").exists():
        return int(read_run(folder)["spec"]["chunk"])
    device = subject.classifier.device
    if device.type != "cuda":
        return chunk_on_cpu(data.image_shape)
    if not alone:
        return request.chunk
    need = ask_device(subject.classifier, in_unit(data.pixels(slice(0, PROBED[-1])).to(device)))
    chunk = largest_chunk(samples(request.n, len(data)), need)
    why = (
        ""
        if need is None
        else f": a gradient step takes {need.per_image / 2**20:.2f} MiB an image, {need.free / 2**30:.1f} GiB are free"
    )
    print(f"robench: batch size auto: chunks of {chunk:,}{why}", file=sys.stderr)
    return chunk
