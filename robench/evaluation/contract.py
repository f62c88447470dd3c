"""What every attack has to keep: robench's own, and yours. Each claim is one line that says what was seen."""

from __future__ import annotations

import copy
import random
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robench.evaluation.judge import in_box, judge
from robench.evaluation.linear import linear_case
from robench.models.classifier import Classifier
from robench.models.seeded import seeded
from robench.types import Attack, Outcome, ThreatModel, parse_norm

if TYPE_CHECKING:
    from robench.types import Images, Labels

SIZES = (1, 3, 8)
N_CLASSES = 10

MakeAttack = Callable[[ThreatModel], Attack]  # its parameters may follow from the threat model


@dataclass(frozen=True)
class Claim:
    """One thing that an attack has to keep.

    Attributes:
        about: what, with the norm.
        holds: whether it does.
        seen: what was seen.
    """

    about: str
    holds: bool
    seen: str


class AttackRaised(Exception):
    """What an attack raised while it was checked, in a sentence."""


def check_contract(make: MakeAttack, norms: tuple[str, ...], device: str = "cpu") -> Iterator[Claim]:
    """Every claim in every norm, one after the other; an attack that raises breaks the claim that asked it."""
    for norm in norms:
        geometry = parse_norm(norm)
        wide, narrow, nothing = (ThreatModel(norm, eps) for eps in (geometry.wide_eps, geometry.narrow_eps, 0.0))
        for size in SIZES:
            yield from _tried(partial(call_claims, make(wide), wide, size, device), f"{norm}, batch of {size}")
        for about, check in (
            ("same seed, same bytes", partial(same_bytes, make(wide), wide, device)),
            ("nothing to attack", partial(nothing_to_attack, make(wide), wide, device)),
            ("eps 0", partial(clean_at_zero, make(nothing), nothing)),
            ("closed form", partial(closed_form, make(narrow), narrow)),
        ):
            yield from _tried(check, f"{norm}, {about}")


def _tried(check: Callable[[], Any], about: str) -> list[Claim]:
    """The claims that a check makes, alone or with what else it found."""
    try:
        made = check()
        return [each for each in (made if isinstance(made, list | tuple) else [made]) if isinstance(each, Claim)]
    except AttackRaised as raised:
        return [Claim(about, False, str(raised))]


def run_attack(attack: Attack, classifier: Classifier, images: Images, labels: Labels, threat: ThreatModel, seed: int = 0) -> Any:
    """What an attack returns, run as the engine runs it: every global random generator seeded, and put back afterwards.

    Raises:
        AttackRaised: it raised.
    """
    return _called(attack, classifier, images, labels, threat, seed=seed).adv_images


class Called(NamedTuple):
    """What an attack returned, and whether it left gradients switched off or another default dtype."""

    adv_images: Any
    switched: bool


def _called(attack: Attack, classifier: Classifier, images: Images, labels: Labels, threat: ThreatModel, *, seed: int) -> Called:
    """Calls an attack; what it switched is undone."""
    dtype = torch.get_default_dtype()
    try:
        with seeded(seed, images.device), torch.enable_grad():
            adv_images = attack.fn(classifier, images, labels, threat, seed)
            return Called(adv_images, not torch.is_grad_enabled() or torch.get_default_dtype() != dtype)
    except (Exception, SystemExit) as error:  # somebody else's code may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise AttackRaised(f"raised {type(error).__name__}: {error} ({place.name}, line {place.lineno})") from error
    finally:
        torch.set_default_dtype(dtype)


def small_network() -> nn.Module:
    """An untrained network of 10 classes on 8x8 images, with BatchNorm, the same every time."""
    with seeded(1, torch.device("cpu")):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, N_CLASSES),
        )


class SmallCase(NamedTuple):
    """A classifier, and images, float32 (N, 3, 8, 8) in [0, 1], that it classifies as labelled, int64 (N,)."""

    classifier: Classifier
    images: Images
    labels: Labels


def small_case(size: int, device: str = "cpu") -> SmallCase:
    """The small network, and so many images."""
    classifier = Classifier(small_network().to(device), N_CLASSES).to(device)
    images = torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(2)).to(device)
    return SmallCase(classifier, images, classifier(images).argmax(1))


def call_claims(attack: Attack, threat: ThreatModel, size: int, device: str = "cpu") -> list[Claim]:
    """What one call has to return, and to leave alone.

    Raises:
        AttackRaised: it raised.
    """
    classifier, images, labels = small_case(size, device)
    given = images.clone(), labels.clone(), copy.deepcopy(classifier.state_dict())
    before = _global_state()
    adv_images, switched = _called(attack, classifier, images, labels, threat, seed=3)
    after = _global_state()
    training = [name for name, part in classifier.named_modules() if part.training]
    changed = [name for name, value in classifier.state_dict().items() if not torch.equal(value, given[2][name])]
    where = f"{threat.norm}, batch of {size}"
    claims = _returned(adv_images, images, threat, where)
    untouched = {
        "images": not torch.equal(images, given[0]),
        "labels": not torch.equal(labels, given[1]),
        f"weights ({', '.join(changed[:2])})": bool(changed),
        f"modes ({', '.join(training[:2])})": bool(training),
        "gradient mode or default dtype": switched,
        "global random generators": before != after,
    }
    touched = [name for name, wrong in untouched.items() if wrong]
    said = (
        f"changed: {', '.join(touched)}" if touched else "images, labels, weights, modes and global generators are what they were"
    )
    return [*claims, Claim(f"{where}: leaves alone what it is lent", not touched, said)]


