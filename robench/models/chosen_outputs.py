"""Which of a model's outputs stand for the data's classes: ten of ImageNet's thousand for Imagenette, and the like."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robench.data import did_you_mean
from robench.data.imagenet_classes import names, synsets
from robench.types import Dataset, RobenchError

NUMBERS = re.compile(r"\d+(,\d+)*")
IMAGENET = "imagenet"
SHOWN = 3


class SomeOutputs(nn.Module):
    """Some logits of a module, in the order of the data's classes.

    Args:
        module: returns logits (N, n_outputs).
        columns: the output that stands for each class.
    """

    columns: Tensor

    def __init__(self, module: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images).index_select(1, self.columns)


@dataclass(frozen=True)
class Selection:
    """Outputs of a model that stand for the classes of a data set.

    Attributes:
        asked: as ``--classes`` gives it.
        columns: the output of each class.
        outputs: what all of the model's outputs are called; empty where nobody says.
    """

    asked: str
    columns: tuple[int, ...]
    outputs: tuple[str, ...] = ()

    def whole(self, dataset: Dataset, n_outputs: int | None) -> Dataset:
        """The data set as the model was made for: a class for every output. Its labels are not to be read.

        Args:
            dataset: whose classes were chosen.
            n_outputs: of the model, where it is known.
        """
        known = self.outputs or tuple(map(str, range(n_outputs or max(self.columns) + 1)))
        return replace(dataset, name=f"`classes={self.asked}`", classes=known)


class Data(NamedTuple):
    """The data whose classes are looked up: its name and theirs; and which argument asks for it."""

    name: str
    classes: tuple[str, ...]
    option: str = "classes"


def selection_of(asked: str, data: Data) -> Selection | None:
    """The outputs that ``--classes`` chooses for the classes of a data set; None where it is empty.

    Args:
        asked: "imagenet"; a file with the name of a class a line, in the order of the model's outputs; or outputs in the order of the
            data's classes, such as "0,217,482".
        data: whose classes are looked up.

    Raises:
        RobenchError: it is none of these, or lacks a class of the data.
    """
    if not asked:
        return None
    if NUMBERS.fullmatch(re.sub(r"\s", "", asked)):
        return _numbered(asked, data)
    if asked == IMAGENET:
        return _of_imagenet(asked, data)
    if not os.path.isfile(asked):  # unlike Path.is_file(), False for a text that is too long to be a name
        raise RobenchError(
            f"`{data.option}={asked}`: expected {IMAGENET}, a text file with the name of a class a line in the order of the model's outputs, or "
            "outputs in the order of the data's classes, such as 0,217,482"
        )
    return _looked_up(asked, data, _lines(Path(asked), data))


def _lines(path: Path, data: Data) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise RobenchError(f"`{data.option}={path}` is no text file ({error}); expected the name of a class a line") from None


def _numbered(asked: str, data: Data) -> Selection:
    columns = tuple(int(part) for part in asked.split(","))
    if len(columns) != len(data.classes):
        raise RobenchError(
            f"`{data.option}={asked}` names {len(columns)} outputs, {data.name} has {len(data.classes)} classes ({some(data.classes)}); give one "
            "for each, in this order"
        )
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise RobenchError(f"`{data.option}={asked}` names output {twice[0]} twice; expected another one for each class")
    return Selection(asked, columns)


def _of_imagenet(asked: str, data: Data) -> Selection:
    if set(data.classes) <= set(synsets()):
        return _looked_up(asked, data, synsets())
    plain = {_plain(name): name for name in names()}
    if any(_plain(name) in plain for name in data.classes):
        named = data._replace(classes=tuple(plain.get(_plain(name), name) for name in data.classes))
        return _looked_up(asked, named, names())
    unknown = [name for name in data.classes if name not in synsets()]
    raise RobenchError(
        f"`{data.option}={asked}`: {data.name} has classes that are none of ImageNet's ({some(unknown)}); they must be called by their synsets, such "
        "as n01440764, or as torchvision calls them, such as tench; else give a file or numbers of outputs"
    )


def _looked_up(asked: str, data: Data, outputs: tuple[str, ...]) -> Selection:
    unknown = [name for name in data.classes if name not in outputs]
    if unknown:
        raise RobenchError(
            f"`{data.option}={asked}` has {len(outputs)} names, and {some(unknown)} of {data.name} {'are' if len(unknown) > 1 else 'is'} none of them"
            f"{did_you_mean(unknown[0], outputs)}; the names must be equal"
        )
    times = Counter(outputs)
    twice = [name for name in data.classes if times[name] > 1]
    if twice:
        raise RobenchError(f"`{data.option}={asked}` names {twice[0]} {times[twice[0]]} times; which output is meant? give numbers")
    places = {name: place for place, name in enumerate(outputs)}
    return Selection(asked, tuple(places[name] for name in data.classes), outputs)


def check_columns(columns: Sequence[int], n_outputs: int) -> None:
    """That a model has the outputs that were chosen.

    Raises:
        RobenchError: it has fewer.
    """
    absent = [column for column in columns if column >= n_outputs]
    if absent:
        raise RobenchError(
            f"output {absent[0]} was chosen (with `classes`, or `outputs` in `robench.evaluate`), but the model has {n_outputs}, from 0 to {n_outputs - 1}"
        )


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def some(given: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(given[:SHOWN]) + (", ..." if len(given) > SHOWN else "")
