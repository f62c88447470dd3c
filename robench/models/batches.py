"""How many images somebody's module takes in one pass: any number, at least a few, or exactly so many."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

USUAL = (2, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100, 128, 200, 250, 256, 512)
LARGEST = 1024  # images that are tried in one pass
NUMBERS = 2**24, 2**26  # pixel values that are tried in one pass, of a usual size and of one that the model's message names
SECONDS = 10.0  # that the search may take; a model that is merely broken fails at every size
NAMED = re.compile(r"(?<![\w.,])(\d{1,4})(?![\w.,]*\d)(?!\w)(?!\s*(?:features?|channels?|class|dim|inputs?|elements|units|bytes))")


@dataclass(frozen=True)
class BatchRule:
    """The sizes of a pass.

    Attributes:
        smallest: images that a pass needs at least.
        exactly: the only number of images that a pass takes, None for any.
        largest: images that a pass takes at most, None for any number.
    """

    smallest: int = 1
    exactly: int | None = None
    largest: int | None = None

    def size(self, n: int) -> int:
        """The images of a pass that serves ``n``."""
        return self.exactly or max(n, self.smallest)

    @property
    def most(self) -> int | None:
        """The images that one pass can serve, None for any number."""
        return self.exactly or self.largest

    def __str__(self) -> str:
        if self.exactly:
            return f"exactly {self.exactly} images a pass"
        return f"at least {self.smallest} images a pass" + (f" and at most {self.largest}" if self.largest else "")


ANY = BatchRule()


def own_copy(images: Tensor, n: int) -> Tensor:
    """``images`` repeated to ``n``, in memory that nobody else holds: a module may do with it what it likes."""
    if len(images) == n:
        return images.clone(memory_format=torch.contiguous_format)
    return images[torch.arange(n, device=images.device) % len(images)]


def find_rule(complaint: Callable[[int], str], failed: int = 1, pixels: int = 0) -> BatchRule | None:
    """The rule of a module that failed on a batch; None where its size was not the reason.

    Sizes that the messages name are tried first after two, then usual ones; none that would fill the memory.

    Args:
        complaint: what a pass of so many images raises, or "".
        failed: images of the batch.
        pixels: values of one image.
    """
    started, said = time.monotonic(), complaint(1)

    def in_time() -> bool:
        return time.monotonic() - started < SECONDS

    if not said:
        return BatchRule(largest=_largest(complaint, 1, failed, in_time)) if failed > 1 and complaint(failed) else None
    for size in _sizes(said, pixels):
        if not in_time():
            return None
        if complaint(size):
            continue
        if complaint(size + 1):
            return BatchRule(exactly=size)
        too_many = failed > size + 1 and complaint(failed)
        return BatchRule(smallest=size, largest=_largest(complaint, size, failed, in_time) if too_many else None)
    return None


def _sizes(said: str, pixels: int) -> list[int]:
    usual, named = (min(LARGEST, most // max(pixels, 1)) for most in NUMBERS)
    numbers = [int(number) for number in NAMED.findall(said)]
    return list(dict.fromkeys([2, *(n for n in numbers if 2 < n <= named), *(n for n in USUAL if n <= max(usual, 8))]))


def _largest(complaint: Callable[[int], str], fits: int, fails: int, in_time: Callable[[], bool]) -> int:
    """The most images that a pass takes; the least where a smaller pass fails, since what is left of a batch may have any size."""
    least = fits
    while fails - fits > 1 and in_time():
        middle = (fits + fails) // 2
        fits, fails = (fits, middle) if complaint(middle) else (middle, fails)
    between = {size for size in (least + 1, least + 2, fits // 2, fits - 1) if least < size < fits}
    return least if any(complaint(size) for size in sorted(between)) else fits
