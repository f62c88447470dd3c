"""Chunks as Ray tasks: balanced as they finish, tried again when a worker or a node dies, stored by the driver alone."""

from __future__ import annotations

import logging
import os
import socket
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from robench.code_digest import modules_of
from robench.evaluation.device import usable_cores, use_device
from robench.evaluation.engine import ColumnGroup, Job, Made, Worklist, compute, group_columns, refuse_unclassified
from robench.evaluation.run_folder import Chunk, ChunkVerdicts, RunFolder, split
from robench.models.classifier import Classifier
from robench.progress import progress
from robench.types import Column, RobenchError, StoredImages, ThreatModel, pixels_of

LOCAL = "local"
RETRIES = 10  # of a task whose worker or node died; what an attack raises is a verdict, and not tried again
AHEAD = 4  # tasks handed out per device, so that none waits for the driver


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray.

    Attributes:
        device: of every task, "cpu" or "cuda".
        threads: CPU threads of a task.
        slots: tasks that run at the same time.
    """

    device: str
    threads: int
    slots: int


@contextmanager
def connect(address: str, device: str = "auto", threads: int | None = None) -> Iterator[Cluster]:
    """A cluster to hand tasks to, left again at the end.

    Args:
        address: of a running cluster, as Ray's launcher, Kubernetes or SLURM's script gives it; "auto"; or "local" for one on
            this machine, which listens on the loopback address only.
        device: "auto" takes GPUs where the cluster has any.
        threads: CPU threads of a task, 1 by default.

    Raises:
        RobenchError: Ray is not installed, there is no cluster, or it has no such device.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL:  # else Ray takes this machine's address in the network for "127.0.0.1" (2.60.0, whatever the name says)
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        raise RobenchError("`ray` needs Ray: pip install 'robench[ray]'; torchrun needs nothing more than torch") from None
    threads = threads or 1
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        _knock(address)
        if address == LOCAL:
            ray.init("local", num_cpus=max(usable_cores(), threads), _node_ip_address="127.0.0.1", **quiet)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RobenchError(
            f"`ray={address}`: no cluster answers ({first[:150]}); `ray={LOCAL}` makes one on this machine"
        ) from None
    try:
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        chosen = ("cuda" if gpus else "cpu") if device == "auto" else device.split(":")[0]
        slots = gpus if chosen == "cuda" else cpus // threads
        if slots < 1:
            raise RobenchError(f"`ray={address}`: the cluster has {cpus} CPUs and {gpus} GPUs, too little for one task on {chosen}")
        print(f"robench: Ray runs {slots} tasks at a time, one {_named(chosen, threads)} each", file=sys.stderr)
        yield Cluster(chosen, threads, slots)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself tries for more than a minute and then ends the process (2.60.0)."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _named(device: str, threads: int) -> str:
    return "GPU" if device == "cuda" else f"CPU thread{f' of {threads}' if threads > 1 else ''}"


