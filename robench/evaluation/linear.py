"""A linear model, whose robustness has a closed form, and images on both sides of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from robench.norms import NORMS

if TYPE_CHECKING:
    from robench.types import Images, Labels


class Linear(nn.Module):
    """Logits W x + b of the flattened image."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images: Images) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


class LinearCase(NamedTuple):
    """A linear model, images, float32 (n, C, H, W), labels, int64 (n,), and which of them are robust, bool (n,)."""

    model: Linear
    images: Images
    labels: Labels
    robust: Tensor


def linear_case(
    eps: float, norm: str, n: int = 60, n_classes: int = 10, shape: tuple[int, int, int] = (3, 6, 6), seed: int = 0
) -> LinearCase:
    """A linear model and images whose exact robustness is known, half of them robust, with a gap around eps.

    Sample i is robust iff eps < min_j (margin_ij / ||w_y - w_j||_q), q = 1 for Linf, 2 for L2 and inf for L1: the images keep eps away
    from the faces of the box. Logits are linear in the distance from mid-gray, so an image scaled by t has t times the radius, and
    each is scaled to a radius of 0.4 or 2.5 times eps.
    """
    generator = torch.Generator().manual_seed(seed)
    dim = shape[0] * shape[1] * shape[2]
    weight = torch.randn(n_classes, dim, generator=generator)
    labels = torch.arange(n) % n_classes
    directions = weight[labels] + 0.5 * torch.randn(n, dim, generator=generator)
    wanted = torch.where(torch.arange(n) // n_classes % 2 == 0, 0.4 * eps, 2.5 * eps)
    images = 0.5 + directions * (wanted / radii_of(weight, directions, labels, norm))[:, None]
    assert images.min() > 1.01 * eps and images.max() < 1 - 1.01 * eps
    model = Linear(weight, -0.5 * weight.sum(1)).requires_grad_(False)
    return LinearCase(model, images.view(n, *shape), labels, wanted > eps)


def radii_of(weight: Tensor, points: Tensor, labels: Labels, norm: str) -> Tensor:
    """Distance of each point to the nearest decision boundary of ``weight @ point``, for correctly classified points."""
    logits = points @ weight.T
    differences = weight[labels][:, None] - weight[None]
    radii = (logits.gather(1, labels[:, None]) - logits) / NORMS[norm].dual(differences)
    radii = radii.scatter(1, labels[:, None], float("inf")).amin(1)
    assert (radii > 0).all()
    return radii
