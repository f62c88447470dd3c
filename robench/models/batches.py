"""How many images somebody's module takes in one pass: any number, at least a few, or exactly so many."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

USUAL = (2, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100, 128, 200, 250, 256, 512)
LARGEST = 4096  # images that are tried in one pass
SECONDS = 10.0  # that the search may take; a model that is merely broken fails at every size


@dataclass(frozen=True)
class BatchRule:
    """The sizes of a pass.

    Attributes:
        smallest: images that a pass needs at least.
        exactly: the only number of images that a pass takes, None for any.
    """

    smallest: int = 1
    exactly: int | None = None

    def size(self, n: int) -> int:
        """The images of a pass that serves ``n``."""
        return self.exactly or max(n, self.smallest)

    def __str__(self) -> str:
        return f"exactly {self.exactly} images a pass" if self.exactly else f"at least {self.smallest} images a pass"


ANY = BatchRule()


def own_copy(images: Tensor, n: int) -> Tensor:
    """``images`` repeated to ``n``, in memory that nobody else holds: a module may do with it what it likes."""
    if len(images) == n:
        return images.clone(memory_format=torch.contiguous_format)
    return images[torch.arange(n, device=images.device) % len(images)]


def find_rule(complaint: Callable[[int], str]) -> BatchRule | None:
    """The rule of a module that failed on a batch; None where its size was not the reason.

    Sizes that the messages name are tried first after two, then usual ones.

    Args:
        complaint: what a pass of so many images raises, or "".
    """
    started = time.monotonic()
    alone = complaint(1)
    if not alone:
        return None
    named = [int(number) for number in re.findall(r"\d+", alone) if 2 < int(number) <= LARGEST]
    for size in dict.fromkeys((2, *named, *USUAL)):
        if time.monotonic() - started > SECONDS:
            return None
        if not complaint(size):
            return BatchRule(exactly=size) if complaint(size + 1) else BatchRule(smallest=size)
    return None
