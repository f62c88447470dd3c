"""The authors' AutoAttack (pyautoattack), one stage at a time.

Their driver is left out, not imitated: a stage called directly with the survivors and the seed that the driver would give it
returns the same images, without the driver's sys.settrace, its module-global counters and its state file that cannot be read back
(pyautoattack 0.2.0).
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING

from robench.types import ThreatModel

if TYPE_CHECKING:
    from torch import nn

    from robench.types import Images, Labels

# It warns on stderr, once a call, of what the audit measures and reports (pyautoattack 0.2.0).
logging.getLogger("auto-attack").addHandler(logging.NullHandler())

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
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


def stage(model: nn.Module, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, name: str, n_targets: int) -> Images:
    """One stage of AutoAttack standard, on all images in one batch.

    Args:
        name: one of ``STAGES``.
        n_targets: target classes of APGD-T and FAB-T: ``most_targets``, or one fewer than there are classes.
    """
    import torch
    from pyautoattack import AutoAttack

    standard = AutoAttack(model, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=images.device)
    standard.apgd_targeted.n_target_classes = standard.fab.n_target_classes = n_targets
    standard.fab.targeted = True
    standard.apgd.loss = "ce"
    attacks = dict(zip(STAGES, (standard.apgd, standard.apgd_targeted, standard.fab, standard.square), strict=True))
    with torch.no_grad():
        return attacks[name].perturb(images.clone(), labels.clone())


def square(model: nn.Module, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, queries: int) -> Images:
    """AutoAttack's Square with another number of queries, on all images in one batch."""
    import torch
    from pyautoattack import AutoAttack

    standard = AutoAttack(model, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=images.device)
    standard.square.n_queries = queries
    with torch.no_grad():
        return standard.square.perturb(images.clone(), labels.clone())
