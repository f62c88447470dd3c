"""Numbers in a model's own files, read so that what is none is said with its file and entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from robench.data.preprocessing import LARGEST_SIDE
from robench.types import RobenchError


def number(value: Any, entry: str, origin: str, *, positive: bool = False) -> float:
    """A finite number.

    Args:
        value: as the file has it.
        entry: what it is called there.
        origin: the file.
        positive: whether it must be above 0.

    Raises:
        RobenchError: it is none.
    """
    # Python reads NaN and Infinity in JSON, and true is a number to it.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or (positive and value <= 0):
        raise RobenchError(
            f"{origin}: {entry} is {_short(value)}, expected a number{' above 0' * positive}; mend the file or download it again"
        )
    return float(value)


def numbers(value: Any, entry: str, origin: str, *, positive: bool = False) -> tuple[float, ...]:
    """A list of numbers, or one alone; empty where there is no such entry.

    Raises:
        RobenchError: see ``number``.
    """
    parts = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return tuple(number(part, entry, origin, positive=positive) for part in parts)


def side(value: Any, entry: str, origin: str) -> int:
    """The side of an image in pixels.

    Raises:
        RobenchError: it is no number, or none of a side.
    """
    pixels = number(value, entry, origin)
    if not 1 <= pixels <= LARGEST_SIDE:
        raise RobenchError(
            f"{origin}: {entry} is {_short(value)}, expected 1 to {LARGEST_SIDE} pixels; mend the file or download it again"
        )
    return int(pixels)


def larger(pixels: int, share: Any, entry: str, origin: str) -> int:
    """The side of which ``pixels`` are a share.

    Raises:
        RobenchError: the share is no number above 0, or makes sides that no image has.
    """
    enlarged = pixels / number(share, entry, origin, positive=True)
    if not 1 <= enlarged <= LARGEST_SIDE:
        raise RobenchError(
            f"{origin}: {entry} is {_short(share)}, by which {pixels} pixels become {enlarged:.4g}, expected 1 to {LARGEST_SIDE}; mend the file or "
            "download it again"
        )
    return int(enlarged)


def entries(value: Any, entry: str, origin: str) -> Mapping[str, Any]:
    """An object with entries of its own; empty where there is no such entry.

    Raises:
        RobenchError: it is something else.
    """
    if value is not None and not isinstance(value, Mapping):
        raise RobenchError(
            f"{origin}: {entry} is {_short(value)}, expected an object with entries; mend the file or download it again"
        )
    return value or {}


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
