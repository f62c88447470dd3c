"""Which of a model's outputs holds the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from robench.types import RobenchError

MAIN_HEAD = "main"
IMAGENET = 1000  # classes
IMAGENET_21K = (21843, 21841, 21842, 11821, 11221, 10450)  # of the whole, and of what others kept of it
LOGITS = "logits"


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
    raise RobenchError(f"`head={head}`: the model has no such output; it returned {describe(outputs)}")


def has_logits(outputs: Any) -> bool:
    """Whether these are outputs of Hugging Face's transformers, of which one is called logits."""
    of_transformers = any(kind.__name__ == "ModelOutput" for kind in type(outputs).__mro__)
    return of_transformers and isinstance(getattr(outputs, LOGITS, None), Tensor)


def describe(outputs: Any) -> str:
    """What a model returned, in words: kind, and name, type and shape of every part."""
    if isinstance(outputs, Mapping):
        named = [(str(name), value) for name, value in outputs.items()]
    elif isinstance(outputs, tuple | list):
        named = [(str(place), value) for place, value in enumerate(outputs)]
    elif isinstance(outputs, Tensor) or not _fields(outputs):
        return _kind(outputs)
    else:
        named = list(_fields(outputs).items())
    return f"a {type(outputs).__name__} of {len(named)} ({', '.join(f'{name}: {_kind(value)}' for name, value in named)})"


def _fields(outputs: Any) -> dict[str, Any]:
    """The tensors of an object with attributes."""
    return {name: value for name, value in getattr(outputs, "__dict__", {}).items() if isinstance(value, Tensor)}


def _kind(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def likely(outputs: Any, shape: tuple[int, int] | None) -> str:
    """The name or place of the output that has the shape of the logits, else of the first; without a shape, of the first with two axes."""
    named = (
        list(outputs.items())
        if isinstance(outputs, Mapping)
        else list(enumerate(outputs))
        if isinstance(outputs, tuple | list)
        else list(_fields(outputs).items())
    )
    fits = [name for name, value in named if isinstance(value, Tensor) and (value.shape == shape if shape else value.ndim == 2)]
    return str(next(iter([*fits, *(name for name, _ in named)]), 0))


def remedy(outputs: Any) -> str:
    """What to do about a model that returns no tensor."""
    if outputs is None:
        return "does its forward lack a return?"
    if isinstance(outputs, np.ndarray):
        return "return a tensor, or give a function, which may return arrays"
    if isinstance(outputs, Mapping | tuple | list) or _fields(outputs):
        return f"of several outputs, name one with `head`, such as `head={likely(outputs, None)}`"
    return "return the tensor itself"


def remedy_for_outputs(n_outputs: int, n_classes: int) -> str:
    """What to do about a model with so many outputs on data with so many classes."""
    given = "the model's outputs that stand for the data's classes: a file with the names of all outputs, or numbers"
    if n_outputs in IMAGENET_21K:
        return (
            f"so many outputs are ImageNet-21k's: choose with `classes` {given}; or take weights that were fine-tuned on the data"
        )
    if n_outputs == IMAGENET:
        return (
            "1,000 outputs are ImageNet's as a rule: where the data shows some of its classes (Imagenette, ImageNet-100), `classes=imagenet` picks "
            "their outputs; else name the data that it was trained on with `dataset`"
        )
    if n_outputs == IMAGENET + 1:
        return f"1,001 outputs are ImageNet's behind a background class, as a rule: choose with `classes` {given}"
    if n_outputs > n_classes:
        return f"name the data that it was trained on with `dataset`; or choose with `classes` {given}"
    return "name the data that it was trained on with `dataset`"
