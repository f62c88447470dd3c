"""Model and data meet before any attack: do they fit, and does the model know these images at all?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from robench.data.augment import to_unit
from robench.evaluation.memory import backing_off
from robench.models.classifier import Classifier
from robench.types import Dataset, RobenchError

if TYPE_CHECKING:
    from torch import Tensor

LOOKED_AT = 100  # samples
FEWEST = 8  # samples that can tell a model from a guesser
LUCK = 0.01


def first_look(classifier: Classifier, data: Dataset, n: int) -> str:
    """Classifies up to 100 samples, spread over the first ``n``, and says what is suspicious about the answers, or "".

    Raises:
        RobenchError: the model cannot classify these images, or has other classes than the data; says both.
    """
    index = torch.linspace(0, n - 1, min(n, LOOKED_AT)).long()
    pixels = data.images[index].to(classifier.device)
    images = to_unit(pixels) if pixels.dtype == torch.uint8 else pixels.float()
    try:
        predicted = backing_off(classifier, len(images), lambda: _classes(classifier, images))
    except RobenchError as error:
        raise RobenchError(f"{error} ({_about(data)})") from None
    except Exception as error:  # somebody else's model may raise anything
        raise RobenchError(
            f"the model cannot classify images of shape {tuple(images.shape)}: {type(error).__name__}: {error}"
        ) from error
    hits = int((predicted == data.labels[index]).sum())
    return _suspicion(hits, len(index), len(data.classes))


def _suspicion(hits: int, n: int, n_classes: int) -> str:
    """What to tell the user where a guesser has as many hits more than once in a hundred times."""
    from scipy.stats import binom

    if n < FEWEST or n_classes < 2 or binom.sf(hits - 1, n, 1 / n_classes) <= LUCK:
        return ""
    return (
        f"the model has {hits} of {n} samples right before any attack, no more than a guess among {n_classes} classes would; check its "
        "normalisation (--mean, --std), the order of its classes, and that its weights are the trained ones"
    )


@torch.no_grad()
def _classes(classifier: Classifier, images: Tensor) -> Tensor:
    with classifier.counting():
        return classifier(images).argmax(1).cpu()


def _about(data: Dataset) -> str:
    shown = ", ".join(data.classes[:4]) + (", ..." if len(data.classes) > 4 else "")
    low, high = int(data.labels.min()), int(data.labels.max())
    starts = "; do its labels start at 1?" if low == 1 and high == len(data.classes) - 1 else ""
    return f"{data.name}: {len(data.classes)} classes, {shown}, with labels from {low} to {high}{starts}"
