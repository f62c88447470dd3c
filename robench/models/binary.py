"""What a single output means: a logit, a probability, or the number of a class. Where nothing tells, nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robench.models.batches import BatchRule, own_copy
from robench.types import RobenchError

ROUNDING = 1e-5  # by which a probability may leave [0, 1]
NOISE = 16  # images of noise that the model is asked beside the given ones
PASSES_ON = (
    "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "ToCopy", "Clone", "Alias", "T", "Transpose", "Permute", "Expand",
    "Index",
)  # fmt: skip
PROBABILITY, LINEAR, LOGARITHM = (
    ("Sigmoid", "Softmax"),
    ("Addmm", "Mm", "Mv", "Linear", "Convolution"),
    ("Log", "LogSigmoid", "LogSoftmax"),
)
REMEDY = "say which by two columns: torch.stack([0 * z, z], 1) of logits z, or torch.stack([1 - p, p], 1).log() of probabilities p of class 1"


def values_of(module: nn.Module, inputs: Tensor, rule: BatchRule) -> Tensor:
    """What a model with one output says of some images, one number each.

    Args:
        module: returns (N,) or (N, 1).
        inputs: as the module gets them.
        rule: the batches that it takes.

    Raises:
        RobenchError: all of it is NaN, or numbers of classes.
    """
    values = _outputs(module, inputs, rule).flatten().float()
    values = values[values.isfinite()]
    if not len(values):
        raise RobenchError("the model has one output, which is NaN or infinite on every image; return logits (N, n_classes)")
    if bool((values == values.round()).all()):
        raise RobenchError(
            f"the model has one output, of whole numbers ({_some(values)}): numbers of classes, from an argmax or a rounding? No attack can follow "
            "those: return what they are made of, logits (N, n_classes)"
        )
    return values


def is_probability(values: Tensor, module: nn.Module, inputs: Tensor, rule: BatchRule) -> bool:
    """Whether the one output of a model is a probability of class 1 rather than a logit.

    Args:
        values: see ``values_of``, of as many images as there may be.
        module, inputs, rule: see there; to ask what computes the output.

    Raises:
        RobenchError: it is a logarithm, or may be either; says what it is.
    """
    low, high = float(values.min()), float(values.max())
    seen, last = f"from {low:g} to {high:g} on {len(values)} images", _last_operation(module, inputs[:1], rule)
    if last in LOGARITHM and high <= ROUNDING:
        raise RobenchError(f"the model has one output, {seen}, a logarithm of a probability: give both classes', (N, 2)")
    if low < -ROUNDING or high > 1 + ROUNDING or last in LINEAR:
        return False
    if last in PROBABILITY:
        return True
    raise RobenchError(f"the model has one output, {seen}: small logits, or probabilities? {REMEDY}")


def other_images(images: Tensor) -> Tensor:
    """Images in [0, 1] on which an output may leave the range that it has on a few photographs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(NOISE, *images.shape[1:], generator=generator).to(images)
    return torch.cat([noise, 1 - images, torch.zeros_like(images[:1]), torch.ones_like(images[:1])])


@torch.no_grad()
def _outputs(module: nn.Module, inputs: Tensor, rule: BatchRule) -> Tensor:
    """What the module says of those inputs that it can classify, in batches of its own, else one by one."""
    try:
        parts = inputs.split(rule.most or len(inputs))
        return torch.cat([module(own_copy(part, rule.size(len(part)))).reshape(-1)[: len(part)] for part in parts])
    except Exception:  # it may not take so many, or not one of them
        return torch.cat([*_one_by_one(module, inputs, rule), inputs.new_zeros(0)])


def _one_by_one(module: nn.Module, inputs: Tensor, rule: BatchRule) -> Iterator[Tensor]:
    for one in inputs.split(1):
        try:
            yield module(own_copy(one, rule.size(1))).reshape(-1)[:1]
        except Exception:  # somebody else's model may raise anything
            continue


def _last_operation(module: nn.Module, inputs: Tensor, rule: BatchRule) -> str:
    """The name of the last operation that computed the outputs, by torch's graph of gradients, or ""."""
    try:
        with torch.enable_grad():
            node = module(own_copy(inputs, rule.size(len(inputs))).requires_grad_()).grad_fn
    except Exception:  # it may pass no gradient
        return ""
    while node is not None:
        name = node.name().rpartition("::")[2].partition("Backward")[0]
        if name not in PASSES_ON:
            return name
        node = node.next_functions[0][0] if node.next_functions else None
    return ""


def _some(values: Tensor) -> str:
    distinct = values.unique().tolist()
    return ", ".join(f"{value:g}" for value in distinct[:3]) + (", ..." if len(distinct) > 3 else "")
