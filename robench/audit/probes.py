"""PROBES: what has to be asked of the model itself, each one function and one line in the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robench.attacks.averaged import SHARES, mean_gradient, pixels, rise
from robench.attacks.descent import direction, project, random_start
from robench.attacks.straight_through import INPUT_STAGE
from robench.evaluation.judge import margins
from robench.models.classifier import Classifier
from robench.models.seeded import seeded
from robench.types import RobenchError, ThreatModel

if TYPE_CHECKING:
    from robench.types import Images, Labels, Logits

PROBE_SAMPLES = 100  # correctly classified samples that a probe looks at
RANDOM = "the model is random: one draw says nothing here"

Measured = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Subjects:
    """What a probe may use: some correctly classified samples, on the classifier's device, and stored images of them."""

    classifier: Classifier
    images: Images
    labels: Labels
    threat: ThreatModel
    external: dict[str, Images]

    @property
    def is_random(self) -> bool:
        return self.classifier.draws > 1

    @property
    def one_draw(self) -> Classifier:
        """The classifier, or, of a random one, a draw of it that stays the same at every call."""
        return self.classifier.twin(_OneDraw(self.classifier.module)) if self.is_random else self.classifier


class _OneDraw(nn.Module):
    """A random module under one seed."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        with seeded(0, inputs.device):
            return self.module(inputs)


Probe = Callable[[Subjects], Measured]


def run_probe(name: str, subjects: Subjects, seed: int) -> Measured:
    """What a probe measured, or why it could not: ``{"failed": reason}``."""
    try:
        with seeded(seed, subjects.images.device):
            return PROBES[name](subjects)
    except RobenchError as error:
        return {"failed": str(error)}
    except Exception as error:  # somebody else's model may raise anything
        if "does not require grad" in str(error):
            return {"failed": "the model passes no gradient"}
        return {"failed": f"{type(error).__name__}: {error}"}


def repeats(subjects: Subjects) -> Measured:
    """Five forward passes on the same images: the largest change of a logit, and the share of predictions that change."""
    logits = torch.stack([_ask(subjects.classifier, subjects.images) for _ in range(5)])
    flips = (logits.argmax(2) != logits[0].argmax(1)).any(0).float().mean()
    return {"differs": float((logits - logits[0]).abs().max()), "flips": float(flips)}


def batch(subjects: Subjects) -> Measured:
    """An image alone against the same image in a batch: the largest change of a logit, over the largest logit."""
    if subjects.is_random:
        return {"failed": RANDOM}
    few = subjects.images[:16]
    together = _ask(subjects.classifier, subjects.images)[: len(few)]
    try:
        alone = torch.cat([_ask(subjects.classifier, image[None]) for image in few])
    except Exception as error:  # such as BatchNorm's in training mode: "Expected more than 1 value per channel"
        return {"differs": 1.0, "details": f"it cannot classify one image alone: {type(error).__name__}: {error}"}
    return {"differs": float((alone - together).abs().max() / together.abs().max().clamp(min=1e-12))}


def state(subjects: Subjects) -> Measured:
    """Buffers that a forward pass changes, and layers that are in training mode after it."""
    module = subjects.classifier.module
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    _ask(subjects.classifier, subjects.images)
    changed = [name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name])]
    training = [name for name, part in module.named_modules() if getattr(part, "training", False)]
    with torch.no_grad():
        for name in changed:
            dict(module.named_buffers())[name].copy_(before[name])
    subjects.classifier.train(False)
    names = ", ".join([*changed, *(f"{name} in training mode" for name in training)][:3])
    return {"changed": len(changed) + len(training), "details": names}


def outputs(subjects: Subjects) -> Measured:
    """The share of the outputs that lie in [0, 1] and sum to 1."""
    values = _ask(subjects.classifier, subjects.images)
    proper = ((values >= 0) & (values <= 1)).all(1) & ((values.sum(1) - 1).abs() < 1e-4)
    return {"probabilities": float(proper.float().mean())}


def gradients(subjects: Subjects) -> Measured:
    """The share of samples whose gradient is zero everywhere, at the image and at a point of the ball; and whose cross-entropy is 0."""
    zero, ce_zero = [], []
    start = project(subjects.images + random_start(subjects.images, subjects.threat), subjects.images, subjects.threat)
    for points in (subjects.images, start):
        points = points.clone().requires_grad_()
        loss = F.cross_entropy(subjects.classifier(points), subjects.labels, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), points)
        zero.append((gradient == 0).flatten(1).all(1))
        ce_zero.append(loss.detach() == 0)
    return {
        "zero": float(torch.stack(zero).any(0).float().mean()),
        "ce zero": float(torch.stack(ce_zero).any(0).float().mean()),
        "n": len(subjects.images),
    }


def input_stage(subjects: Subjects) -> Measured:
    """The share of images whose logits stay the same, to the last bit, under three random steps of 1e-4."""
    classifier = subjects.one_draw
    clean, felt = _ask(classifier, subjects.images), torch.zeros(len(subjects.images), dtype=torch.bool)
    for _ in range(3):
        step = 1e-4 * (2 * torch.rand_like(subjects.images) - 1)
        felt |= (_ask(classifier, (subjects.images + step).clamp(0, 1)) != clean).any(1).cpu()
    declared = [name for name, _ in subjects.classifier.module.named_modules() if name.split(".")[-1] == INPUT_STAGE]
    details = f"the model declares the stage {', '.join(declared)}" if declared else ""
    return {"blind": float((~felt).float().mean()), "n": len(felt), "details": details}


def differences(subjects: Subjects, directions: int = 16) -> Measured:
    """How badly gradients of the margin predict what a tiny step along random signs does, in float64: 1 - correlation.

    A step of eps/500 either way. Where the margin is continuous the mismatch shrinks with the step; where it jumps it grows.
    """
    threat, size = subjects.threat, subjects.threat.eps / 500
    victim = subjects.one_draw.twin(subjects.one_draw.module, double=True)
    points = project(subjects.images + random_start(subjects.images, threat) / 2, subjects.images, threat).double()
    free = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margins(victim(free), subjects.labels).sum(), free)
    promised, measured = [], []
    for _ in range(directions):
        along = direction(torch.randn_like(points), threat)
        ahead, behind = (margins(_ask(victim, points + sign * size * along), subjects.labels) for sign in (1, -1))
        promised.append(2 * size * (gradient * along).flatten(1).sum(1))
        measured.append(ahead - behind)
    first, second = torch.stack(promised), torch.stack(measured)
    scale = second.pow(2).mean(0).sqrt().clamp(min=1e-300)
    first, second = (first / scale).flatten(), (second / scale).flatten()
    product = float(first.norm() * second.norm())
    agreement = float((first * second).sum()) / product if product else 0.0
    return {"mismatch": 1 - agreement}


def secants(subjects: Subjects, draws: int = 4) -> Measured:
    """The share of samples whose gradient leads astray at the attack's scale: along its mean over neighbours the loss rises by more than
    twice as much over half of eps, and by a tenth of the margin at least."""
    classifier, images, labels, threat = subjects.one_draw, subjects.images, subjects.labels, subjects.threat

    def rises(reach: Tensor, draws: int) -> Tensor:
        return rise(classifier, images, labels, images, threat, mean_gradient(classifier, images, labels, reach, draws))

    plain = rises(torch.zeros(len(images), device=images.device), 1).clamp(min=0)
    mean = torch.stack([rises(pixels(share, images, threat), draws) for share in SHARES]).amax(0)
    margin = margins(_ask(classifier, images), labels)
    return {"astray": float(((mean > 2 * plain) & (mean > margin / 10)).float().mean()), "n": len(images)}


def jumps(subjects: Subjects, points: int = 33, halvings: int = 12) -> Measured:
    """The share of samples whose margin jumps along a segment of random signs, in float64.

    The piece of the segment over which the margin changes most is halved again and again: a continuous margin then changes by less and
    less, one that jumps keeps more than a quarter of the change.
    """
    victim, labels = subjects.one_draw.twin(subjects.one_draw.module, double=True), subjects.labels
    start = subjects.images.double()
    along = (
        project(start + subjects.threat.eps * direction(torch.randn_like(start), subjects.threat), start, subjects.threat) - start
    )

    def at(share: Tensor) -> Tensor:
        return margins(_ask(victim, start + share[:, None, None, None] * along), labels)

    grid = torch.linspace(0, 1, points, dtype=start.dtype, device=start.device)
    values = torch.stack([at(share.expand(len(start))) for share in grid])
    widest = (values[1:] - values[:-1]).abs().argmax(0)
    rows = torch.arange(len(start), device=start.device)
    low, high = grid[widest], grid[widest + 1]
    first, last = values[widest, rows], values[widest + 1, rows]
    whole = (last - first).abs()
    for _ in range(halvings):
        middle = (low + high) / 2
        value = at(middle)
        left = (value - first).abs() >= (last - value).abs()
        low, first = torch.where(left, low, middle), torch.where(left, first, value)
        high, last = torch.where(left, middle, high), torch.where(left, value, last)
    jumped = ((last - first).abs() > whole / 4) & (whole > 0)
    return {"share": float(jumped.float().mean()), "n": len(jumped)}


def neighbourhood(subjects: Subjects, draws: int = 20) -> Measured:
    """The mean relative change of the margin, capped at 1, over random points within half of eps."""
    classifier = subjects.one_draw
    near = ThreatModel(subjects.threat.norm, subjects.threat.eps / 2)
    clean = margins(_ask(classifier, subjects.images), subjects.labels)
    changes = []
    for _ in range(draws):
        points = project(subjects.images + random_start(subjects.images, near), subjects.images, near)
        moved = margins(_ask(classifier, points), subjects.labels)
        changes.append(((moved - clean).abs() / clean.abs().clamp(min=1e-12)).clamp(max=1))
    return {"change": float(torch.stack(changes).mean())}


def trajectory(subjects: Subjects, steps: int = 50, last: int = 10) -> Measured:
    """How much the best margin of those that survive PGD still falls over the last steps, over the whole range that it went through."""
    classifier = subjects.one_draw
    threat, points = subjects.threat, subjects.images + random_start(subjects.images, subjects.threat)
    points, curve = project(points, subjects.images, threat), []
    for _ in range(steps):
        free = points.clone().requires_grad_()
        logits = classifier(free)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, subjects.labels, reduction="sum"), free)
        curve.append(margins(logits.detach(), subjects.labels))
        points = project(points + threat.eps / 4 * direction(gradient, threat), subjects.images, threat)
    margin = torch.stack(curve)
    best = margin.cummin(0).values
    left = best[-1] > 0
    if not left.any():
        return {"still falling": 0.0, "details": f"none of {len(left)} survive"}
    span = (margin.amax(0) - margin.amin(0)).clamp(min=1e-12)
    fall = ((best[-1 - last] - best[-1]) / span)[left].mean()
    return {"still falling": float(fall), "details": f"{int(left.sum())} of {len(left)} survive"}


def sign_agreement(subjects: Subjects) -> Measured:
    """The share of moved pixels whose sign is that of the model's own gradient, for stored images and for one step of its own."""
    if not subjects.external:
        return {"failed": "no stored images were given (`robench audit --adv`)"}
    free = subjects.images.clone().requires_grad_()
    loss = F.cross_entropy(subjects.classifier(free), subjects.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, free)
    adv_images = project(subjects.images, subjects.images, subjects.threat)
    for _ in range(7):
        free = adv_images.clone().requires_grad_()
        loss = F.cross_entropy(subjects.classifier(free), subjects.labels, reduction="sum")
        (step,) = torch.autograd.grad(loss, free)
        adv_images = project(
            adv_images + subjects.threat.eps / 4 * direction(step, subjects.threat), subjects.images, subjects.threat
        )
    deltas = {name: images - subjects.images for name, images in subjects.external.items()} | {"own": adv_images - subjects.images}
    return {name: agreement(delta, gradient) for name, delta in deltas.items()}


def agreement(delta: Tensor, gradient: Tensor) -> float:
    """Share of the pixels that were moved, and have a gradient, in which both have the same sign; NaN where there are none."""
    counted = (delta != 0) & (gradient != 0)
    return float(((delta > 0) == (gradient > 0))[counted].double().mean()) if bool(counted.any()) else float(np.nan)


def _ask(classifier: Classifier, images: Images) -> Logits:
    with torch.no_grad():
        return classifier(images)


PROBES: dict[str, Probe] = {
    "repeats": repeats,
    "state": state,
    "batch": batch,
    "outputs": outputs,
    "gradients": gradients,
    "input stage": input_stage,
    "differences": differences,
    "secants": secants,
    "jumps": jumps,
    "neighbourhood": neighbourhood,
    "trajectory": trajectory,
    "sign-agreement": sign_agreement,
}
