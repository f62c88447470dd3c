"""Which of a model's outputs holds the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from robench.types import RobenchError

MAIN = "main"


class Output(nn.Module):
    """One output of a module that returns several: of a tuple by its place, of a dictionary or an object by its name."""

    def __init__(self, module: nn.Module, head: str) -> None:
        super().__init__()
        self.module, self.head = module, head

    def forward(self, images: Tensor) -> Tensor:
        return pick(self.module(images), self.head)


def pick(outputs: Any, head: str) -> Any:
    """The output that ``--head`` names.

    Raises:
        RobenchError: there is none of that name or place; says what there is.
    """
    if isinstance(outputs, Mapping) and head in outputs:
        return outputs[head]
    if isinstance(outputs, tuple | list) and head.lstrip("-").isdecimal() and -len(outputs) <= int(head) < len(outputs):
        return outputs[int(head)]
    if not isinstance(outputs, Tensor | Mapping) and head.isidentifier() and hasattr(outputs, head):
        return getattr(outputs, head)
    raise RobenchError(f"--head {head}: the model has no such output; it returned {describe(outputs)}")


def describe(outputs: Any) -> str:
    """What a model returned, in words: kind, and name, type and shape of every part."""
    if isinstance(outputs, Mapping):
        named = [(str(name), value) for name, value in outputs.items()]
    elif isinstance(outputs, tuple | list):
        named = [(str(place), value) for place, value in enumerate(outputs)]
    else:
        return _kind(outputs)
    return f"a {type(outputs).__name__} of {len(named)} ({', '.join(f'{name}: {_kind(value)}' for name, value in named)})"


def _kind(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def likely(outputs: Any, shape: tuple[int, int]) -> str:
    """The name or place of the output that has the shape of the logits, else of the first."""
    named = (
        list(outputs.items())
        if isinstance(outputs, Mapping)
        else list(enumerate(outputs))
        if isinstance(outputs, tuple | list)
        else []
    )
    fits = [name for name, value in named if isinstance(value, Tensor) and value.shape == shape]
    return str(next(iter([*fits, *(name for name, _ in named)]), 0))
