"""OBJECTIVES: the variants that can be trained. Each is one object, which says all that is particular about it; see docs/adding-a-variant.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Generator, Tensor

from robench.training.losses import nt_xent
from robench.training.recipes import Recipe
from robench.types import Dataset, RobenchError

PROJECTION_WIDTH = 128
OPTIONS = ("lambda_main", "lambda_aux", "temperature")  # settings that mean something for some variants only

Heads = dict[str, dict[str, Any]]  # name to layers, width, classes: what a checkpoint says about its heads
Outputs = Mapping[str, Tensor]  # head to float32 (n_views * N, width), views after one another
Targets = Mapping[str, Tensor]  # head to int64 (n_views * N,)


@dataclass(frozen=True)
class Terms:
    """The weights of a loss: see the paper's eq. 3 and 5, and ``Objective.lambdas`` for where the values come from.

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


def linear(width: int, classes: int | None) -> dict[str, Any]:
    """A head of one layer; ``classes`` of its outputs count, None where it does not classify."""
    return {"layers": "linear", "width": width, "classes": classes}


def mlp(width: int, classes: int | None) -> dict[str, Any]:
    """A head with a hidden layer, as multitask models have it in the authors' code; ``classes`` as in ``linear``."""
    return {"layers": "mlp", "width": width, "classes": classes}


def main_labels(dataset: Dataset) -> dict[str, Tensor]:
    """Targets where only the main head learns from labels of the data set."""
    return {"main": dataset.labels}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A variant of the classifier.

    Attributes:
        heads: ``heads(dataset, recipe) -> name to linear(...) or mlp(...)``, "main" first; raises RobenchError where the data set lacks
            what the variant needs.
        loss: ``loss(outputs, targets, terms) -> named terms``; their sum is minimised.
        lambdas: recipe to (lambda_main, lambda_aux) where the user names none.
        about: one line for ``robench list``.
        title: what a model of it is called in reports.
        targets: ``targets(dataset) -> head to labels``, int64 (len(dataset),); these heads' accuracy is measured on the test split.
        pretext: ``pretext(images, generator) -> (images, head to targets)``: changes a batch, float32 (n_views * N, C, H, W) in [0, 1],
            and makes targets that no data set has; may draw from the generator alone.
        options: those of ``OPTIONS`` that change it; the others are refused.
        n_views: random views per image; a batch holds them after one another, its labels repeated.
        views: augmentation where the user names none.
    """

    heads: Callable[[Dataset, Recipe], Heads]
    loss: Callable[[Outputs, Targets, Terms], dict[str, Tensor]]
    lambdas: Mapping[str, tuple[float, float]]
    about: str
    title: str
    targets: Callable[[Dataset], dict[str, Tensor]] = main_labels
    pretext: Callable[[Tensor, Generator], tuple[Tensor, dict[str, Tensor]]] | None = None
    options: frozenset[str] = frozenset()
    n_views: int = 1
    views: str = "standard"


def _one_head(dataset: Dataset, recipe: Recipe) -> Heads:
    n_classes = len(dataset.classes)
    return {"main": linear(max(n_classes, recipe.main_width or 0), n_classes)}


def _single(outputs: Outputs, targets: Targets, terms: Terms) -> dict[str, Tensor]:
    """Cross-entropy of the main task (eq. 1)."""
    return {"main": F.cross_entropy(outputs["main"], targets["main"])}


def _fine_and_coarse(dataset: Dataset, recipe: Recipe) -> Heads:
    if dataset.coarse_labels is None:
        raise RobenchError(
            f"arch 'supervised' needs a second, coarser label per image and {dataset.name} has none; use cifar100 (20 superclasses) or "
            "digits (3 shapes), or another `arch`"
        )
    n_classes, n_coarse = len(dataset.classes), len(dataset.coarse_classes)
    return {"main": mlp(n_classes, n_classes), "coarse": mlp(n_coarse, n_coarse)}


def _fine_and_coarse_labels(dataset: Dataset) -> dict[str, Tensor]:
    assert dataset.coarse_labels is not None  # its heads refuse a data set without them
    return {"main": dataset.labels, "coarse": dataset.coarse_labels}


def _supervised(outputs: Outputs, targets: Targets, terms: Terms) -> dict[str, Tensor]:
    """Weighted cross-entropies of the fine and the coarse labels (eq. 3)."""
    return {
        "main": terms.lambda_main * F.cross_entropy(outputs["main"], targets["main"]),
        "coarse": terms.lambda_aux * F.cross_entropy(outputs["coarse"], targets["coarse"]),
    }


def _with_projection(dataset: Dataset, recipe: Recipe) -> Heads:
    n_classes = len(dataset.classes)
    return {"main": mlp(n_classes, n_classes), "projection": mlp(PROJECTION_WIDTH, None)}


def _contrastive(outputs: Outputs, targets: Targets, terms: Terms) -> dict[str, Tensor]:
    """NT-Xent between two views, and the main task's cross-entropy of both (eq. 4 and 5)."""
    first, second = outputs["projection"].chunk(2)
    n_views = 2 if terms.sum_views else 1
    return {
        "main": terms.lambda_main * n_views * F.cross_entropy(outputs["main"], targets["main"]),
        "contrastive": terms.lambda_aux * nt_xent(first, second, terms.temperature),
    }


OBJECTIVES: dict[str, Objective] = {
    "single": Objective(
        heads=_one_head,
        loss=_single,
        lambdas={"paper": (1.0, 0.0), "authors": (1.0, 0.0)},
        about="one head: cross-entropy of the class",
        title="single-task",
    ),
    "supervised": Objective(
        heads=_fine_and_coarse,
        targets=_fine_and_coarse_labels,
        loss=_supervised,
        lambdas={"paper": (0.5, 0.5), "authors": (0.5, 0.5)},
        options=frozenset({"lambda_main", "lambda_aux"}),
        about="a second head for the coarse label (needs a data set that has one)",
        title="supervised multitask",
    ),
    "contrastive": Objective(
        heads=_with_projection,
        loss=_contrastive,
        # The authors' contrastive loss reads 0.5 * CE + 0.5 + NT-Xent (a + typed for a *), so its weights are 0.5 and 1; the constant
        # changes no gradient and is left out.
        lambdas={"paper": (0.5, 0.5), "authors": (0.5, 1.0)},
        options=frozenset(OPTIONS),
        n_views=2,
        views="simclr",
        about="a second head for SimCLR's contrastive loss (NT-Xent)",
        title="contrastive multitask",
    ),
}