def _returned(adv_images: Any, images: Images, threat: ThreatModel, where: str) -> list[Claim]:
    """Shape, box and ball of what an attack returned; only the first where it is no batch of images."""
    shaped = f"{where}: shape, dtype and device"
    if not isinstance(adv_images, Tensor):
        return [Claim(shaped, False, f"returned a {type(adv_images).__name__}, expected a tensor {tuple(images.shape)}")]
    same = (adv_images.shape, adv_images.dtype, adv_images.device) == (images.shape, torch.float32, images.device)
    first = Claim(
        shaped,
        same,
        f"{tuple(adv_images.shape)}, {adv_images.dtype}, {adv_images.device}"
        + ("" if same else f"; expected {tuple(images.shape)}, torch.float32, {images.device}"),
    )
    if adv_images.shape != images.shape:
        return [first]
    images = images.detach()  # an attack may have asked for their gradient
    adv_images = adv_images.detach().to(images)
    low, high = float(adv_images.min()), float(adv_images.max())
    # To the last bit where rounding does not add up; a NaN is in no box.
    boxed = low >= 0 and high <= 1 if threat.geometry.exact_box else bool(in_box(adv_images).all())
    farthest, near = float(threat.distance(images, adv_images).max()), bool(threat.contains(images, adv_images).all())
    return [
        first,
        Claim(f"{where}: in the box", boxed, f"pixels from {low:.6g} to {high:.6g}"),
        Claim(f"{where}: in the ball", near, f"at most {farthest:.6g} of {threat} away"),
    ]


class GlobalState(NamedTuple):
    """Of the random generators that everybody shares."""

    of_torch: bytes
    of_numpy: bytes
    of_python: Any


def _global_state() -> GlobalState:
    return GlobalState(bytes(torch.get_rng_state().numpy().tobytes()), np.random.get_state()[1].tobytes(), random.getstate())  # type: ignore[index]


def same_bytes(attack: Attack, threat: ThreatModel, device: str = "cpu") -> Claim:
    """The same seed gives the same images, whatever was drawn before."""
    classifier, images, labels = small_case(3, device)
    first = run_attack(attack, classifier, images.clone(), labels.clone(), threat, seed=3)
    with seeded(4, images.device):
        again = run_attack(attack, classifier, images.clone(), labels.clone(), threat, seed=3)
    both = isinstance(first, Tensor) and isinstance(again, Tensor) and first.shape == again.shape
    differing = int((first != again).sum()) if both else -1
    said = f"{differing} pixels differ between two calls" if both else "no two batches of images to compare"
    return Claim(f"{threat.norm}: same seed, same bytes", differing == 0, said if differing else "two calls gave equal images")


def nothing_to_attack(attack: Attack, threat: ThreatModel, device: str = "cpu") -> Claim:
    """A batch of which every sample is misclassified already comes back as valid images."""
    classifier, images, labels = small_case(3, device)
    wrong = (labels + 1) % N_CLASSES
    outcomes = _outcomes(attack, classifier, images, wrong, threat)
    valid = outcomes.count(Outcome.BROKEN)
    return Claim(
        f"{threat.norm}: a batch with nothing to attack",
        valid == 3,
        f"{valid} of 3 misclassified images come back valid and misclassified",
    )


def clean_at_zero(attack: Attack, threat: ThreatModel) -> Claim:
    """In a ball of radius 0 nothing breaks and nothing is invalid."""
    model, images, labels, _ = linear_case(0.02, "Linf", n=20)
    outcomes = _outcomes(attack, Classifier(model, N_CLASSES), images, labels, threat)
    robust = outcomes.count(Outcome.ROBUST)
    return Claim(
        f"{threat.norm}: eps 0 gives clean accuracy", robust == 20, f"{robust} of 20 samples stay right {_others(outcomes)}".strip()
    )


class ClosedForm(NamedTuple):
    """That an attack breaks no sample that is robust, and whether it breaks all others, which a strong one does."""

    claim: Claim
    reached: bool


def closed_form(attack: Attack, threat: ThreatModel) -> ClosedForm:
    """Of a linear model it breaks none that is robust.

    Raises:
        AttackRaised: it raised.
    """
    model, images, labels, robust = linear_case(threat.eps, threat.norm)
    outcomes = _outcomes(attack, Classifier(model, N_CLASSES), images, labels, threat)
    broken = torch.tensor([outcome == Outcome.BROKEN for outcome in outcomes])
    wrong, right, out_of = int(broken[robust].sum()), int(broken[~robust].sum()), int((~robust).sum())
    holds = wrong == 0 and Outcome.INVALID not in outcomes and Outcome.ERROR not in outcomes
    said = f"breaks {wrong} of {int(robust.sum())} samples that are robust, {right} of {out_of} that are not {_others(outcomes)}".strip()
    return ClosedForm(Claim(f"{threat.norm}: never below the closed form of a linear model", holds, said), reached=right == out_of)


def _others(outcomes: list[Outcome]) -> str:
    invalid = sum(outcome in Outcome.UNDECIDED for outcome in outcomes)
    return f"({invalid} invalid)" if invalid else ""


def _outcomes(attack: Attack, classifier: Classifier, images: Images, labels: Labels, threat: ThreatModel) -> list[Outcome]:
    adv_images = run_attack(attack, classifier, images.clone(), labels.clone(), threat)
    return judge(classifier, images, labels, adv_images, threat).outcomes
