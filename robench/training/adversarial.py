"""ADVERSARIAL: ways to craft the images of adversarial training, the positive control of a robustness benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Logits = Callable[[Tensor], Tensor]


def n_fgsm(logits: Logits, images: Tensor, labels: Tensor, eps: float, noise: Tensor) -> Tensor:
    """Noise in U(-2 eps, 2 eps), then one signed gradient step of eps; not projected back onto the ball, only into the box.

    Source: de Jorge et al., NeurIPS 2022, "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training".
    """
    noisy = images + 2 * eps * noise
    return (noisy + eps * _gradient(logits, noisy, labels).sign()).clamp_(0, 1)


def pgd(logits: Logits, images: Tensor, labels: Tensor, eps: float, noise: Tensor, steps: int = 10) -> Tensor:
    """Ten signed gradient steps of eps/4 from a random start in the Linf ball, inside the box.

    Source: Madry et al., ICLR 2018, section 4.
    """
    adv_images = (images + eps * noise).clamp_(0, 1)
    for _ in range(steps):
        stepped = adv_images + eps / 4 * _gradient(logits, adv_images, labels).sign()
        adv_images = torch.minimum(torch.maximum(stepped, images - eps), images + eps).clamp_(0, 1)
    return adv_images


def _gradient(logits: Logits, images: Tensor, labels: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits(images), labels), images)
    return gradient


@dataclass(frozen=True)
class AdversarialEntry:
    """``craft(logits, images, labels, eps, noise) -> adv_images`` with noise in [-1, 1], or None for plain training.

    ``passes`` are a step's forward and backward passes, its cost against plain training.
    """

    craft: Callable[..., Tensor] | None
    about: str
    passes: int


ADVERSARIAL: dict[str, AdversarialEntry] = {
    "none": AdversarialEntry(None, "plain training", 1),
    "nfgsm": AdversarialEntry(n_fgsm, "N-FGSM: one noisy step, twice the cost of plain training", 2),
    "pgd": AdversarialEntry(pgd, "PGD-10: eleven times the cost", 11),
}
