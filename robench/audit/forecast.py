"""How long an audit may take, and how long an attack will: from a timed pass of the model at hand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from robench.adapters import autoattack
from robench.audit.panel import LADDER
from robench.audit.surrogate import BATCH, SMALL_BACKBONE_BELOW, STEPS, n_learned
from robench.data.augment import in_unit
from robench.data.chosen import chosen_samples
from robench.models.classifier import Classifier
from robench.models.seeded import seeded
from robench.types import Attack, Dataset

if TYPE_CHECKING:
    from robench.types import Images

STEP = 3.0  # units of a gradient step
BASE = {True: (90.0, 200), False: (600.0, 1000)}  # seconds for so many samples; True: of the quick audit
REFERENCE_STEP = 1.5e-3  # seconds an image that a gradient step takes a ResNet-18 on two cores
LARGEST_FACTOR = 4.0  # times that a slower model gets
FIRST_IMAGES, TIMED_IMAGES = 4, 32
TIMING = 2.0  # seconds that timing may take, after the first images, which warm up
LEAST_SAMPLES = 10
SMALL_SHARE = 0.05  # of a ResNet-18's passes, what those of a small backbone take
TOO_LONG = 2.0  # times the whole time that the panel may take at most, by its upper bound, before fewer samples are taken


def step_seconds(classifier: Classifier, images: Images, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds an image that a forward and a backward pass take; where there is no gradient, three times those of the forward pass.

    Args:
        images: float32 in [0, 1], on the classifier's device; a few are asked, and then more, if that was quick.
    """
    first = _timed(classifier, images[:FIRST_IMAGES], clock)
    many = min(max(int(TIMING / max(first, 1e-9)), FIRST_IMAGES), TIMED_IMAGES)
    return min(first, _timed(classifier, images[:many], clock))


def _timed(classifier: Classifier, images: Images, clock: Callable[[], float]) -> float:
    started = clock()
    factor = 1.0
    with classifier.counting(), classifier.watched_by(None), seeded(0, images.device):
        try:
            with torch.enable_grad():
                free = images.clone().requires_grad_()
                torch.autograd.grad(classifier(free).sum(), free)
        except Exception:  # somebody else's model may raise anything
            started, factor = clock(), STEP
            classifier.heard(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
    return factor * (clock() - started) / len(images)


def allowed_seconds(minutes: float | None, step: float, n: int, *, quick: bool) -> float:
    """The time of an audit: as given, else that of a ResNet-18, more for a slower model and more samples, up to ``LARGEST_FACTOR`` times.

    Args:
        minutes: as the user gave them, or None.
        step: see ``step_seconds``.
        n: samples.
        quick: see ``AuditRequest``.
    """
    if minutes is not None:
        return 60 * minutes
    seconds, samples = BASE[quick]
    return seconds * min(max(step * n / (REFERENCE_STEP * samples), 1.0), LARGEST_FACTOR)


def units_of(attack: Attack, n_classes: int) -> float:
    """What an attack costs a sample that survives it at most: a forward pass 1, a backward pass 2."""
    known = {each.name: float(each.cost) for each in LADDER}
    if attack.name in known:
        return known[attack.name]
    if attack.external_images is not None:
        return 0.0
    if attack.name in autoattack.STAGES:
        return float(autoattack.stage_units(attack.name, n_classes))
    if attack.name == "noise":
        return 50.0
    identity = attack.identity
    draws = 20 if attack.name.endswith("-eot") else 4 if attack.name.endswith("-float64") else 1
    return STEP * max(identity.steps or 1, 1) * max(identity.restarts or 1, 1) * draws


def rests(attack: Attack) -> bool:
    """Whether samples of an attack rest once they are broken: those of our own steps do, torchattacks' go on."""
    return attack.family == "pgd" and not attack.prefix_of


def units_of_name(name: str) -> float:
    """The same of a stronger attack, see ``LADDER``."""
    return float(next(each.cost for each in LADDER if each.name == name))


def distillation_seconds(learn_from: Dataset, pace: float) -> float:
    """What a surrogate takes to learn: the model's answers, and the surrogate's own steps.

    Args:
        learn_from: the images.
        pace: seconds a unit of the model.
    """
    small = len(learn_from) < SMALL_BACKBONE_BELOW
    own = STEPS * BATCH * REFERENCE_STEP * (SMALL_SHARE if small else 1.0)
    return n_learned(learn_from) * pace + own


def fitting_samples(seconds: float, needs: float, n: int) -> int:
    """How many of n samples are looked at so that what needs so many seconds comes to an end: all, or n halved as often as it takes."""
    if math.isinf(seconds):
        return n
    while n > LEAST_SAMPLES and needs > TOO_LONG * seconds:
        n, needs = max(LEAST_SAMPLES, n // 2), needs / 2
    return n


def random_order(n: int, seed: int) -> torch.Tensor:
    """The fixed random order in which samples are taken where not all can be, int64 (n,)."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def random_part(data: Dataset, n: int, part: int, seed: int) -> Dataset:
    """So many of a split's first n samples, in the fixed random order."""
    return chosen_samples(data, random_order(n, seed)[:part])


def images_to_time(data: Dataset, n: int, device: torch.device) -> Images:
    """Of the first n images as many as ``step_seconds`` may ask about, as the model takes them."""
    return in_unit(data.pixels(slice(0, min(n, TIMED_IMAGES))).to(device))
