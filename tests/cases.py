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


def linear_case(eps, norm, n=60, n_classes=10, shape=(3, 4, 4), seed=0):
    """A linear model and images whose exact robustness is known, half of them robust, with a gap around eps.

    Sample i is robust iff eps < min_j (margin_ij / ||w_y - w_j||_q), q = 1 for Linf and 2 for L2: the images keep eps away from
    the faces of the box. Each image is moved along its own class's gradient until that radius is 0.4 or 2.5 times eps.

    Returns:
        (model, images, labels, robust), robust as bool (n,).
    """
    generator = torch.Generator().manual_seed(seed)
    dim = shape[0] * shape[1] * shape[2]
    weight = torch.randn(n_classes, dim, generator=generator)
    model = Linear(weight, torch.zeros(n_classes)).requires_grad_(False)
    images, labels, robust = [], [], []
    while len(images) < n:
        label = len(images) % n_classes
        wanted = eps * (2.5 if len(images) % 2 else 0.4)
        image = (0.5 + 0.02 * torch.randn(dim, generator=generator)).clamp(0, 1)
        for _ in range(400):
            radius, other = radius_of(weight, image, label, norm)
            if abs(radius - wanted) < 0.05 * eps:
                break
            direction = weight[label] - weight[other]
            image = image + 0.3 * (wanted - radius) * (direction.sign() if norm == "Linf" else direction / direction.norm())
        else:
            continue
        away = image.min() > 1.01 * eps and image.max() < 1 - 1.01 * eps
        if away:
            images.append(image.view(shape))
            labels.append(label)
            robust.append(radius > eps)
    return model, torch.stack(images), torch.tensor(labels), torch.tensor(robust)


def radius_of(weight, image, label, norm):
    """Distance to the nearest decision boundary, negative where misclassified, and the class behind it."""
    logits = weight @ image
    difference = weight[label] - weight
    size = difference.abs().sum(1) if norm == "Linf" else difference.norm(dim=1)
    radii = (logits[label] - logits) / size
    radii[label] = float("inf")
    return float(radii.min()), int(radii.argmin())


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
