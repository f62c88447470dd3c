"""Our own projected gradient steps: any loss, averaged over a random model's draws, estimated without gradients, or in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from robench.attacks.straight_through import StraightThrough
from robench.models.classifier import Classifier
from robench.types import ThreatModel

if TYPE_CHECKING:
    from robench.types import Images, Labels, Logits

LARGEST_MARGIN = 10.0  # at which cross-entropy, 5e-5, is far from the float32 resolution of probabilities near 1

Loss = Callable[["Logits", "Labels", "Logits"], Tensor]  # of logits, labels and the clean image's logits; (N,), to be raised


def cross_entropy(logits: Logits, labels: Labels, clean: Logits) -> Tensor:
    """-log softmax of the true class."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin_loss(logits: Logits, labels: Labels, clean: Logits) -> Tensor:
    """The largest other logit minus the true one (Carlini & Wagner 2017, https://arxiv.org/abs/1608.04644, f6 without kappa)."""
    true = logits.gather(1, labels[:, None]).flatten()
    return logits.scatter(1, labels[:, None], float("-inf")).amax(1) - true


def dlr(logits: Logits, labels: Labels, clean: Logits) -> Tensor:
    """Difference of logits ratio, which no rescaling changes (Croce & Hein 2020, https://arxiv.org/abs/2003.01690, equation 6)."""
    largest = logits.topk(3, dim=1).values
    return margin_loss(logits, labels, clean) / (largest[:, 0] - largest[:, 2] + 1e-12)


def rescaled(logits: Logits, labels: Labels, clean: Logits) -> Tensor:
    """Cross-entropy of logits that are divided until the clean image's margin is 10: it does not underflow, however confident the model
    is, and is cross-entropy itself where that is no more (Carlini & Wagner 2016, https://arxiv.org/abs/1607.04311, divide by a constant)."""
    scale = (-margin_loss(clean, labels, clean) / LARGEST_MARGIN).clamp(min=1)
    return cross_entropy(logits / scale[:, None], labels, clean)


def log_margin(logits: Logits, labels: Labels, clean: Logits) -> Tensor:
    """The margin of log-probabilities, of a model that returns probabilities where logits are expected."""
    return margin_loss(logits.clamp(min=1e-38).log(), labels, clean)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin_loss, "dlr": dlr, "rescaled": rescaled, "log": log_margin}


def descend(
    model: Classifier, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, loss: str, steps: int, step_size: float,
    draws: int = 1, double: bool = False, through: bool = False, pairs: int = 0,
) -> Images:  # fmt: skip
    """The most misclassified iterate of ``steps`` steps that raise a loss, from a random start; a sample that is broken rests.

    On a random model nobody rests, and without an average over draws the last iterate is returned.

    Args:
        loss: a name in ``LOSSES``.
        steps, step_size: as of PGD.
        draws: forward passes that each gradient is averaged over, for a random model (EOT).
        double: in float64.
        through: rounding and detaching pass gradients on (BPDA), see ``StraightThrough``.
        pairs: of opposite random directions that each gradient is estimated from; 0 asks the model for it.

    Source: Madry et al. 2018, https://arxiv.org/abs/1706.06083; EOT and BPDA: Athalye et al. 2018, https://arxiv.org/abs/1802.00420,
    section 4; estimated gradients (SPSA): Uesato et al. 2018, https://arxiv.org/abs/1802.05666, section 3.
    """
    module = model.exact.module if double else model.module  # a rewritten one may compute in fewer bits
    victim = model.twin(StraightThrough(module) if through else module, double=double) if through or double else model
    origin = images.double() if double else images
    x = project(origin + random_start(origin, threat), origin, threat)
    best, lowest = x.clone(), torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)
    left = torch.arange(len(x), device=x.device)  # not broken yet
    random = model.draws > 1  # one draw decides nothing: nobody rests, and without an average the last iterate is as good as any
    with torch.no_grad():
        clean = victim(origin)
    for step in range(steps + 1):
        here, own = x[left], labels[left]
        logits, gradient = _look(victim, here, own, clean[left], LOSSES[loss], draws, pairs, threat, step_size, needed=step < steps)
        score = -margin_loss(logits, own, logits)
        better = score < lowest[left] if not random or draws > 1 else torch.ones_like(score, dtype=torch.bool)
        best[left] = torch.where(better[:, None, None, None], here, best[left])
        lowest[left] = torch.where(better, score, lowest[left])
        robust = ((logits.argmax(1) == own) | random).nonzero().flatten()
        left = left[robust]
        if step == steps or not len(left):
            break
        x[left] = project(here[robust] + step_size * direction(gradient[robust], threat), origin[left], threat)
    return project(best.to(images), images, threat)


def _look(
    victim: Classifier, here: Images, labels: Labels, clean: Logits, loss: Loss, draws: int, pairs: int, threat: ThreatModel,
    step_size: float, *, needed: bool,
) -> tuple[Logits, Tensor]:  # fmt: skip
    """The mean logits over the draws, and the gradient of the mean loss where it is needed."""
    if pairs or not needed:
        with torch.no_grad():
            logits = torch.stack([victim(here) for _ in range(draws)]).mean(0)
            return logits, _estimate(victim, here, labels, clean, loss, pairs, threat, step_size) if needed else torch.zeros_like(
                here
            )
    here, total, gradient = here.detach().requires_grad_(), torch.zeros_like(clean), torch.zeros_like(here)
    for _ in range(draws):
        logits = victim(here)
        gradient += torch.autograd.grad(loss(logits, labels, clean).sum(), here)[0] / draws
        total = total + logits.detach() / draws
    return total, gradient


def _estimate(
    victim: Classifier, here: Images, labels: Labels, clean: Logits, loss: Loss, pairs: int, threat: ThreatModel, step_size: float
) -> Tensor:  # fmt: skip
    """A gradient out of loss differences half a step either way along random signs."""
    size = step_size / 2 if threat.norm == "Linf" else step_size / 2 / here[0].numel() ** 0.5
    gradient = torch.zeros_like(here)
    for _ in range(pairs):
        along = torch.randint(0, 2, here.shape, device=here.device).to(here) * 2 - 1
        ahead, behind = (loss(victim((here + sign * size * along).clamp(0, 1)), labels, clean) for sign in (1, -1))
        gradient += (ahead - behind)[:, None, None, None] * along
    return gradient


def random_start(images: Images, threat: ThreatModel) -> Tensor:
    """A step to somewhere in the ball: uniform in Linf; in L2 along a random direction, uniform in length. The same in every precision."""
    if threat.norm == "Linf":
        return (2 * torch.rand(images.shape, device=images.device) - 1).to(images.dtype) * threat.eps
    along = direction(torch.randn(images.shape, device=images.device), threat)
    return (along * threat.eps * torch.rand(len(images), 1, 1, 1, device=images.device)).to(images.dtype)


def direction(gradient: Tensor, threat: ThreatModel) -> Tensor:
    """The step of length 1 in the threat model's norm that raises the loss most; no step where there is no gradient."""
    if threat.norm == "Linf":
        return gradient.sign()
    return gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-30)[:, None, None, None]


def project(points: Images, images: Images, threat: ThreatModel) -> Images:
    """The nearest points of the ball around the images, and of the box."""
    delta = points - images
    if threat.norm == "Linf":
        delta = delta.clamp(-threat.eps, threat.eps)
    else:
        size = delta.flatten(1).norm(dim=1).clamp(min=1e-30)
        delta = delta * (threat.eps / size).clamp(max=1)[:, None, None, None]
    return (images + delta).clamp(0, 1)
