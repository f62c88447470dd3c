"""Steps along gradients that are averaged over a neighbourhood of each point: where a ripple turns the gradient about, its mean does not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robench.attacks.descent import direction, margin_loss, project
from robench.models.classifier import Classifier
from robench.types import ThreatModel

if TYPE_CHECKING:
    from robench.types import Images, Labels

SHARES = (0.125, 0.25, 0.5)  # of eps, how far neighbours lie: for 8/255, one to four levels of an 8-bit image
KEPT = 0.6  # of the direction so far that every step keeps: its noise averages out, too
CHOSEN_EVERY = 10  # steps after which the neighbourhood is chosen again


def averaged(
    model: Classifier, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, steps: int, draws: int
) -> Images:  # fmt: skip
    """The most misclassified iterate of ``steps`` steps that raise the margin loss, from the image itself; a sample that is broken rests.

    Each sample's neighbourhood is the one of ``SHARES`` along whose mean gradient the loss really rises most, at half of eps: a secant.

    Args:
        steps: of sizes that fall from eps to 0 by half a cosine.
        draws: uniform neighbours that each gradient is averaged over.

    Source: Athalye et al. 2018, https://arxiv.org/abs/1802.00420, section 4.2 (an expectation, here over neighbours instead of over what a
    model draws); shattered gradients: ibid., section 3.1.
    """
    x, best, lowest = images.clone(), images.clone(), torch.full((len(images),), float("inf"), device=images.device)
    reach, along = torch.zeros(len(images), device=images.device), torch.zeros_like(images)
    left = torch.arange(len(images), device=images.device)
    for step in range(steps + 1):
        with torch.no_grad():
            logits = model(x[left])
        score = -margin_loss(logits, labels[left], logits)
        better = (score < lowest[left]) | (model.draws > 1)
        best[left] = torch.where(better[:, None, None, None], x[left], best[left])
        lowest[left] = torch.where(better, score, lowest[left])
        left = left[(logits.argmax(1) == labels[left]) | (model.draws > 1)]
        if step == steps or not len(left):
            break
        here, own = x[left], labels[left]
        if step % CHOSEN_EVERY == 0:
            reach[left] = choose_reach(model, here, own, images[left], threat, draws)
        gradient = mean_gradient(model, here, own, reach[left], draws)
        along[left] = KEPT * along[left] + unit(gradient)
        size = threat.eps * 0.5 * (1 + math.cos(math.pi * step / steps))
        x[left] = project(here + size * direction(along[left], threat), images[left], threat)
    return project(best, images, threat)


def choose_reach(model: Classifier, here: Images, labels: Labels, images: Images, threat: ThreatModel, draws: int) -> Tensor:
    """How far each sample's neighbours are to lie, (N,)."""
    rises = torch.stack([
        rise(model, here, labels, images, threat, mean_gradient(model, here, labels, pixels(share, here, threat), draws))
        for share in SHARES
    ])  # fmt: skip
    reaches = torch.stack([pixels(share, here, threat) for share in SHARES])
    return reaches.gather(0, rises.nan_to_num(float("-inf")).argmax(0)[None])[0]


def pixels(share: float, here: Images, threat: ThreatModel) -> Tensor:
    """A share of eps as the largest change of a single pixel, (N,); in L2 that of a step which all pixels have alike."""
    each = threat.eps if threat.norm == "Linf" else threat.eps * (3 / here[0].numel()) ** 0.5
    return torch.full((len(here),), share * each, device=here.device)


def mean_gradient(model: Classifier, here: Images, labels: Labels, reach: Tensor, draws: int) -> Tensor:
    """The gradient of the margin loss, averaged over uniform neighbours up to ``reach`` (N,) away in every pixel."""
    total = torch.zeros_like(here)
    for _ in range(draws):
        noise = reach[:, None, None, None] * (2 * torch.rand_like(here) - 1)
        with torch.enable_grad():
            free = (here + noise).clamp(0, 1).requires_grad_()
            logits = model(free)
            total += torch.autograd.grad(margin_loss(logits, labels, logits).sum(), free)[0].nan_to_num(0.0) / draws
    return total


@torch.no_grad()
def rise(model: Classifier, here: Images, labels: Labels, images: Images, threat: ThreatModel, gradient: Tensor) -> Tensor:
    """How much the margin loss really rises along a gradient over half of eps, (N,)."""
    there = project(here + threat.eps / 2 * direction(gradient, threat), images, threat)
    before, after = model(here), model(there)
    return margin_loss(after, labels, after) - margin_loss(before, labels, before)


def unit(gradient: Tensor) -> Tensor:
    """Gradients of mean size 1, so that steps add up whatever the loss's scale is."""
    return gradient / gradient.flatten(1).abs().mean(1).clamp(min=1e-30)[:, None, None, None]
