"""The engine's own judgement of an attack's images: box, ball, and a fresh forward pass. It never believes the attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robench.models.classifier import Classifier
from robench.models.failures import Answers, narrowed
from robench.types import TOLERANCE, Outcome, RobenchError, ThreatModel

if TYPE_CHECKING:
    from robench.types import Images, Labels, Logits

CHECKED = 2**28  # pixel values that are looked at together
NOT_FINITE = "its logits are not finite"


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

    outcomes: list[Outcome]
    adv_pred: Tensor
    distance: Tensor
    margin: Tensor
    complaint: str = ""


@torch.no_grad()
def judge(classifier: Classifier, images: Images, labels: Labels, adv_images: Images, threat: ThreatModel) -> Judgement:
    """Checks shape, finiteness, box and ball, and classifies the images again in float32.

    An image outside the box or the ball, or with a NaN, is INVALID: it says nothing about the model. So is one of which the model says no
    class, see ``classes_of``; one on which it raises is an ERROR. None of them is ever robust or broken.
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
    inside = finite & boxed & near
    logits, raised = answers(classifier, adv_images, labels)
    raised = {
        place: said for place, said in raised.items() if inside[place]
    }  # of the others it does not matter what the model does
    predicted = torch.where(inside, classes_of(logits), -1)
    valid = predicted >= 0
    outcomes = [
        Outcome.ERROR if place in raised else Outcome.INVALID if not ok else Outcome.ROBUST if hit else Outcome.BROKEN
        for place, (ok, hit) in enumerate(zip(valid.tolist(), (predicted == labels).tolist(), strict=True))
    ]
    valid[list(raised)] = True  # they are named by what the model raised
    farthest = float(distance.nan_to_num().max()) if len(distance) else 0.0
    complaint = _complaint(threat, finite=finite, boxed=boxed, near=near, valid=valid, farthest=farthest)
    return Judgement(
        outcomes,
        predicted.cpu(),
        distance.cpu(),
        margins(logits, labels).cpu(),
        "; ".join(part for part in (complaint, describe_raised(raised, len(images))) if part),
    )


def answers(classifier: Classifier, images: Images, labels: Labels) -> Answers:
    """``verdict_logits``, whatever the model raises: a row of NaN for every image that it cannot classify.

    Whatever is left when images fail is asked again, see ``narrowed``: none fails for what is beside it in a batch.

    Raises:
        MemoryError, torch.OutOfMemoryError, RuntimeError: memory ran out, or the device is lost.
    """
    blank = torch.full((1, classifier.n_classes), float("nan"), device=images.device)
    return narrowed(
        lambda part: verdict_logits(classifier, images[part], labels[part]),
        len(images),
        blank,
        largest_pass=classifier.largest_pass,
    )


def classes_of(logits: Logits) -> Tensor:
    """The class that each row says, int64 (N,); -1 for none: NaN, +inf, or -inf for every class, which a classifier gives as NaN."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


def refuse_if_all_failed(images: Images, logits: Logits, raised: dict[int, str]) -> None:
    """Refuses a model that classified none of some images.

    Raises:
        RobenchError: with what it raised, or what its logits are.
    """
    if (classes_of(logits) >= 0).any():
        return
    message = next(iter(raised.values()), NOT_FINITE).removeprefix("RobenchError: ")
    raise RobenchError(
        message
        if "the model returned" in message
        else f"the model cannot classify images of shape {tuple(images.shape)}: {message}"
    )


def describe_raised(raised: dict[int, str], n: int) -> str:
    """What ``answers`` met, in one line, or ""."""
    if not raised:
        return ""
    return f"the model raised on {len(raised)} of {n} images: {next(iter(raised.values()))}"


def verdict_logits(classifier: Classifier, images: Images, labels: Labels) -> Logits:
    """The logits that a verdict is read from: the model's own, or, of a random model, the shares of its votes.

    A random model errs on an image when the majority of its draws does: the true class's share counts as the largest from a half on, and
    as the smallest below it. A draw that says no class is neither right nor wrong: where it is such draws that decide on which side of a
    half the share lies, nothing is said of the image, and its row is NaN.
    """
    if classifier.draws == 1:
        return classifier(images)
    shares = classifier.votes(images)
    true = shares.gather(1, labels[:, None])
    silent = 1 - shares.sum(1, keepdim=True)
    open_ = (true < 0.5) & (true + silent > 0.5 - 1e-4)
    return shares.scatter(1, labels[:, None], torch.where(true >= 0.5, true + 1e-6, true - 1)).masked_fill(open_, float("nan"))


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
            f"images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}; expected (N, C, H, W) and (N,), a label for every image"
        )
    if not len(images):
        raise RobenchError("there are no images to evaluate")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise RobenchError(f"images are {images.dtype}; expected float in [0, 1], or uint8")
    block = max(1, CHECKED // max(images[0].numel(), 1))
    for start in range(0, len(images), block):
        _refuse_pixels(images[start : start + block], start)
    if labels.is_floating_point() or labels.is_complex():
        raise RobenchError(f"labels are {labels.dtype}; expected int64 classes")
    if n_classes is not None and (labels.min() < 0 or labels.max() >= n_classes):
        low, high = int(labels.min()), int(labels.max())
        from_one = "; they start at 1: subtract 1" if low == 1 and high == n_classes else ""
        raise RobenchError(f"labels range from {low} to {high}; the model has {n_classes} classes, 0 to {n_classes - 1}{from_one}")


def _refuse_pixels(images: Images, start: int) -> None:
    """Refuses images of which the first is image ``start`` of all."""
    if not images.is_floating_point():
        return
    odd = ~images.isfinite()
    if odd.any():
        touched = odd.flatten(1).any(1).nonzero().flatten().tolist()
        pixels, of = int(odd.sum()), len(touched)
        raise RobenchError(
            f"images hold infinity or NaN in {pixels} pixel{'s' * (pixels > 1)} of {of} image{'s' * (of > 1)}, the first is image {start + touched[0]}; "
            "leave those images out, or mend them"
        )
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        remedy = (
            "undo the normalisation, and give it with `mean` and `std`, or put it inside the model"
            if low < 0
            else "divide by 255"
            if high > 2
            else "clip or scale them"
        )
        raise RobenchError(f"images range from {low:g} to {high:g}; expected pixel values in [0, 1]: {remedy}")


def _shape_complaint(images: Images, adv_images: Any) -> str:
    if not isinstance(adv_images, Tensor):
        return f"the attack returned a {type(adv_images).__name__}, not a tensor of images"
    if adv_images.shape != images.shape:
        return f"the attack returned shape {tuple(adv_images.shape)} for images of shape {tuple(images.shape)}"
    return ""


def _complaint(threat: ThreatModel, *, finite: Tensor, boxed: Tensor, near: Tensor, valid: Tensor, farthest: float) -> str:
    if bool(valid.all()):
        return ""
    parts = [
        f"{int((~finite).sum())} with NaN or infinity" if not finite.all() else "",
        f"{int((finite & ~boxed).sum())} outside [0, 1]" if not boxed[finite].all() else "",
        f"{int((finite & ~near).sum())} outside the ball (up to {farthest:.6g} of {threat})" if not near[finite].all() else "",
        f"{int((finite & boxed & near & ~valid).sum())} with logits that are not finite"
        if (finite & boxed & near & ~valid).any()
        else "",
    ]
    return f"{int((~valid).sum())} of {len(valid)} images: " + ", ".join(part for part in parts if part)
