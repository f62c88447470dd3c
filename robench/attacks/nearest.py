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
GROWTH = 2.0  # times as far as it looks that a class counts after each descent that did not reach it
FLOOR = 1e-3  # of a sample's largest gap: a tie, or a class that is always nearly reached, is no nearer than that
LONGEST = 10  # times the length of the first descents towards one class

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
        paid: units that every sample has cost, int64 (N,).
    """

    images: Images
    labels: Labels
    best: Images
    near: Tensor
    tried: Tensor
    paid: Tensor

    @classmethod
    def nothing(cls, images: Images, labels: Labels, n_classes: int) -> Known:
        """Before the first query."""
        near = torch.full((len(images), n_classes), float("inf"), device=images.device)
        return cls(images, labels, images.clone(), near, torch.zeros_like(near), torch.zeros_like(labels))

    @property
    def left(self) -> Tensor:
        """Places of the samples that no query has broken, int64."""
        return (self.near.amin(1) > 0).nonzero().flatten()

    @property
    def spent(self) -> float:
        """What those that are left have cost in the mean, in multiples of what AutoAttack costs a survivor; infinite where none is left."""
        paid = self.paid[self.left]
        return int(paid.sum()) / (AUTOATTACK_UNITS * len(paid)) if len(paid) else float("inf")

    def note(self, rows: Tensor, queries: Images, logits: Logits) -> None:
        """Looks at a query of each of the samples ``rows``; one that is no number says nothing."""
        labels = self.labels[rows, None]
        gaps = logits.gather(1, labels) - logits
        # A tie that argmax decides for the true class has not broken it; it is as near as can be.
        tied = (gaps <= 0) & (logits.argmax(1, keepdim=True) == labels)
        gaps = gaps.masked_fill(tied, torch.finfo(gaps.dtype).tiny).scatter(1, labels, float("inf"))
        gaps = gaps.masked_fill(~logits.isfinite().all(1, keepdim=True), float("inf"))
        known = self.near[rows]
        better = gaps.amin(1) < known.amin(1)
        self.best[rows] = torch.where(better[:, None, None, None], queries, self.best[rows])
        self.near[rows] = torch.minimum(known, gaps)

    def next_pairs(self, share: float, least: int) -> tuple[Tensor, Tensor]:
        """The samples, and a target class for each, that came nearest to breaking: a ``share`` of those left, not fewer than ``least``.

        A gap is measured by the largest of its sample's, so that no sample waits because its logits are large, and doubles with each
        try, so that no class waits long for one that stays near and is never reached.
        """
        left = self.left
        near = self.near[left]
        largest = near.masked_fill(near.isinf(), 0).amax(1, keepdim=True).clamp(min=1e-30)
        # As logarithms: with few classes and a large budget a class is tried hundreds of times.
        distance, target = ((near / largest).clamp(min=FLOOR).log() + math.log(GROWTH) * self.tried[left]).min(1)
        chosen = distance.argsort(stable=True)[: max(least, math.ceil(share * len(left)))].sort().values
        return left[chosen], target[chosen]


def nearest(
    model: Classifier, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, budget: float, first_steps: int = 10,
    margin_steps: int = 20, steps: int = 10, stretch: float = 0.03, share: float = 0.25, least: int = 16,
) -> Images:  # fmt: skip
    """The most misclassified query of every sample, found within a budget; a sample that is broken rests.

    Args:
        budget: what those that are left may have cost in the mean, in multiples of what AutoAttack costs a sample that survives it.
        first_steps: of cross-entropy, which breaks what is easy, falling from twice eps to 0 by a cosine.
        margin_steps: of the probability margin, likewise.
        steps: of each descent towards one class, likewise, as long as no more than ``stretch`` is spent; as many again with each further
            ``stretch``, up to ``LONGEST`` times as many. Where a class is nearly reached, longer descents find what more of them do not.
        share, least: of the samples left, how many are attacked at a time.

    Raises:
        RobenchError: the model is random, so that one query decides nothing.

    Source: the order of loss functions follows PMA (CVPR 2025) and AutoAttack's targets (https://arxiv.org/abs/2003.01690); which sample and
    class come next is our own.
    """
    if model.draws > 1:
        raise RobenchError("the fast attack is for models that answer alike every time; on this one use pgd50-eot and autoattack")
    known = Known.nothing(images, labels, model.n_classes)
    # Nearly all of an undefended model breaks at the first step, which goes across the ball as FGSM's does: it is looked at without a
    # gradient, which only those that are left pay for.
    first, *others = cosine(2 * threat.eps, first_steps)
    rows, x = walk(model, known, known_all(known), labels, cross_entropy, threat, [first])
    walk(model, known, rows, labels[rows], cross_entropy, threat, others, x)
    walk(model, known, known.left, labels[known.left], probability_margin, threat, cosine(2 * threat.eps, margin_steps))
    while (spent := known.spent) < budget:
        rows, targets = known.next_pairs(share, least)
        length = steps * min(1 + int(spent / stretch), LONGEST)
        walk(model, known, rows, targets, towards, threat, cosine(2 * threat.eps, length))
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
        known.paid[rows] += STEP_UNITS if step < len(sizes) else 1
        if model.exact is not model:
            known.paid[rows[_correct(model, x, known.labels[rows], logits)]] += 1
        known.note(rows, x, logits)
        robust = (known.near[rows].amin(1) > 0).nonzero().flatten()
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


def _correct(model: Classifier, x: Images, labels: Labels, logits: Logits) -> Tensor:
    """Asks the model's own passes where rewritten ones err or say nothing, and puts their logits in place; returns the places."""
    doubtful = ((logits.argmax(1) != labels) | ~logits.isfinite().all(1)).nonzero().flatten()
    if len(doubtful):
        logits[doubtful] = model.certain(x[doubtful])
    return doubtful
