"""Augmentation of whole batches with parameters drawn per sample, on the device where the batch lies.

Every function takes uint8 images (N, C, H, W) and a generator on their device, and returns float32 in [0, 1].
"""

from __future__ import annotations

import math
from functools import cache
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from robench.seeds import derive_seed


def to_unit(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def in_unit(images: Tensor) -> Tensor:
    """Pixels as people keep them, uint8 or float in [0, 1], as float32 in [0, 1]."""
    return to_unit(images) if images.dtype == torch.uint8 else images.float()


def standard_view(images: Tensor, generator: Generator, *, mirror: bool, pad: int = 4) -> Tensor:
    """Zero padding, random crop back to the size, and random horizontal flip where mirroring keeps the label.

    Source: He et al. 2016, section 4.2; the authors' code (facts of the recipe in ``robench.training.recipes``).
    """
    n, _, height, width = images.shape
    device = images.device
    top = torch.randint(0, 2 * pad + 1, (n, 1), device=device, generator=generator)
    left = torch.randint(0, 2 * pad + 1, (n, 1), device=device, generator=generator)
    columns = torch.arange(width, device=device).expand(n, width)
    if mirror:
        flipped = torch.rand((n, 1), device=device, generator=generator) < 0.5
        columns = torch.where(flipped, width - 1 - columns, columns)
    rows = torch.arange(height, device=device) + top
    padded = F.pad(images, (pad, pad, pad, pad))
    sample = torch.arange(n, device=device)[:, None, None]
    cropped = padded[sample, :, rows[:, :, None], (columns + left)[:, None, :]]  # (N, H, W, C)
    return to_unit(cropped.permute(0, 3, 1, 2))


def simclr_view(images: Tensor, generator: Generator, *, mirror: bool) -> Tensor:
    """One SimCLR view, with the strengths of the authors' code.

    Resized crop (scale .08 to 1, ratio 3/4 to 4/3), flip, colour jitter (.8, .8, .8, .2) with probability .8, grayscale
    with probability .2, blur with 3 taps and sigma in (.1, 2). Parameters are drawn per sample; the order of the four
    jitters is drawn per batch; hue is rotated in the YIQ plane instead of in HSV.

    Source: Chen et al. 2020, appendix A; github.com/sthalles/SimCLR
    """
    view = _resized_crop(to_unit(images), generator, mirror=mirror)
    if images.shape[1] == 3:
        view = torch.where(_chance(0.8, view, generator), _color_jitter(view, generator), view)
        view = torch.where(_chance(0.2, view, generator), _gray(view).expand_as(view), view)
    return _blur(view, generator).clamp_(0, 1)


VIEWS = {"standard": standard_view, "simclr": simclr_view}


def _uniform(n: int, low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    return torch.empty(n, device=like.device).uniform_(low, high, generator=generator)


def _chance(probability: float, view: Tensor, generator: Generator) -> Tensor:
    return (_uniform(len(view), 0, 1, view, generator) < probability)[:, None, None, None]


def _resized_crop(view: Tensor, generator: Generator, *, mirror: bool) -> Tensor:
    """A box of random area and aspect ratio, inside the image, scaled to its size bilinearly."""
    n = len(view)
    area = _uniform(n, 0.08, 1.0, view, generator)
    ratio = _uniform(n, math.log(3 / 4), math.log(4 / 3), view, generator).exp()
    width = (area * ratio).sqrt().clamp_(max=1)  # as shares of the image; torchvision redraws instead of clamping
    height = (area / ratio).sqrt().clamp_(max=1)
    center_x = (1 - width) * _uniform(n, -1, 1, view, generator)  # in grid_sample's coordinates, -1 to 1
    center_y = (1 - height) * _uniform(n, -1, 1, view, generator)
    if mirror:
        width = torch.where(_uniform(n, 0, 1, view, generator) < 0.5, -width, width)
    zero = torch.zeros_like(width)
    theta = torch.stack([torch.stack([width, zero, center_x], 1), torch.stack([zero, height, center_y], 1)], 1)
    grid = F.affine_grid(theta, list(view.shape), align_corners=False)
    return F.grid_sample(view, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _gray(view: Tensor) -> Tensor:
    """Luma (ITU-R 601), (N, 1, H, W)."""
    red, green, blue = view.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def _blend(view: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    return (view * factor + (1 - factor) * other).clamp_(0, 1)


def _color_jitter(view: Tensor, generator: Generator, strength: float = 0.8, hue: float = 0.2) -> Tensor:
    n = len(view)
    order = _order(generator)
    factors = [_uniform(n, 1 - strength, 1 + strength, view, generator) for _ in range(3)]
    angle = _uniform(n, -hue, hue, view, generator) * (2 * math.pi)
    for step in order:
        if step == 0:
            view = _blend(view, 0.0, factors[0])
        elif step == 1:
            view = _blend(view, _gray(view).mean((2, 3), keepdim=True), factors[1])
        elif step == 2:
            view = _blend(view, _gray(view), factors[2])
        else:
            view = _rotate_hue(view, angle)
    return view


_ORDERS = tuple(permutations(range(4)))


def _order(generator: Generator) -> tuple[int, ...]:
    """The order of the four jitters, which the host has to know.

    Drawn from the generator where that is on the host. From another device's it follows by a hash of its state, which the host keeps
    (so nobody waits for the device) and which every view moves on.
    """
    if generator.device.type == "cpu":
        return tuple(torch.randperm(4, generator=generator).tolist())
    return _ORDERS[derive_seed("jitters", bytes(generator.get_state().tolist()).hex()) % len(_ORDERS)]


_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@cache
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """From RGB to YIQ and back, (3, 3) each; inverted on the host and copied to the device once."""
    to_yiq = torch.tensor(_RGB_TO_YIQ, device="cpu")
    return to_yiq.to(device), torch.linalg.inv(to_yiq).to(device)


def _rotate_hue(view: Tensor, angle: Tensor) -> Tensor:
    """Turns the chroma plane of YIQ by ``angle`` radians, (N,)."""
    to_yiq, to_rgb = _yiq(view.device)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    matrix = to_rgb @ turn @ to_yiq
    return torch.bmm(matrix, view.flatten(2)).view_as(view).clamp_(0, 1)


def _blur(view: Tensor, generator: Generator) -> Tensor:
    """Gaussian blur with three taps a side and one sigma in (.1, 2) per sample, reflected at the border."""
    side = torch.exp(-0.5 / _uniform(len(view), 0.1, 2.0, view, generator) ** 2)[:, None, None, None]
    center = 1 / (1 + 2 * side)
    side = side * center
    padded = F.pad(view, (1, 1, 0, 0), mode="reflect")
    view = center * view + side * (padded[..., :-2] + padded[..., 2:])
    padded = F.pad(view, (0, 0, 1, 1), mode="reflect")
    return center * view + side * (padded[..., :-2, :] + padded[..., 2:, :])
