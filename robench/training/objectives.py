"""OBJECTIVES: the three variants of the paper. Each is one loss function and one registry line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from robench.training.losses import nt_xent
from robench.types import Dataset, RobenchError

PROJECTION_WIDTH = 128


@dataclass(frozen=True)
class Terms:
    """The weights of a loss: see the paper's eq. 3 and 5, and ``Recipe`` for where the values come from.

    Attributes:
        lambda_main: weight of the main task's cross-entropy.
        lambda_aux: weight of the second head's loss.
        temperature: of NT-Xent.
        sum_views: cross-entropy is summed over the two views (eq. 5), else averaged over them.
    """

    lambda_main: float
    lambda_aux: float
    temperature: float
    sum_views: bool


def _single(outputs: Mapping[str, Tensor], labels: Tensor, coarse: Tensor | None, terms: Terms) -> dict[str, Tensor]:
    """Cross-entropy of the main task (eq. 1)."""
    return {"main": F.cross_entropy(outputs["main"], labels)}


def _supervised(outputs: Mapping[str, Tensor], labels: Tensor, coarse: Tensor | None, terms: Terms) -> dict[str, Tensor]:
    """Weighted cross-entropies of the fine and the coarse labels (eq. 3)."""
    assert coarse is not None  # make_heads refuses a data set without them
    return {
        "main": terms.lambda_main * F.cross_entropy(outputs["main"], labels),
        "coarse": terms.lambda_aux * F.cross_entropy(outputs["coarse"], coarse),
    }


def _contrastive(outputs: Mapping[str, Tensor], labels: Tensor, coarse: Tensor | None, terms: Terms) -> dict[str, Tensor]:
    """NT-Xent between two views, and the main task's cross-entropy of both (eq. 4 and 5); outputs are of both views."""
    first, second = outputs["projection"].chunk(2)
    n_views = 2 if terms.sum_views else 1
    return {
        "main": terms.lambda_main * n_views * F.cross_entropy(outputs["main"], labels),
        "contrastive": terms.lambda_aux * nt_xent(first, second, terms.temperature),
    }


@dataclass(frozen=True)
class Objective:
    """A variant of the classifier.

    Attributes:
        loss: ``loss(outputs, labels, coarse, terms) -> named terms``; their sum is minimised. Batches of several views come
            concatenated, labels repeated.
        aux: name of the second head, or None.
        n_views: random views per image.
        views: augmentation where the user names none.
        about: one line for ``robench list``.
    """

    loss: Callable[[Mapping[str, Tensor], Tensor, Tensor | None, Terms], dict[str, Tensor]]
    aux: str | None
    n_views: int
    views: str
    about: str


OBJECTIVES: dict[str, Objective] = {
    "single": Objective(_single, None, 1, "standard", "one head: cross-entropy of the class"),
    "supervised": Objective(
        _supervised, "coarse", 1, "standard", "a second head for the coarse label (needs a data set that has one)"
    ),
    "contrastive": Objective(_contrastive, "projection", 2, "simclr", "a second head for SimCLR's contrastive loss (NT-Xent)"),
}


def make_heads(arch: str, dataset: Dataset, *, main_width: int | None) -> dict[str, dict[str, Any]]:
    """What heads a variant has on a data set; multitask heads have a hidden layer, as in the authors' code.

    Args:
        arch: a name in ``OBJECTIVES``.
        dataset: tells the number of classes.
        main_width: outputs of a single-task head where it is wider than the classes (the authors' has 1000).

    Raises:
        RobenchError: the variant needs coarse labels and the data set has none.
    """
    aux, n_classes = OBJECTIVES[arch].aux, len(dataset.classes)
    if aux is None:
        return {"main": {"layers": "linear", "width": max(n_classes, main_width or 0), "classes": n_classes}}
    heads: dict[str, dict[str, Any]] = {"main": {"layers": "mlp", "width": n_classes, "classes": n_classes}}
    if aux == "projection":
        return heads | {aux: {"layers": "mlp", "width": PROJECTION_WIDTH, "classes": None}}
    if dataset.coarse_labels is None:
        raise RobenchError(
            f"arch 'supervised' needs a second, coarser label per image and {dataset.name} has none; use cifar100 (20 superclasses) or "
            "digits (3 shapes), or another --arch"
        )
    n_coarse = len(dataset.coarse_classes)
    return heads | {aux: {"layers": "mlp", "width": n_coarse, "classes": n_coarse}}
