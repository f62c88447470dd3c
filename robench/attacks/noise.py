"""Noise instead of an attack: what it breaks, a gradient ought to have found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from robench.attacks.descent import direction, margin_loss, project, random_start
from robench.models.classifier import Classifier
from robench.types import ThreatModel

if TYPE_CHECKING:
    from robench.types import Images, Labels


def noise(model: Classifier, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, draws: int) -> Images:
    """The worst of so many uniform draws from the ball and as many from its corners (in L2: its surface).

    Source: Carlini et al. 2019, https://arxiv.org/abs/1902.06705, section 5 (random noise as a sanity check).
    """
    best, lowest = images.clone(), torch.full((len(images),), float("inf"), device=images.device)
    with torch.no_grad():
        for draw in range(2 * draws):
            far = direction(torch.randn_like(images), threat) * threat.eps
            points = project(images + (random_start(images, threat) if draw % 2 else far), images, threat)
            logits = model(points)
            score = -margin_loss(logits, labels, logits)
            better = score < lowest
            best[better], lowest[better] = points[better], score[better]
    return best
