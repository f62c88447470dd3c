"""Which of several processes this one is, as torchrun or SLURM tell it. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from robench.types import RobenchError


@dataclass(frozen=True)
class Processes:
    """This process among those that share a command; without arguments, the only one.

    Attributes:
        rank: of this process, in [0, world_size).
        world_size: processes in all.
        local_rank: of this process on its machine, in [0, local_world_size).
        local_world_size: processes on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def here(cls) -> Processes:
        """What the environment says: torchrun's variables, else those of a SLURM step, else one process.

        Raises:
            RobenchError: a variable is missing, no number, or out of its range.
        """
        if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
            return cls._of("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", os.environ)
        # Only srun sets this one: the shell of salloc or sbatch has the job's SLURM_NTASKS too, and is one process.
        if os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
            return cls()
        counted = os.environ | {"tasks on this node": _tasks_on_this_node(os.environ)}
        return cls._of("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "tasks on this node", counted)

    @classmethod
    def _of(cls, rank: str, world_size: str, local_rank: str, local_world_size: str, environment: Mapping[str, str]) -> Processes:
        names = (rank, world_size, local_rank, local_world_size)
        missing = [name for name in names if name not in environment]
        if missing:
            raise RobenchError(
                f"{', '.join(name for name in names if name in environment)} set but not {', '.join(missing)}: start several processes "
                f"with `torchrun --nproc-per-node N -m robench ...`, or unset {rank} and {world_size}"
            )
        shown = ", ".join(f"{name} {environment[name]!r}" for name in names)
        if not all(re.fullmatch("[0-9]+", environment[name]) for name in names):
            raise RobenchError(f"{shown}: expected four whole numbers, as torchrun sets them")
        ours = cls(*(int(environment[name]) for name in names))
        if not (ours.rank < ours.world_size and ours.local_rank < ours.local_world_size <= ours.world_size):
            raise RobenchError(f"{shown}: expected a rank below the number of processes, on this machine and in all")
        return ours


def _tasks_on_this_node(environment: Mapping[str, str]) -> str:
    """Of ``2(x3),1``, which SLURM writes for 2, 2, 2 and 1 tasks on four nodes, this node's."""
    node, text = environment.get("SLURM_NODEID", "0"), environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    tasks = [part[1] for part in re.finditer(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(part[2] or 1))]
    if not node.isdecimal() or int(node) >= len(tasks):
        raise RobenchError(
            f"SLURM_NODEID {node!r} and SLURM_STEP_TASKS_PER_NODE {text!r} do not say how many tasks this node has; start them with srun"
        )
    return tasks[int(node)]


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
