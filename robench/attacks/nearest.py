"""Our fast attack: two short descents on everybody, then one target class at a time, always where a query came nearest to success."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robench.attacks.descent import cross_entropy, direction, project, random_start
from robench.models.classifier import Classifier
from robench.types import AUTOATTACK_UNITS, RobenchError, ThreatModel

if TYPE_CHECKING:
    from robench.types import Images, Labels, Logits

STEP_UNITS = 3

Loss = Callable[["Logits", "Labels", Tensor], Tensor]  # of logits, labels and target classes; (N,), to be raised


def probability_margin(logits: Logits, labels: Labels, targets: Tensor) -> Tensor:
    """The largest other probability minus the true one (PMA, CVPR 2025): nearly flat where a sample is far from breaking."""
    shares = logits.softmax(1)
    true = shares.gather(1, labels[:, None]).flatten()
    return shares.scatter(1, labels[:, None], float("-inf")).amax(1) - true


def towards(logits: Logits, labels: Labels, targets: Tensor) -> Tensor:
    """The target's logit minus the true one."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).flatten()


@dataclass(eq=False)
class Known:
    """What the queries of a call have shown.

    Attributes:
        images, labels: what is attacked.
        best: of every sample, the query of least margin.
        near: least difference between the true class's logit and each other's that any query had, (N, n_classes); infinite for the true one.
        tried: descents towards each class, (N, n_classes).
        spent: units.
    """

    images: Images
    labels: Labels
    best: Images
    near: Tensor
    tried: Tensor
    spent: int = 0

    @property
    def left(self) -> Tensor:
        """Places of the samples that no query has broken, int64."""
        return (self.near.amin(1) > 0).nonzero().flatten()

    def note(self, rows: Tensor, queries: Images, logits: Logits) -> None:
        """Looks at a query of each of the samples ``rows``; one that is no number says nothing."""
        labels = self.labels[rows, None]
        gaps = logits.gather(1, labels) - logits
        # A tie that argmax decides for the true class has not broken it; it is as near as can be.
        tied = (gaps <= 0) & (logits.argmax(1, keepdim=True) == labels)
        gaps = gaps.masked_fill(tied, torch.finfo(gaps.dtype).tiny).scatter(1, labels, float("inf"))
        gaps = gaps.masked_fill(~logits.isfinite().all(1, keepdim=True), float("inf"))
        better = gaps.amin(1) < self.near[rows].amin(1)
        self.best[rows[better]] = queries[better]
        self.near[rows] = torch.minimum(self.near[rows], gaps)

    def next_pairs(self, share: float, least: int) -> tuple[Tensor, Tensor]:
        """The samples, and a target class for each, that came nearest to breaking: a ``share`` of those left, not fewer than ``least``.

        A class counts as so many times farther away as it was tried before.
        """
        left = self.left
        distance, target = (self.near[left] * (1 + self.tried[left])).min(1)
        chosen = distance.argsort(stable=True)[: max(least, math.ceil(share * len(left)))]
        return left[chosen], target[chosen]


def nearest(
    model: Classifier, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, budget: float, first_steps: int = 10,
    margin_steps: int = 20, steps: int = 10, share: float = 0.25, least: int = 16,
) -> Images:  # fmt: skip
    """The most misclassified query of every sample, found within a budget; a sample that is broken rests.

    Args:
        budget: in multiples of what AutoAttack costs a sample that survives it.
        first_steps: of cross-entropy, which breaks what is easy.
        margin_steps: of the probability margin, its steps falling from twice eps to 0 by a cosine.
        steps: of each descent towards one class, likewise.
        share, least: of the samples left, how many are attacked at a time.

    Raises:
        RobenchError: the model is random, so that one query decides nothing.

    Source: the order of loss functions follows PMA (CVPR 2025) and AutoAttack's targets (https://arxiv.org/abs/2003.01690); which sample and
    class come next is our own.
    """
    if model.draws > 1:
        raise RobenchError("the fast attack is for models that answer alike every time; on this one use pgd50-eot and autoattack")
    n = len(images)
    known = Known(images, labels, images.clone(), torch.full((n, model.n_classes), float("inf"), device=images.device),
                  torch.zeros(n, model.n_classes, device=images.device))  # fmt: skip
    # Most of an undefended model breaks at the first step: it is looked at without a gradient, which only those that are left pay for.
    rows, x = walk(model, known, known_all(known), labels, cross_entropy, threat, [threat.eps / 4])
    walk(model, known, rows, labels[rows], cross_entropy, threat, [threat.eps / 4] * (first_steps - 1), x)
    walk(model, known, known.left, labels[known.left], probability_margin, threat, cosine(2 * threat.eps, margin_steps))
    while len(known.left) and known.spent < budget * AUTOATTACK_UNITS * len(known.left):
        rows, targets = known.next_pairs(share, least)
        walk(model, known, rows, targets, towards, threat, cosine(2 * threat.eps, steps))
        known.tried[rows, targets] += 1
    return project(known.best, images, threat)


def known_all(known: Known) -> Tensor:
    """Places of all samples."""
    return torch.arange(len(known.images), device=known.images.device)


def cosine(first: float, steps: int) -> list[float]:
    """Step sizes that fall from ``first`` to nearly 0 by half a cosine."""
    return [first * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]


def walk(
    model: Classifier, known: Known, rows: Tensor, targets: Tensor, loss: Loss, threat: ThreatModel, sizes: list[float],
    start: Images | None = None,
) -> tuple[Tensor, Images]:  # fmt: skip
    """One descent of the samples ``rows`` from ``start``, by default somewhere in the ball; whoever breaks leaves it.

    Returns:
        The samples that did not break, and where they are.
    """
    origin = known.images[rows]
    x = project(origin + random_start(origin, threat), origin, threat) if start is None else start
    for step in range(len(sizes) + 1 if len(rows) else 0):
        logits, gradient = _look(model, x, known.labels[rows], targets, loss, needed=step < len(sizes))
        known.spent += len(rows) * (STEP_UNITS if step < len(sizes) else 1)
        if model.exact is not model:
            known.spent += _correct(model, x, known.labels[rows], logits)
        known.note(rows, x, logits)
        robust = known.near[rows].amin(1) > 0
        rows, targets, x = rows[robust], targets[robust], x[robust]
        if step == len(sizes) or not len(rows):
            break
        x = project(x + sizes[step] * direction(gradient[robust], threat), known.images[rows], threat)
    return rows, x


def _look(model: Classifier, x: Images, labels: Labels, targets: Tensor, loss: Loss, *, needed: bool) -> tuple[Logits, Tensor]:
    """Logits, and the gradient of the loss where it is needed."""
    if not needed:
        with torch.no_grad():
            return model(x), x
    x = x.detach().requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(loss(logits, labels, targets).sum(), x)
    return logits.detach(), gradient.nan_to_num(0.0)


def _correct(model: Classifier, x: Images, labels: Labels, logits: Logits) -> int:
    """Asks the model's own passes about what rewritten ones call broken, and puts their logits in place; returns how many it asked about."""
    doubtful = (logits.argmax(1) != labels).nonzero().flatten()
    if len(doubtful):
        logits[doubtful] = model.certain(x[doubtful])
    return len(doubtful)
