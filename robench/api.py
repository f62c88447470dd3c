"""What the commands call: from a model and a suite to a run folder and its tables."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from robench.attacks import check_suite
from robench.checkpoint import read_description
from robench.data import DATASETS, load_dataset
from robench.evaluation.cluster import connect, evaluate_on_ray
from robench.evaluation.device import device_of_rank, threads_of_rank, use_device
from robench.evaluation.engine import evaluate_columns
from robench.evaluation.sanity_check import sanity_check
from robench.models.multihead import MAIN_HEAD
from robench.models.sources import SOURCES, source_of
from robench.models.subject import Subject, classifier_of_checkpoint, classifier_of_model, of_head
from robench.planning import plan, samples
from robench.processes import Processes
from robench.report import write_report
from robench.request import AttackRequest
from robench.runs import Place, run_columns
from robench.types import Dataset, ExternalModel, RobenchError


def attack(
    request: AttackRequest,
    *,
    ckpt: Path | None = None,
    model: str | ExternalModel | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
    ray: str | None = None,
    show_progress: bool = True,
) -> Path | None:
    """Attacks a checkpoint, or a model of somebody else's, and writes the run folder with its report.

    Called again, it computes only the chunks that are missing. Under torchrun or SLURM it computes this process's share of them, and
    whoever finds them complete writes the report.

    Args:
        request: the attacks.
        ckpt: a checkpoint of ours; or
        model: one of the ways of ``robench list models``, such as ``file.py:factory``.
        dataset: a name or a folder; the checkpoint's own by default.
        data_dir: see ``robench.data.data_folder``.
        device, threads: see ``use_device``.
        out: the run folder, ``reports/<name>-<norm>-<eps>`` by default.
        ray: hand chunks to Ray: the address of a cluster, or "local".
        show_progress: bars on stderr.

    Returns:
        The run folder, or None where other processes have not finished their share yet.

    Raises:
        RobenchError: anything the user can mend; what was measured before is kept.
    """
    processes = Processes.here()
    external = ExternalModel(model) if isinstance(model, str) else model
    _refuse(request, ckpt, external, ray, processes)
    whole, data, trained_on = _data_of(request, ckpt, dataset, data_dir)
    n = samples(request.n, len(data))
    with ExitStack() as stack:
        place = _place(stack, processes, device, threads, ray)
        subject = subject_of(ckpt, external, data, place.device, request.head)
        warn_of_sanity_check(subject, data, n, say=processes.rank == 0)
        if data.path and show_progress and processes.rank == 0:
            print(f"robench: {data.path}: {data}", file=sys.stderr)
        folder = out or Path("reports") / request.folder_name(subject.name, request.threat(data), data, trained_on)
        task = MAIN_HEAD if ckpt is None else request.head
        run = plan(request, subject, data, folder, device=place.device, whole=whole, task=task)
        results = run_columns(run, place, command=command(), show_progress=show_progress and processes.rank == 0)
    if results is None:
        return None
    write_report(folder)
    return folder


def _refuse(
    request: AttackRequest, ckpt: Path | None, external: ExternalModel | None, ray: str | None, processes: Processes
) -> None:
    """What cannot be done, said before anything is downloaded."""
    if (ckpt is None) == (external is None):
        raise RobenchError(
            "name what to attack: either `ckpt=FILE` or `model` (`robench list models`), such as `model=FILE.py:FACTORY`"
        )
    if request.names is not None:
        check_suite(request.names)
    if ray is not None and processes.world_size > 1:
        raise RobenchError("`ray` under torchrun: both hand out chunks; use one of them")
    if request.precision == "auto" and (ray is not None or processes.world_size > 1):
        raise RobenchError("`precision=auto`: several processes may not agree; name fp32 or bf16")
    if ray is not None and external is not None and source_of(external.reference) is SOURCES["FILE.pt"]:
        raise RobenchError(
            f"`ray` cannot send the program {external.reference} to its workers; use torchrun, whose processes load it themselves"
        )


def _data_of(
    request: AttackRequest, ckpt: Path | None, dataset: str | None, data_dir: Path | None
) -> tuple[Dataset, Dataset, str | None]:
    """The test split with the labels of the main task, the same with those of the judged head, and what a checkpoint was trained on."""
    trained_on = read_description(ckpt)["dataset"] if ckpt is not None else None
    tested_on = dataset or trained_on
    if tested_on is None:
        raise RobenchError("`model` needs `dataset`: one of `robench list datasets`, or your own folder or .npz file")
    if dataset is None and tested_on not in DATASETS:
        raise RobenchError(f"{ckpt} was trained on the folder {tested_on!r}; say where it lies: `dataset=PATH`")
    whole = load_dataset(tested_on, "test", data_dir)
    # The heads of other people's models have no labels of their own.
    return whole, of_head(whole, MAIN_HEAD if ckpt is None else request.head), trained_on


def _place(stack: ExitStack, processes: Processes, device: str, threads: int | None, ray: str | None) -> Place:
    """Where chunks are computed, for as long as the stack is open."""
    if ray is not None:
        cluster = stack.enter_context(connect(ray, device, threads))
        chosen = stack.enter_context(use_device("cpu", 1))
        return Place(chosen, cluster.device, processes, partial(evaluate_on_ray, cluster=cluster))
    chosen = stack.enter_context(use_device(device_of_rank(device, processes), threads or threads_of_rank(processes)))
    return Place(chosen, chosen.split(":")[0], processes, partial(evaluate_columns, processes=processes))


def subject_of(ckpt: Path | None, model: str | ExternalModel | None, data: Dataset, device: str, head: str) -> Subject:
    """The model that ``--ckpt`` or ``--model`` names, as a classifier of the data.

    Raises:
        RobenchError: see ``classifier_of_checkpoint`` and ``classifier_of_model``.
    """
    if model is None:
        return classifier_of_checkpoint(Path(str(ckpt)), data, device, head)
    return classifier_of_model(ExternalModel(model) if isinstance(model, str) else model, data, device, head)


def warn_of_sanity_check(subject: Subject, data: Dataset, n: int, *, say: bool = True) -> None:
    """Says on stderr, before hours of attacks, what was changed of a model of somebody else's and what is suspicious about it.

    Raises:
        RobenchError: see ``sanity_check``.
    """
    if subject.model is None:
        for warning in (*subject.notes, *sanity_check(subject.classifier, data, n)):
            if say:
                print(f"robench: warning: {warning}", file=sys.stderr)


def command() -> str:
    """The command line of this process, as it is recorded, with the options that came from the environment in front."""
    prefix = f"ROBENCH_{sys.argv[1].upper()}_" if len(sys.argv) > 1 else "ROBENCH_"
    chosen = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(prefix)]
    return shlex.join([*chosen, "robench", *sys.argv[1:]])
