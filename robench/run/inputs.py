"""What a command names, loaded: the data, the model, and what is suspicious about the two together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from robench.checkpoint import read_description
from robench.data import DATASETS, load_dataset
from robench.evaluation.sanity_check import sanity_check
from robench.models.multihead import MAIN_HEAD
from robench.models.own_preprocessing import own_preprocessing
from robench.models.subject import Subject, of_head
from robench.types import Dataset, ExternalData, ExternalModel, RobenchError

MANY_CLASSES = 100  # of which people forget that few samples show few


@dataclass(frozen=True, eq=False)
class Inputs:
    """The data that a model is judged on.

    Attributes:
        name: of the data set, or where it lies.
        whole: the test split, with the labels of the main task.
        data: the same, with the labels of the judged head.
        trained_on: the data set of a checkpoint, None for other models.
    """

    name: str
    whole: Dataset
    data: Dataset
    trained_on: str | None


def refuse_unnamed(ckpt: Path | None, model: str | ExternalModel | None, purpose: str) -> None:
    """Refuses a call that names no model, or two.

    Raises:
        RobenchError: so it is.
    """
    if (ckpt is None) == (model is None):
        raise RobenchError(
            f"name what to {purpose}: either `ckpt=FILE` or `model` (`robench list models`), such as `model=FILE.py:FACTORY`"
        )


def load_inputs(
    ckpt: Path | None, dataset: str | ExternalData | None, data_dir: Path | None, head: str, *, model: ExternalModel | None = None,
    tell: bool = False,
) -> Inputs:  # fmt: skip
    """The test split that a checkpoint or a model is judged on.

    Args:
        ckpt: the checkpoint, None for a model of somebody else's, whose heads have no labels of their own.
        dataset: a name or a path, with how pictures are to be read; the checkpoint's own by default.
        data_dir: see ``robench.data.data_folder``.
        head: the task that is judged.
        model: of somebody else's, whose files may say what pictures are to become.
        tell: say on stderr how pictures are read.

    Raises:
        RobenchError: no data set is named, or it is not there, or has no labels for the head.
    """
    trained_on = read_description(ckpt)["dataset"] if ckpt is not None else None
    asked = dataset if isinstance(dataset, ExternalData) else ExternalData(dataset)
    name = asked.reference or trained_on
    if name is None:
        raise RobenchError("`model` needs `dataset`: one of `robench list datasets`, or your own folder or .npz file")
    if asked.reference is None and name not in DATASETS:
        raise RobenchError(f"{ckpt} was trained on the folder {name!r}; say where it lies: `dataset=PATH`")
    says_all = asked.resize is not None and asked.interpolation is not None  # then what the files say is not needed
    own = None if model is None or says_all else own_preprocessing(model)
    whole = load_dataset(replace(asked, reference=name), "test", data_dir, own=own, tell=tell)
    return Inputs(name, whole, of_head(whole, MAIN_HEAD if ckpt is None else head), trained_on)


def remarks_on(subject: Subject, data: Dataset, n: int) -> list[str]:
    """What was changed of a model of somebody else's so that it fits, and what is suspicious about it; nothing of a checkpoint.

    Raises:
        RobenchError: see ``sanity_check``.
    """
    return [] if subject.model is not None else [*subject.notes, *sanity_check(subject.classifier, data, n)]


def few_classes(data: Dataset, n: int) -> list[str]:
    """What to say where the first n samples show few of the classes: a list that is sorted by class, or fewer samples than classes."""
    shown, there = len(data.labels[:n].unique()), len(data.labels.unique())
    if n == len(data) or shown == there:
        return []
    advice = "" if n < there else "; the samples are sorted by class: shuffle them, or take all"
    worth = 2 * shown <= there <= n or MANY_CLASSES <= there > n
    return [f"the first {n:,} samples show {shown:,} of {there:,} classes{advice}"] if worth else []


def warn_on_stderr(warning: str) -> None:
    """A line on stderr, in the words of Python."""
    print(f"robench: warning: {warning}", file=sys.stderr)


def tell_remarks(subject: Subject, data: Dataset, n: int, warn: Callable[[str], None] | None) -> None:
    """The same, told before hours of attacks.

    Args:
        warn: who is told, None where another process speaks; this one checks too.

    Raises:
        RobenchError: see ``sanity_check``.
    """
    for remark in remarks_on(subject, data, n):
        if warn is not None:
            warn(remark)
