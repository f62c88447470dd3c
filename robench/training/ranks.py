"""Training on several devices: every rank takes its part of each global batch, and the loss is that of the whole one.

Augmentation and noise are drawn for the global batch on every rank, and every head's outputs are gathered before the loss, so that
NT-Xent sees all negatives and, but for BatchNorm, who computes a sample changes nothing.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

# DistributedDataParallel imports this module, whose functions take the process group of that moment as a default argument, so that
# the group and Gloo's threads would outlive it; a thread that holds a tensor while the interpreter ends aborts (pytorch#179291).
import torch.distributed.nn.functional
from torch import Tensor, nn

from robench.processes import Processes
from robench.types import RobenchError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model; without arguments, the only one.

    Attributes:
        rank: of this process, in [0, world_size).
        world_size: processes in all.
    """

    rank: int = 0
    world_size: int = 1

    def replica(self, model: nn.Module, device: str) -> nn.Module:
        """What to call in the model's place, so that gradients are averaged over the ranks.

        On CUDA, BatchNorm then normalises by the global batch; on the CPU by each rank's part of it (torch has no synchronised
        BatchNorm there), see ``average_statistics``.
        """
        if self.world_size == 1:
            return model
        if device.startswith("cuda"):
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        devices = [torch.device(device)] if device.startswith("cuda") else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def average_statistics(self, model: nn.Module) -> None:
        """Gives every rank the mean of all ranks' running statistics, which each has collected on its own parts of the batches."""
        if self.world_size > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.world_size

    def part(self, batch: Tensor, n_views: int) -> Tensor:
        """This rank's rows of a global batch of concatenated views: the same samples of each view.

        Args:
            batch: (n_views * N, ...).
            n_views: random views per sample.
        """
        if self.world_size == 1:
            return batch
        return batch.unflatten(0, (n_views, self.world_size, -1))[:, self.rank].flatten(0, 1)

    def whole(self, output: Tensor, n_views: int) -> Tensor:
        """The global batch of outputs, of which this rank's own rows pass gradients; the inverse of ``part``.

        Every rank then computes the loss of the whole batch, and its gradient is this rank's share of it: the sum over the ranks is
        the gradient in one process.

        Args:
            output: (n_views * N / world_size, width).
            n_views: random views per sample.
        """
        if self.world_size == 1:
            return output
        parts = [torch.empty_like(output) for _ in range(self.world_size)]
        dist.all_gather(parts, output.detach().contiguous())
        parts[self.rank] = output
        return torch.stack([part.unflatten(0, (n_views, -1)) for part in parts], 1).flatten(0, 2)

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank; only plain values and bytes.

        Raises:
            RobenchError: rank 0 has ended.
        """
        if self.world_size == 1:
            return value
        values = [value]
        try:
            dist.broadcast_object_list(values, src=0)
        except RuntimeError:
            raise RobenchError(f"process {self.rank} stops: process 0 has ended, and says why") from None
        return values[0]


@contextmanager
def joined(processes: Processes, device: str) -> Iterator[Ranks]:
    """The ranks that torchrun started, connected: over NCCL on CUDA, else over Gloo.

    Args:
        processes: see ``Processes.here``.
        device: of this process.

    Raises:
        RobenchError: there are several processes, and nobody said where they meet.
    """
    if processes.world_size == 1:
        yield Ranks()
        return
    if "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
        raise RobenchError(
            f"training in {processes.world_size} processes needs a place where they meet: start them with `torchrun --nproc-per-node N -m "
            "robench train ...` (under SLURM: `srun --ntasks-per-node 1 torchrun ...`)"
        )
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(torch.device(device))
    dist.init_process_group("nccl" if cuda else "gloo")
    if processes.rank == 0:
        batch_norm = "over the global batch" if cuda else "by each process's part of the batch, since this is no GPU"
        print(f"robench: training in {processes.world_size} processes; BatchNorm normalises {batch_norm}", file=sys.stderr)
    try:
        yield Ranks(processes.rank, processes.world_size)
    finally:
        dist.destroy_process_group()
        gc.collect()  # a replica is part of a cycle, and holds the group
