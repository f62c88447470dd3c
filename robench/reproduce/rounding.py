"""A finished model as it is published and evaluated: in half the bytes, and packing well."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from robench.models.backbones import dead_taps
from robench.models.multihead import rebuild
from robench.types import Checkpoint, RobenchError

STORED = "float16, rounded to 8 significant bits"


def compact(checkpoint: Checkpoint) -> Checkpoint:
    """The same model with its matrices rounded (see ``rounded``) and the taps that only ever multiply padding set to zero.

    The function is the one of the rounded weights; BatchNorm keeps its 32 bits. ``versions`` says how they are stored.

    Raises:
        RobenchError: a weight is not finite in float16.
    """
    dead = dead_taps(rebuild(checkpoint).backbone, checkpoint.image_shape)
    weights = dict(checkpoint.weights)
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            taps = dead.get(name.removeprefix("backbone."))
            weights[name] = rounded(tensor if taps is None else tensor.masked_fill(taps, 0.0))
            _refuse_infinite(name, tensor, weights[name])
    return replace(checkpoint, weights=weights, versions={**checkpoint.versions, "stored": STORED})


def _refuse_infinite(name: str, tensor: Tensor, rounded: Tensor) -> None:
    if not rounded.isfinite().all():
        raise RobenchError(
            f"{name} has weights up to {float(tensor.abs().max()):g}, and float16 ends at 65,280; train again with a lower learning rate, "
            "or attack the trained checkpoint as it is"
        )


def rounded(weights: Tensor) -> Tensor:
    """Weights to the nearest float16 with 8 significant bits, ties to even: the last 3 of its 11 are zero, which packs.

    A normal number changes by at most 2^-8 of itself, one below 2^-14 by at most 2^-25 more.
    """
    return weights.to(torch.bfloat16).to(torch.float16)  # bfloat16 has 8 significant bits, and float16 holds them all
