"""The norms: whatever depends on which one an image's change is measured in. Importing this module imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

# 8/255 in float32 measures as eps + 1.9e-9, so the ball and the box are checked with this slack (absolute, in pixel units).
TOLERANCE = 1e-6
L2_TOLERANCE = 4e-6  # of eps: what rounding 150,528 pixels to float32 adds to a projected image's distance, measured up to 1.4e-6
L1_TOLERANCE = 1e-4  # every pixel adds its rounding: 3,072 of them at most 2^-25 each, 9.2e-5

# In L2 and L1 the last bits depend on how the norm is summed up, so that what is too near to call is left to the attack.
SUMMED = 1 - 1e-5


class Norm(Protocol):
    """A norm, and all that depends on it. A new threat model is a class with these members, and its line in ``NORMS``.

    Attributes:
        name: as files and options have it.
        moves: what the adversary may do, with a place for {eps}.
        largest_eps: a larger eps is hardly meant in pixel units of [0, 1], and is refused.
        too_large: why, as the end of "eps 60 ...".
        surely_inside: a query within this share of eps lies in the ball, in whatever order its distance is summed up.
        exact_box: whether images that an attack clipped lie in the box to the last bit.
        wide_eps: so wide that most samples of a small network break soon, which is what ends Square and FAB.
        narrow_eps: so narrow that the images of a linear model whose robustness is known keep away from the faces of the box.
        has_pgd: whether PGD, and with it the attacks that an audit compares, are defined for it.
        single_step: the attack of one step, where there is PGD.
        curve_attack: the attack of a curve against eps, where none is named.
        suite: what is run where none is named.
    """

    name: str
    moves: str
    largest_eps: float
    too_large: str
    surely_inside: float
    exact_box: bool
    wide_eps: float
    narrow_eps: float
    has_pgd: bool
    single_step: str
    curve_attack: str
    suite: str

    def distance(self, images: Tensor, adv_images: Tensor) -> Tensor:
        """Distance of each pair of images, (N, C, H, W) each, float32 (N,)."""
        ...

    def tolerance(self, eps: float) -> float:
        """What may be measured beyond eps for rounding alone."""
        ...

    def diameter(self, image_shape: tuple[int, int, int]) -> float:
        """The distance from a black image to a white one of shape (C, H, W)."""
        ...

    def dual(self, weights: Tensor) -> Tensor:
        """The dual norm over the last dimension: how far a step of length 1 may move ``weights @ image``."""
        ...

    def at_least(self, apart: Tensor) -> Tensor:
        """How far images are from each other at least, (M,), if some of their pixels are ``apart``, (M, P) and not negative."""
        ...

    def pairs_at_least(self, pixels: Tensor, others: Tensor) -> Tensor:
        """The same of every pair, (M, N), by some pixels of the ones, (M, P), and the same of the others, (N, P)."""
        ...


def _change(images: Tensor, adv_images: Tensor) -> Tensor:
    return (adv_images.float() - images.float()).flatten(1)


@dataclass(frozen=True)
class Linf:
    """The largest change of a pixel value."""

    name = "Linf"
    moves = "every pixel value may move by at most {eps}"
    largest_eps = 1.0
    too_large = "is larger than the whole pixel range"
    surely_inside = 1.0
    exact_box = True
    wide_eps = 0.2
    narrow_eps = 0.02
    has_pgd = True
    single_step = "fgsm"
    curve_attack = "pgd20"
    suite = "pgd20,autoattack"

    def distance(self, images: Tensor, adv_images: Tensor) -> Tensor:
        return _change(images, adv_images).abs().amax(1)

    def tolerance(self, eps: float) -> float:
        return TOLERANCE

    def diameter(self, image_shape: tuple[int, int, int]) -> float:
        return 1.0

    def dual(self, weights: Tensor) -> Tensor:
        return weights.abs().sum(-1)

    def at_least(self, apart: Tensor) -> Tensor:
        return apart.amax(1)

    def pairs_at_least(self, pixels: Tensor, others: Tensor) -> Tensor:
        return _largest_of_pairs(pixels, others)


@dataclass(frozen=True)
class L2:
    """The Euclidean length of the change."""

    name = "L2"
    moves = "the image may move by at most {eps} in Euclidean distance"
    largest_eps = 50.0
    too_large = "in L2 is nearly as far as black from white at 32x32 (55.4)"
    surely_inside = SUMMED
    exact_box = True
    wide_eps = 1.5
    narrow_eps = 0.1
    has_pgd = True
    single_step = "pgd1"
    curve_attack = "pgd20"
    suite = "pgd20,autoattack"

    def distance(self, images: Tensor, adv_images: Tensor) -> Tensor:
        change = _change(images, adv_images)
        # In float32 the norm of 150,528 equal pixels is 1e-5 too large; MPS has no float64.
        return (change if change.device.type == "mps" else change.double()).norm(dim=1).float()

    def tolerance(self, eps: float) -> float:
        return max(TOLERANCE, L2_TOLERANCE * eps)

    def diameter(self, image_shape: tuple[int, int, int]) -> float:
        return float(math.prod(image_shape)) ** 0.5

    def dual(self, weights: Tensor) -> Tensor:
        return weights.norm(dim=-1)

    def at_least(self, apart: Tensor) -> Tensor:
        return apart.amax(1)

    def pairs_at_least(self, pixels: Tensor, others: Tensor) -> Tensor:
        return _largest_of_pairs(pixels, others)


@dataclass(frozen=True)
class L1:
    """The sum of the changes of all pixel values. Of the attacks that robench brings, AutoAttack alone is defined for it."""

    name = "L1"
    moves = "the changes of all pixel values may add up to at most {eps}"
    largest_eps = 2500.0
    too_large = "in L1 is nearly as far as black from white at 32x32 (3,072)"
    surely_inside = SUMMED
    exact_box = False
    wide_eps = 12.0
    narrow_eps = 0.1
    has_pgd = False
    single_step = ""
    curve_attack = "apgd-ce"
    suite = "autoattack"

    def distance(self, images: Tensor, adv_images: Tensor) -> Tensor:
        return _change(images, adv_images).abs().sum(1)

    def tolerance(self, eps: float) -> float:
        return L1_TOLERANCE

    def diameter(self, image_shape: tuple[int, int, int]) -> float:
        return float(math.prod(image_shape))

    def dual(self, weights: Tensor) -> Tensor:
        return weights.abs().amax(-1)

    def at_least(self, apart: Tensor) -> Tensor:
        return apart.sum(1)

    def pairs_at_least(self, pixels: Tensor, others: Tensor) -> Tensor:
        from torch import cdist

        return cdist(pixels, others, p=1.0)  # a sparse perturbation may turn one pixel from black to white


def _largest_of_pairs(pixels: Tensor, others: Tensor) -> Tensor:
    from torch import cdist

    return cdist(pixels, others, p=math.inf)


NORMS: dict[str, Norm] = {norm.name: norm for norm in (Linf(), L2(), L1())}


def norm_named(text: Any) -> Any:
    """The norm's name that is meant, however it is written: ``linf``, ``l2``, ``inf``, ``2``; what names none is handed back."""
    return {name.lower().removeprefix("l"): name for name in NORMS}.get(str(text).lower().removeprefix("l"), text)
