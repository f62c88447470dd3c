"""The authors' AutoAttack (pyautoattack), one stage at a time.

Their driver is left out, not imitated: a stage called directly with the survivors and the seed that the driver would give it
returns the same images, without the driver's sys.settrace, its module-global counters and its state file that cannot be read back
(pyautoattack 0.2.0).
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from robench.authoring import attack
from robench.types import ReturnPolicy, ThreatModel

if TYPE_CHECKING:
    from torch import nn

    from robench.types import Images, Labels

# It warns on stderr, once a call, of what the audit measures and reports (pyautoattack 0.2.0).
logging.getLogger("auto-attack").addHandler(logging.NullHandler())

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
NORMS = ("Linf", "L2", "L1")  # that it is defined for
L1_RESTARTS = 5  # of APGD on cross-entropy, which has one start in the other norms


def most_targets(name: str, norm: str) -> int:
    """Target classes that a stage tries where there are as many."""
    return 5 if (name, norm) == ("apgd-t", "L1") else 9


def stage_units(name: str, n_classes: int) -> int:
    """What a stage costs a sample that survives it: a forward pass 1, a backward pass 2, in Linf. All four cost ``AUTOATTACK_UNITS``."""
    n_targets = min(most_targets(name, "Linf"), n_classes - 1)
    return {"apgd-ce": 300, "apgd-t": 300 * n_targets, "fab-t": 408 * n_targets, "square": 5000}[name]


def library() -> str:
    """The installed library with its version."""
    return f"pyautoattack {version('pyautoattack')}"


SOURCE = "Croce & Hein 2020, https://arxiv.org/abs/2003.01690"
STANDARD = {"version": "standard"}
SQUARE = "Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049"


@attack(
    name="apgd-ce", norms=NORMS, returns=ReturnPolicy.ANY, source=SOURCE, library=library, family="autoattack", recorded=STANDARD
)
def apgd_ce(model: nn.Module, images: Images, labels: Labels, threat: ThreatModel, seed: int) -> Images:
    """The first stage of AutoAttack standard: APGD on cross-entropy."""
    standard = _standard(model, images, threat, seed)
    standard.apgd.loss = "ce"
    return _perturbed(standard.apgd, images, labels)


@attack(
    name="apgd-t", norms=NORMS, returns=ReturnPolicy.ANY, source=SOURCE, library=library, family="autoattack", recorded=STANDARD
)
def apgd_t(model: nn.Module, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, n_targets: int = 9) -> Images:
    """The second: APGD on the targeted DLR loss.

    Args:
        n_targets: target classes: ``most_targets``, or one fewer than there are classes.
    """
    standard = _standard(model, images, threat, seed)
    standard.apgd_targeted.n_target_classes = n_targets
    return _perturbed(standard.apgd_targeted, images, labels)


@attack(
    name="fab-t", norms=NORMS, returns=ReturnPolicy.FORWARD, source=SOURCE, library=library, family="autoattack", recorded=STANDARD
)
def fab_t(model: nn.Module, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, n_targets: int = 9) -> Images:
    """The third: targeted FAB, with as many targets as ``apgd_t``."""
    standard = _standard(model, images, threat, seed)
    standard.fab.targeted, standard.fab.n_target_classes = True, n_targets
    return _perturbed(standard.fab, images, labels)


@attack(
    name="square",
    norms=NORMS,
    returns=ReturnPolicy.ANY,
    source=SOURCE,
    gradients=False,
    library=library,
    family="autoattack",
    recorded=STANDARD,
)
def square_stage(model: nn.Module, images: Images, labels: Labels, threat: ThreatModel, seed: int) -> Images:
    """The fourth: Square with 5,000 queries."""
    return _perturbed(_standard(model, images, threat, seed).square, images, labels)


@attack(norms=NORMS, returns=ReturnPolicy.ANY, source=SQUARE, gradients=False, library=library, family="square")
def square(model: nn.Module, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, queries: int) -> Images:
    """AutoAttack's Square with another number of queries, on all images in one batch."""
    standard = _standard(model, images, threat, seed)
    standard.square.n_queries = queries
    return _perturbed(standard.square, images, labels)


@attack(
    name="suspect",
    norms=("Linf", "L2"),
    returns=ReturnPolicy.ANY,
    source=SQUARE,
    gradients=False,
    library=library,
    family="suspect",
)
def suspecting_square(
    model: nn.Module, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, queries: int = 200, samples: int = 16
) -> Images:
    """A short Square on the first few of the images; the others come back as they are."""
    adv_images = images.clone()
    adv_images[:samples] = square(model, images[:samples], labels[:samples], threat, seed, queries=queries)
    return adv_images


def _standard(model: nn.Module, images: Images, threat: ThreatModel, seed: int) -> Any:
    """AutoAttack standard as its authors set it up."""
    from pyautoattack import AutoAttack

    return AutoAttack(model, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=images.device)


def _perturbed(attack: Any, images: Images, labels: Labels) -> Images:
    """What one stage makes of all images in one batch."""
    import torch

    with torch.no_grad():
        return attack.perturb(images.clone(), labels.clone())
