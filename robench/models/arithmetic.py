"""What float32 means on a GPU: exact, or in TF32 for whoever asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from robench.types import RobenchError

AMPERE = 8  # major compute capability


@contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Inside, float32 on CUDA is computed in TF32 with precision "tf32" and exactly with any other; what was set before is put back.

    torch by itself allows TF32 in convolutions, and not in matrix products. Elsewhere than on CUDA nothing is touched.
    """
    if not device.startswith("cuda"):
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def has_tf32(device: str) -> bool:
    """Whether a device of this machine computes in TF32."""
    return device.startswith("cuda") and torch.cuda.get_device_capability(device)[0] >= AMPERE


def refuse_unknown_to(device: str, precision: str) -> None:
    """Whether the device has the precision.

    Raises:
        RobenchError: it has not.
    """
    if precision == "tf32" and not has_tf32(device):
        here = torch.cuda.get_device_name(device) if device.startswith("cuda") else device.upper()
        raise RobenchError(f"`precision=tf32` is of NVIDIA GPUs since Ampere; on this {here} use fp32 or bf16")
