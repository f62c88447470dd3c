"""Model and data meet before any attack: do they fit, and does the model know these images at all?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from robench.data.augment import in_unit
from robench.evaluation.judge import classes_of, refuse_if_all_failed
from robench.evaluation.memory import retry_in_smaller_passes
from robench.evaluation.warning_signs import warning_signs
from robench.models.classifier import MASKED, Classifier, normalises, undone
from robench.types import Dataset, RobenchError, StoredImages, pixels_of

CHECKED_SAMPLES = 100  # samples
RANDOMNESS_SAMPLES = 32  # of them, to see whether a model is random
LEAST_SAMPLES = 8  # samples that can tell a model from a guesser
SIGNIFICANCE = 0.01
COLLAPSED = 0.01  # of the least margin: logits that differ less from image to image come near no other class
CLEARLY_RIGHT = 0.6  # of the samples: a model that has more right is fed as it should be, and no other way is tried


@dataclass(frozen=True)
class OtherWay:
    """Another way to feed a model.

    Attributes:
        name: what the model would expect.
        remedy: what to do if so.
        change: images in [0, 1] to what such a model expects.
    """

    name: str
    remedy: str
    change: Callable[[Tensor], Tensor]


def _normalised(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> OtherWay:
    def change(images: Tensor) -> Tensor:
        shift, scale = (images.new_tensor(each)[None, :, None, None] for each in (mean, std))
        return (images - shift) / scale

    given = (",".join(f"{value:g}" for value in each) for each in (mean, std))
    return OtherWay(name, "give `mean=({})` `std=({})`".format(*given), change)


OTHER_WAYS = {
    1: (
        OtherWay("pixels of 0 to 255", "multiply by 255 inside the model", lambda images: images * 255),
        _normalised("pixels in [-1, 1]", (0.5,), (0.5,)),
        OtherWay("black and white exchanged", "invert the images", lambda images: 1 - images),
    ),
    3: (
        OtherWay("pixels of 0 to 255", "multiply by 255 inside the model", lambda images: images * 255),
        _normalised("pixels in [-1, 1]", (0.5,) * 3, (0.5,) * 3),
        _normalised("ImageNet's normalisation", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        _normalised("CIFAR-10's normalisation", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        OtherWay("channels in the order BGR", "flip them inside the model", lambda images: images.flip(1)),
    ),
}


def _given_twice(classifier: Classifier) -> tuple[OtherWay, ...]:
    """Pixels that reach the model as they are, where a normalisation is put in front of it."""
    if not normalises(classifier):
        return ()
    remedy = (
        "the normalisation is given twice, or to a model that needs none; leave `mean` and `std` out (where the model's own files give them: `mean=0` "
        "`std=1`)"
    )
    return (OtherWay("pixels in [0, 1] as they are", remedy, partial(undone, classifier)),)


def sanity_check(classifier: Classifier, data: Dataset, n: int) -> tuple[str, ...]:
    """Classifies up to 100 samples, spread over the first ``n``, and says what is suspicious about the answers, a sentence each.

    Raises:
        RobenchError: the model cannot classify these images, or has other classes than the data; says both.
    """
    index = _spread(n)
    images, labels = _unit(data.pixels(index), classifier), data.labels[index].to(classifier.device)
    try:
        logits = _answered(classifier, images)
    except RobenchError as error:
        raise RobenchError(f"{error} ({_about(data)})") from None
    settle_randomness(classifier, images)
    return tuple(
        warning
        for warning in (_guessing(classifier, images, labels, logits), *warning_signs(classifier, images, labels, logits))
        if warning
    )


def settle_randomness(classifier: Classifier, images: Tensor | StoredImages, n: int | None = None) -> None:
    """Finds out whether the model is random, in as small passes as its memory needs, on the first of the images; where it can classify none
    of those, on others that are spread over all.

    Args:
        classifier: the model.
        images: see ``Dataset``.
        n: the first of them that count, all by default.

    Raises:
        RobenchError: it can classify none of those either.
    """
    n = len(images) if n is None else n
    try:
        _settle(classifier, _unit(pixels_of(images, slice(0, min(n, RANDOMNESS_SAMPLES))), classifier))
    except RobenchError:
        if n <= RANDOMNESS_SAMPLES:
            raise
        _settle(classifier, _unit(pixels_of(images, _spread(n)), classifier))


def _settle(classifier: Classifier, images: Tensor) -> None:
    fine = images[classes_of(_answered(classifier, images)) >= 0]
    retry_in_smaller_passes(classifier, len(fine), lambda: classifier.settle_draws(fine))


def _spread(n: int) -> Tensor:
    """Places of up to 100 of ``n`` samples."""
    return torch.linspace(0, n - 1, min(n, CHECKED_SAMPLES)).long()


def _unit(pixels: Tensor, classifier: Classifier) -> Tensor:
    pixels = pixels.to(classifier.device)
    return in_unit(pixels)


def _guessing(classifier: Classifier, images: Tensor, labels: Tensor, logits: Tensor) -> str:
    """Whether the model is no better than a guess, or far better on images or labels that are read in another way."""
    predicted, n, n_classes = classes_of(logits), len(images), classifier.n_classes
    hits = int((predicted == labels).sum())
    guesses = _could_be_luck(hits, n, n_classes)
    if n < LEAST_SAMPLES or not (guesses or hits < CLEARLY_RIGHT * n):
        return ""
    better = _better(classifier, images, labels, predicted)
    if better:
        return f"the model has {hits} of {n} samples right before any attack, but {better}"
    if not guesses:
        return ""
    about = f"the model has {hits} of {n} samples right before any attack, no more than a guess among {n_classes} classes would; "
    if _collapsed(logits, labels):
        return f"{about}its logits are nearly the same for every image: {_why_collapsed(classifier, images)}"
    return about + (
        "check its normalisation (`mean`, `std`), the order of its classes, its BatchNorm statistics, and that its weights are the trained ones"
    )


def _collapsed(logits: Tensor, labels: Tensor) -> bool:
    """Whether images of several classes are all said to be of one, with logits that differ from image to image by next to nothing, held
    against the margin by which that class leads. Classes that are ruled out do not count."""
    known = logits.isfinite().all(1)
    logits, labels = logits[known], labels[known]
    logits = logits[:, (logits > MASKED / 2).all(0)]
    if len(logits) < LEAST_SAMPLES or logits.shape[1] < 2 or len(labels.unique()) < 2 or len(logits.argmax(1).unique()) > 1:
        return False
    centred = logits.double() - logits.double().mean(1, keepdim=True)
    first, second = centred.topk(2, 1).values.T
    return bool((centred - centred.mean(0)).abs().max() <= COLLAPSED * (first - second).min())


def _why_collapsed(classifier: Classifier, images: Tensor) -> str:
    """The likely reason: pixels that are too small for it, or a signal that dies on its way."""
    try:
        larger = _answered(classifier, images * 255)
    except RobenchError:
        larger = images.new_zeros(len(images), 1)
    if len(larger.argmax(1).unique()) > 1:
        return "it tells them apart where pixels are 255 times as large; are they divided by 255 twice, or was it trained on pixels of 0 to 255?"
    return (
        "are its weights the trained ones, and do its BatchNorm statistics belong to them? An untrained last layer, statistics that were never taken, "
        "or ReLUs that are all off end so"
    )


def _could_be_luck(hits: int, n: int, n_classes: int) -> bool:
    """Whether a guesser has as many hits more than once in a hundred times."""
    from scipy.stats import binom

    return n_classes > 1 and bool(binom.sf(hits - 1, n, 1 / n_classes) > SIGNIFICANCE)


def _better(classifier: Classifier, images: Tensor, labels: Tensor, predicted: Tensor) -> str:
    """Another reading of labels or pixels by which far more samples are right, with what to do, or ""."""
    right = predicted == labels
    tried = [
        (predicted == labels - 1, "with the labels less 1: they start at 1; subtract 1"),
        (predicted == labels + 1, "with the labels plus 1: the model's first class is another one, such as a background; add 1"),
    ]
    for way in (*OTHER_WAYS.get(images.shape[1], ()), *_given_twice(classifier)):
        try:
            other = classes_of(_answered(classifier, way.change(images)))
            tried.append((other == labels, f"when it is fed {way.name}: {way.remedy}"))
        except RobenchError:
            continue
    hits, how = max(((each, how) for each, how in tried), key=lambda pair: int(pair[0].sum()))
    return f"{int(hits.sum())} {how}" if _is_better(hits, right, len(tried)) else ""


def _is_better(hits: Tensor, right: Tensor, tried: int) -> bool:
    """McNemar's exact test, one-sided, for the best of several ways."""
    from scipy.stats import binom

    gained, lost = int((hits & ~right).sum()), int((right & ~hits).sum())
    return gained > lost and bool(binom.sf(gained - 1, gained + lost, 0.5) * tried <= SIGNIFICANCE)


def _answered(classifier: Classifier, images: Tensor) -> Tensor:
    """The logits of one pass, NaN where there are none.

    Raises:
        RobenchError: the model can classify none of the images.
    """
    with torch.no_grad(), classifier.counting():
        logits, raised = retry_in_smaller_passes(classifier, len(images), lambda: classifier.heard(images))
    refuse_if_all_failed(images, logits, raised)
    return logits


def _about(data: Dataset) -> str:
    shown = ", ".join(data.classes[:4]) + (", ..." if len(data.classes) > 4 else "")
    low, high = int(data.labels.min()), int(data.labels.max())
    starts = "; do its labels start at 1?" if low == 1 and high == len(data.classes) - 1 else ""
    return f"{data.name}: {len(data.classes)} classes, {shown}, with labels from {low} to {high}{starts}"
