"""Models and attacks whose right answers are known."""

import torch
from torch import nn

from robench.evaluation.linear import Linear, linear_case
from robench.types import Attack, Column, ThreatModel

__all__ = ["Linear", "linear_case"]  # whose robustness is known in closed form

LINF = ThreatModel("Linf", 8 / 255)
N, CLASSES = 24, 5  # images, and what ``Centred`` tells apart


class BrightnessClassifier(nn.Module):
    """Two logits that compare the mean pixel with one half: broken by moving every pixel across it."""

    def forward(self, images):
        mean = images.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], 1)


class Centred(nn.Module):
    """Logits are linear in the pixels of images (N, 3, 4, 4), less one half; what goes wrong with a model is a subclass of it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, 48, generator=torch.Generator().manual_seed(1)))

    def forward(self, images):
        return (images - 0.5).flatten(1) @ self.weight.T


class NoGradient(Centred):
    @torch.no_grad()
    def forward(self, images):
        return super().forward(images)


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
    return Column(name, (fake(name, fn, params),), is_cascade=False)


def described(n, columns):
    """What run.json says of a run on ``brightness_data``, beside its spec: see ``RunFolder.describe``."""
    return {
        "n": n,
        "suites": columns,
        "model": {"name": "brightness", "origin": {}},
        "data": {"name": "gray", "split": "test", "n": n, "classes": ["dark", "bright"]},
        "threat": {"norm": "Linf", "eps": 0.1, "eps_text": "0.1"},
        "commands": ["robench attack"],
        "environment": {},
    }
