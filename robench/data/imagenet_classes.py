"""ImageNet's 1,000 classes in torchvision's order, which is that of their sorted synsets: n01440764, the tench, is 0. Needs no download."""

from __future__ import annotations

import functools
from importlib import resources


@functools.cache
def synsets() -> tuple[str, ...]:
    """The 1,000 WordNet ids, such as n01440764, which name the folders of ImageNet's images."""
    return tuple((resources.files("robench.data") / "imagenet_synsets.txt").read_text(encoding="ascii").split())


@functools.cache
def names() -> tuple[str, ...]:
    """The same in English, as torchvision's weights call their outputs; no two are equal."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])