def evaluate_on_ray(
    classifier: Classifier, images: Tensor | StoredImages, labels: Tensor, columns: list[Column], *, threat: ThreatModel, folder: RunFolder,
    cluster: Cluster, save: bool = False, share: bool = True, graphed: bool = True, show_progress: bool = True,
) -> None:  # fmt: skip
    """As ``evaluate_columns``, on a cluster: what a task returns is stored here, so that no folder is shared.

    Of stored images a worker reads its own chunks where it sees the files; where it does not, the driver sends their pixels.

    Args:
        cluster: see ``connect``.

    Raises:
        RobenchError: the model cannot classify the clean images, the folder cannot be written, or a task died again and again.
    """
    import ray

    _carry_code(classifier, columns)
    job, worklist = Job(classifier, threat, folder.spec.seed, save, graphed), Worklist(folder, save)
    groups = [ColumnGroup(()), *sorted(group_columns(columns, share=share), key=_dearest_first)]
    chunks = split(len(labels), folder.spec.chunk)
    stored = None if isinstance(images, Tensor) else images
    shared = ray.put((job, groups, stored))
    options = {"max_retries": RETRIES, "num_cpus": cluster.threads} | ({"num_gpus": 1} if cluster.device == "cuda" else {})
    task = ray.remote(_task).options(**options)
    shipped = False  # whether a worker has said that it does not see the files
    for wave in (groups[:1], groups[1:]):  # every attack needs the clean chunk
        waiting = [(place, chunk) for place, group in enumerate(groups) if group in wave for chunk in chunks]
        ticks = progress(waiting, ",".join(group.name for group in wave), show_progress, "task")
        next(ticks, None)  # shows the beginning; every further one says that a task is done
        running: dict[Any, Assignment] = {}
        todo = iter(waiting)
        while True:
            for place, chunk in todo:
                finished = worklist.take(groups[place], chunk)
                if finished is None:
                    next(ticks, None)
                    continue
                pixels = pixels_of(images, slice(chunk.start, chunk.stop)) if stored is None or shipped else None
                asked = Assignment(place, pixels, labels[chunk.start : chunk.stop], chunk, finished)
                running[task.remote(shared, asked, cluster)] = asked
                if len(running) >= AHEAD * cluster.slots:
                    break
            if not running:
                break
            (done,), _ = ray.wait(list(running), num_returns=1)
            asked = running.pop(done)
            results = _result(done, asked.chunk)
            if results is None:
                shipped = _told_of_shipping(shipped, images)
                asked = asked._replace(images=pixels_of(images, slice(asked.chunk.start, asked.chunk.stop)))
                running[task.remote(shared, asked, cluster)] = asked
                continue
            for made in results:
                folder.write(made.folder, asked.chunk, made.verdicts, made.images)
            next(ticks, None)
        refuse_unclassified(folder, chunks)


def _carry_code(classifier: Classifier, columns: list[Column]) -> None:
    """Sends the classes of somebody's own Python file with the model, and attacks with theirs: no worker can import them by name."""
    import ray

    installed = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    for name in {type(part).__module__ for part in classifier.modules()} - {"builtins", "__main__"}:
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None) or ""
        if module is not None and not file.startswith(installed) and name.partition(".")[0] != "robench":
            ray.cloudpickle.register_pickle_by_value(module)
    for module in [module for column in columns for stage in column.stages for module in modules_of(stage.fn)]:
        ray.cloudpickle.register_pickle_by_value(module)


def _dearest_first(group: ColumnGroup) -> int:
    return -sum(len(column.stages) for column in group.columns if column.is_cascade)


def _told_of_shipping(already: bool, images: Tensor | StoredImages) -> bool:
    """Says once that pixels travel, which a shared folder would save."""
    if not already and not isinstance(images, Tensor):
        print(
            f"robench: a worker does not see {images.name(0)}, so that pixels are sent to it; a folder that all nodes share is faster",
            file=sys.stderr,
        )
    return True


def _result(reference: Any, chunk: Chunk) -> list[Made] | None:
    """What a task has made, None where it lacks the pixels."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, RobenchError):
            raise cause from None
        raise RobenchError(
            f"the task of chunk {chunk.name} failed on its worker: {type(cause).__name__}: {cause}; do all nodes have the same packages as this one?"
        ) from None
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0]
        raise RobenchError(
            f"the task of chunk {chunk.name} died {RETRIES + 1} times ({first[:150]}); what was finished is kept in the run folder; start the same run again, and it goes on from there"
        ) from None


class Assignment(NamedTuple):
    """What a task is to do: a group's place in the list, the chunk's images as the data set has them, None where the task reads them itself,
    its labels, its place, and what is finished of it."""

    group: int
    images: Tensor | None
    labels: Tensor
    chunk: Chunk
    finished: dict[str, ChunkVerdicts]


def _task(shared: tuple[Job, list[ColumnGroup], StoredImages | None], asked: Assignment, cluster: Cluster) -> list[Made] | None:
    """Runs on a worker; None where it can read no pixels."""
    job, groups, stored = shared
    if asked.images is None and (stored is None or not stored.is_here()):
        return None
    with use_device(cluster.device, cluster.threads) as chosen:
        local = replace(job, classifier=job.classifier.to(chosen))
        group = groups[asked.group]
        images = (
            asked.images
            if stored is None or asked.images is not None
            else pixels_of(stored, slice(asked.chunk.start, asked.chunk.stop))
        )
        assert images is not None
        return list(compute(local, group, images, asked.labels, chunk=asked.chunk, finished=asked.finished))
