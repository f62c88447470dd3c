"""The engine's own judgement of an attack's images: box, ball, and a fresh forward pass. It never believes the attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robench.models.classifier import Classifier
from robench.types import TOLERANCE, Outcome, RobenchError, ThreatModel

if TYPE_CHECKING:
    from robench.types import Images, Labels, Logits


@dataclass(frozen=True, eq=False)
class Judgement:
    """What the engine found for each image of a batch.

    Attributes:
        outcomes: values of ``Outcome``, (N,).
        adv_pred: class of the adversarial image, -1 where it is invalid, int64 (N,).
        distance: to the clean image in the threat model's norm, float32 (N,).
        margin: true class's logit minus the largest other, on the adversarial image, float32 (N,).
        complaint: why images are invalid, or "".
    """

    outcomes: list[str]
    adv_pred: Tensor
    distance: Tensor
    margin: Tensor
    complaint: str = ""


@torch.no_grad()
def judge(classifier: Classifier, images: Images, labels: Labels, adv_images: Images, threat: ThreatModel) -> Judgement:
    """Checks shape, finiteness, box and ball, and classifies the images again in float32.

    An image outside the box or the ball, or with a NaN, is INVALID: it says nothing about the model.
    """
    complaint = _shape_complaint(images, adv_images)
    if complaint:
        none = torch.full((len(images),), float("nan"))
        return Judgement([Outcome.INVALID] * len(images), torch.full((len(images),), -1), none, none, complaint)
    adv_images = adv_images.detach().to(images.device, torch.float32)
    distance = threat.distance(images, adv_images)
    finite = adv_images.flatten(1).isfinite().all(1)
    boxed = in_box(adv_images)
    near = threat.contains(images, adv_images)
    valid = finite & boxed & near
    logits = verdict_logits(classifier, adv_images, labels)
    valid &= logits.isfinite().all(1)
    predicted = logits.argmax(1)
    outcomes = [
        Outcome.INVALID if not ok else Outcome.ROBUST if hit else Outcome.BROKEN
        for ok, hit in zip(valid.tolist(), (predicted == labels).tolist(), strict=True)
    ]
    return Judgement(
        outcomes,
        torch.where(valid, predicted, -1).cpu(),
        distance.cpu(),
        margins(logits, labels).cpu(),
        _complaint(finite, boxed, near, valid, float(distance.nan_to_num().max()) if len(distance) else 0.0, threat),
    )


def verdict_logits(classifier: Classifier, images: Images, labels: Labels) -> Logits:
    """The logits that a verdict is read from: the model's own, or, of a random model, the shares of its votes.

    A random model errs on an image when the majority of its draws does: the true class's share counts as the largest from a half on, and
    as the smallest below it.
    """
    if classifier.draws == 1:
        return classifier(images)
    shares = classifier.votes(images)
    true = shares.gather(1, labels[:, None])
    return shares.scatter(1, labels[:, None], torch.where(true >= 0.5, true + 1e-6, true - 1))


def in_box(images: Images) -> Tensor:
    """Which images lie in [0, 1], bool (N,), within ``TOLERANCE``."""
    return ((images >= -TOLERANCE) & (images <= 1 + TOLERANCE)).flatten(1).all(1)


def margins(logits: Logits, labels: Labels) -> Tensor:
    """True class's logit minus the largest other, (N,); negative where misclassified."""
    true = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1, keepdim=True)
    return (true - others).flatten()


def check_images(images: Tensor, labels: Tensor, n_classes: int | None) -> None:
    """The door: what is evaluated must be images in [0, 1] (or uint8) with labels in range.

    Raises:
        RobenchError: wrong shapes, types or ranges.
    """
    if images.ndim != 4 or len(images) != len(labels) or labels.ndim != 1:
        raise RobenchError(
            f"images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}; expected (N, C, H, W) and (N,) with one N"
        )
    if not len(images):
        raise RobenchError("there are no images to evaluate")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise RobenchError(f"images are {images.dtype}; expected float in [0, 1], or uint8")
    if images.is_floating_point() and not (images.isfinite().all() and images.min() >= 0 and images.max() <= 1):
        raise RobenchError(
            f"images range from {float(images.min()):g} to {float(images.max()):g}; expected pixel values in [0, 1]: divide by 255, and put "
            "normalisation inside the model"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise RobenchError(f"labels are {labels.dtype}; expected int64 classes")
    if n_classes is not None and (labels.min() < 0 or labels.max() >= n_classes):
        raise RobenchError(f"labels range from {int(labels.min())} to {int(labels.max())}; the model has {n_classes} classes")


def _shape_complaint(images: Images, adv_images) -> str:
    if not isinstance(adv_images, Tensor):
        return f"the attack returned a {type(adv_images).__name__}, not a tensor of images"
    if adv_images.shape != images.shape:
        return f"the attack returned shape {tuple(adv_images.shape)} for images of shape {tuple(images.shape)}"
    return ""


def _complaint(finite: Tensor, boxed: Tensor, near: Tensor, valid: Tensor, farthest: float, threat: ThreatModel) -> str:
    if bool(valid.all()):
        return ""
    found = [
        f"{int((~finite).sum())} with NaN or infinity" if not finite.all() else "",
        f"{int((finite & ~boxed).sum())} outside [0, 1]" if not boxed[finite].all() else "",
        f"{int((finite & ~near).sum())} outside the ball (up to {farthest:.6g} of {threat})" if not near[finite].all() else "",
        f"{int((finite & boxed & near & ~valid).sum())} with logits that are not finite"
        if (finite & boxed & near & ~valid).any()
        else "",
    ]
    return f"{int((~valid).sum())} of {len(valid)} images: " + ", ".join(part for part in found if part)
