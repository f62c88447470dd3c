"""What the commands call: from a checkpoint or a model, and a suite, to a run folder with its report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from robench.attacks import check_suite
from robench.evaluation.cluster import connect, evaluate_on_ray
from robench.evaluation.device import device_of_rank, threads_of_rank, use_device
from robench.evaluation.engine import evaluate_columns
from robench.evaluation.environment import command_line
from robench.models.arithmetic import refuse_unknown_to
from robench.models.multihead import MAIN_HEAD
from robench.models.own_preprocessing import normalisation_hint
from robench.models.sources import SOURCES, source_of
from robench.models.subject import Subject, subject_of
from robench.processes import Processes
from robench.report import write_report
from robench.run.execute import Place, execute
from robench.run.inputs import few_classes, load_inputs, refuse_unnamed, tell_remarks, warn_on_stderr
from robench.run.plan import plan, samples
from robench.run.request import AttackRequest
from robench.types import Dataset, ExternalData, ExternalModel, RobenchError


def attack(
    request: AttackRequest,
    *,
    ckpt: Path | None = None,
    model: str | ExternalModel | None = None,
    dataset: str | ExternalData | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
    ray: str | None = None,
    show_progress: bool = True,
    warn: Callable[[str], None] = warn_on_stderr,
) -> Path | None:
    """Attacks a checkpoint, or a model of somebody else's, and writes the run folder with its report.

    Called again, it computes only the chunks that are missing. Under torchrun or SLURM it computes this process's share of them, and
    whoever finds them complete writes the report.

    Args:
        request: the attacks.
        ckpt: a checkpoint of ours; or
        model: one of the ways of ``robench list models``, such as ``file.py:factory``.
        dataset: a name or a folder, with how pictures are to be read; the checkpoint's own by default.
        data_dir: see ``robench.data.data_folder``.
        device, threads: see ``use_device``.
        out: the run folder, ``reports/<name>-<norm>-<eps>`` by default.
        ray: hand chunks to Ray: the address of a cluster, or "local".
        show_progress: bars on stderr.
        warn: is told what is suspicious about the model, a sentence at a time.

    Returns:
        The run folder, or None where other processes have not finished their share yet.

    Raises:
        RobenchError: anything the user can mend; what was measured before is kept.
    """
    processes = Processes.here()
    external = ExternalModel(model) if isinstance(model, str) else model
    _refuse(request, ckpt, external, ray, processes)
    tell = show_progress and processes.rank == 0
    inputs = load_inputs(ckpt, dataset, data_dir, request.head, model=external, tell=tell)
    data, n = inputs.data, samples(request.n, len(inputs.data))
    with ExitStack() as stack:
        place = _place(stack, processes, device, threads, ray)
        if place.device.split(":")[0] == place.device_type:  # workers of Ray may have what this process has not
            refuse_unknown_to(place.device, request.precision)
        subject = subject_of(ckpt, external, data, place.device, request.head)
        tell_remarks(subject, data, n, warn if processes.rank == 0 else None)
        if tell:
            _tell_data(data, n, subject, external, warn)
        folder = out or Path("reports") / request.folder_name(subject.name, request.threat(data), data, inputs.trained_on)
        task = MAIN_HEAD if ckpt is None else request.head
        run = plan(
            request, subject, data, folder, device=place.device, whole=inputs.whole, task=task, alone=processes.world_size == 1
        )
        results = execute(run, place, command=command_line(), show_progress=tell)
    if results is None:
        return None
    write_report(folder)
    return folder


def _tell_data(data: Dataset, n: int, subject: Subject, external: ExternalModel | None, warn: Callable[[str], None]) -> None:
    """What the data are, and what people forget about them."""
    if data.path or data.is_stored:
        print(f"robench: {data.path or data.name}: {data}", file=sys.stderr)
    hint = normalisation_hint(external) if external is not None and "mean" not in subject.origin else ""
    for remark in [*([hint] if hint else []), *few_classes(data, n)]:
        warn(remark)


def _refuse(
    request: AttackRequest, ckpt: Path | None, external: ExternalModel | None, ray: str | None, processes: Processes
) -> None:
    """What cannot be done, said before anything is downloaded."""
    refuse_unnamed(ckpt, external, "attack")
    if request.names is not None:
        check_suite(request.names)
    if ray is not None and processes.world_size > 1:
        raise RobenchError("`ray` under torchrun: both hand out chunks; use one of them")
    if request.precision == "auto" and (ray is not None or processes.world_size > 1):
        raise RobenchError("`precision=auto`: several processes may not agree; name fp32, tf32 or bf16")
    if ray is not None and external is not None and source_of(external.reference) is SOURCES["FILE.pt"]:
        raise RobenchError(
            f"`ray` cannot send the program {external.reference} to its workers; use torchrun, whose processes load it themselves"
        )


def _place(stack: ExitStack, processes: Processes, device: str, threads: int | None, ray: str | None) -> Place:
    """Where chunks are computed, for as long as the stack is open."""
    if ray is not None:
        cluster = stack.enter_context(connect(ray, device, threads))
        chosen = stack.enter_context(use_device("cpu", 1))
        return Place(chosen, cluster.device, processes, partial(evaluate_on_ray, cluster=cluster))
    chosen = stack.enter_context(use_device(device_of_rank(device, processes), threads or threads_of_rank(processes)))
    return Place(chosen, chosen.split(":")[0], processes, partial(evaluate_columns, processes=processes))
