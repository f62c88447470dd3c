"""Models and attacks whose right answers are known."""

import torch
from torch import nn

from robench.types import Attack, Suite, ThreatModel

LINF = ThreatModel("Linf", 8 / 255)


class Linear(nn.Module):
    """Logits W x + b of the flattened image."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


def linear_case(eps, norm, n=60, n_classes=10, shape=(3, 6, 6), seed=0):
    """A linear model and images whose exact robustness is known, half of them robust, with a gap around eps.

    Sample i is robust iff eps < min_j (margin_ij / ||w_y - w_j||_q), q = 1 for Linf, 2 for L2 and inf for L1: the images keep eps away
    from the faces of the box. Logits are linear in the distance from mid-gray, so an image scaled by t has t times the radius, and
    each is scaled to a radius of 0.4 or 2.5 times eps.

    Returns:
        (model, images, labels, robust), robust as bool (n,).
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
    return model, images.view(n, *shape), labels, wanted > eps


def radii_of(weight, points, labels, norm):
    """Distance of each point to the nearest decision boundary of ``weight @ point``, for correctly classified points."""
    logits = points @ weight.T
    differences = weight[labels][:, None] - weight[None]
    size = {"Linf": differences.abs().sum(2), "L2": differences.norm(dim=2), "L1": differences.abs().amax(2)}[norm]
    radii = (logits.gather(1, labels[:, None]) - logits) / size
    radii = radii.scatter(1, labels[:, None], float("inf")).amin(1)
    assert (radii > 0).all()
    return radii


class BrightnessClassifier(nn.Module):
    """Two logits that compare the mean pixel with one half: broken by moving every pixel across it."""

    def forward(self, images):
        mean = images.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def brightness_data(offsets):
    """Gray images whose mean is 0.5 plus each offset, all of class 1; those with a negative offset are misclassified."""
    images = torch.stack([torch.full((3, 4, 4), 0.5 + offset) for offset in offsets])
    return images, torch.ones(len(offsets), dtype=torch.int64)


def darken(model, images, labels, threat, seed):
    """Moves every pixel down by eps: breaks a sample of ``brightness_data`` iff its offset is below eps."""
    return (images - threat.eps).clamp(0, 1)


def fake(name, fn, params=None):
    """An attack of ours for the engine's tests."""
    return Attack(name, fn, ("Linf", "L2"), True, params or {}, "tests 1", "tests", name)


def column(name, fn, params=None):
    return Suite(name, (fake(name, fn, params),), cascade=False)
