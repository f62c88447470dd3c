"""Which processor computes, how exactly, and with how many threads: chosen once, stated in every result."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from robench.processes import Processes
from robench.processes import usable_cores as usable_cores
from robench.types import RobenchError


@contextmanager
def use_device(device: str = "auto", threads: int | None = None) -> Iterator[str]:
    """Yields the device's name; inside, the number of threads is set, float32 means float32 (TF32 off), and cuDNN is deterministic.

    Args:
        device: "auto" (CUDA, else CPU) or a name that torch knows.
        threads: CPU threads; None for every core this process may use.

    Raises:
        RobenchError: torch does not know the device, or it is not there.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0].partition(". ")[0]
        known = re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", device)
        why = first if known else "torch knows no such device"
        raise RobenchError(f"`device={device}` cannot be used here: {why}; expected auto, cpu, cuda, cuda:1 or mps") from None
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = torch.get_num_threads(), matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(threads or usable_cores())
    matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
    cudnn.deterministic = True
    try:
        yield chosen
    finally:
        torch.set_num_threads(before[0])
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before[1:]


def device_of_rank(device: str, processes: Processes) -> str:
    """The device of one of several processes on a machine: "cuda" and "auto" become the GPU of its local rank.

    Where each process sees only its own GPUs (``srun --gpus-per-task 1``), it takes the first of them.
    """
    several_gpus = processes.local_world_size > 1 and torch.cuda.is_available()
    if not several_gpus or device not in ("auto", "cuda"):
        return device
    return f"cuda:{processes.local_rank % torch.cuda.device_count()}"


def threads_of_rank(processes: Processes) -> int:
    """The share of this machine's cores that one of its processes gets: what SLURM says, where it says so, else equal parts."""
    by_slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if processes.local_world_size > 1 and by_slurm.isdecimal():
        return max(1, min(usable_cores(), int(by_slurm)))
    return max(1, usable_cores() // processes.local_world_size)
