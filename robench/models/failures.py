"""What somebody's module raises: about some images, about memory, or about the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LOST = (
    "device-side assert",
    "illegal memory access",
    "launch failure",
    "busy or unavailable",
    "uncorrectable ecc",
    "device not ready",
)


class Answers(NamedTuple):
    """Logits, or votes, (N, n_classes), with a blank row for every image that the model raised on, and what it raised by place of the image."""

    logits: Tensor
    errors: dict[int, str]


def narrowed(ask: Callable[[slice], Tensor], n: int, blank: Tensor, *, largest_pass: int | None = None) -> Answers:
    """What is said of n images where some of them make the module raise: parts that raise are halved, down to the images that fail alone.

    Images that failed alone before any other was answered are asked once more: a classifier that has been answered knows better which
    numbers of images its module takes.

    Args:
        ask: logits of a part of the images.
        n: images.
        blank: what stands for an image that fails alone, (1, n_classes).
        largest_pass: images that go through the module at once; where it is 1, one that memory is too small for fails like any other.

    Returns:
        The answers; where all images fail, what they raised together stands for each.

    Raises:
        Exception: memory ran out with more than one image, or the device is lost, which no image is to blame for.
    """
    answered: dict[int, Tensor] = {}
    raised: dict[int, str] = {}
    early: list[int] = []
    together = ""

    def part(start: int, stop: int) -> None:
        nonlocal together
        try:
            answered[start] = ask(slice(start, stop))
            raised.pop(start, None)
        except Exception as error:  # somebody else's model may raise anything
            alone = stop - start <= 1
            if is_device_failure(error) or (is_out_of_memory(error) and not alone and largest_pass != 1):
                raise
            said = f"{type(error).__name__}: {error}"
            together = together or said
            if not alone:
                middle = (start + stop + 1) // 2
                part(start, middle)
                part(middle, stop)
                return
            if len(raised) == len(answered):
                early.append(start)
            answered[start], raised[start] = blank, said

    part(0, n)
    if len(raised) == n:
        return Answers(torch.cat([blank] * n), dict.fromkeys(raised, together))
    for place in early:
        part(place, place + 1)
    return Answers(torch.cat([answered[start] for start in sorted(answered)]), raised)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch said so, on a GPU or on a CPU."""
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "out of memory" in said or "can't allocate memory" in said


def is_device_failure(error: BaseException) -> bool:
    """Whether the device itself is lost, so that nothing that is asked of it afterwards says anything about a model or an image."""
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in said for sign in LOST)


def fails_at_random(raised: BaseException | str) -> str:
    """What is said of a model that raised on images which it has classified."""
    said = raised if isinstance(raised, str) else f"{type(raised).__name__}: {first_line(raised)}"
    return (
        f"the model raised {said}, on images that it classified in another pass: it fails at random, and no verdict on it would be one; mend "
        "that first (a server that it asks, a random number, something that it keeps from pass to pass?)"
    )


def first_line(error: BaseException) -> str:
    """What an error says, without what follows in further lines."""
    return (str(error).strip() or "no message").splitlines()[0]
