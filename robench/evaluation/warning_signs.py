"""What a model shows at first sight that makes an attack's number mean little: no gradient, probabilities, a batch that matters, chance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from robench.models.classifier import Classifier
from robench.models.failures import is_out_of_memory

if TYPE_CHECKING:
    from robench.types import Images, Labels, Logits

GRADIENT_IMAGES = 32  # images whose gradient is looked at
SINGLE_IMAGES = 4  # images that are asked again by themselves
LOGIT_TOLERANCE = 0.01  # of the largest logit: more than last bits
REMEDY = "ask attacks that need none as well, such as fast or square"


def warning_signs(classifier: Classifier, images: Images, labels: Labels, logits: Logits) -> Iterator[str]:
    """Remarks about a model whose randomness is settled, one sentence each.

    Args:
        classifier: the model.
        images, labels: a few.
        logits: what it said of them; NaN where it said nothing.
    """
    known = logits.isfinite().all(1)
    images, labels, logits = images[known], labels[known], logits[known]
    if classifier.draws > 1:
        yield (
            f"the model is random: two passes on the same images differ. It is judged by the majority of {classifier.draws} passes; "
            "labels that it made itself may not be its majority"
        )
    elif len(images) > SINGLE_IMAGES:
        yield from _depends_on_batch(classifier, images, logits)
    if len(images) > 1 and _are_probabilities(logits):
        yield (
            "the model returns probabilities, which robench takes for logits; where they are near 0 and 1 no gradient is left: return what goes "
            "into the softmax"
        )
    correct = (logits.argmax(1) == labels).nonzero().flatten()[:GRADIENT_IMAGES]
    if len(correct):
        yield from _lacks_gradient(classifier, images[correct], labels[correct])


def _depends_on_batch(classifier: Classifier, images: Images, logits: Logits) -> Iterator[str]:
    with torch.no_grad(), classifier.counting():
        apart = (classifier.heard(images[:SINGLE_IMAGES])[0] - logits[:SINGLE_IMAGES]).abs().max()
    if apart > LOGIT_TOLERANCE * logits.abs().max():
        yield (
            "the model says something else of an image when other images are beside it: its verdicts hold for these batches alone (BatchNorm in "
            "training mode, a mean over the batch?)"
        )


def _are_probabilities(logits: Logits) -> bool:
    inside = bool(((logits >= 0) & (logits <= 1)).all()) and not bool(
        ((logits == 0) | (logits == 1)).all()
    )  # hard decisions are none
    return inside and bool(((logits.sum(1) - 1).abs() < 1e-3).all())


def _lacks_gradient(classifier: Classifier, images: Images, labels: Labels) -> Iterator[str]:
    queries = images.clone().requires_grad_()
    try:
        with torch.enable_grad(), classifier.counting():
            (gradient,) = torch.autograd.grad(F.cross_entropy(classifier(queries), labels, reduction="sum"), queries)
    except Exception as error:  # somebody else's model may raise anything
        if not is_out_of_memory(error):
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield f"the model passes no gradient ({type(error).__name__}: {first[:120]}): attacks by gradients will fail; {REMEDY}"
        return
    flat = gradient.flatten(1)
    for rows, what in ((~flat.isfinite().all(1), "is NaN or infinite"), ((flat == 0).all(1), "is exactly zero")):
        if rows.any():
            yield (
                f"the gradient of the loss {what} on {int(rows.sum())} of {len(rows)} correct samples: that attacks by gradients break none of "
                f"these is no robustness; {REMEDY}"
            )
