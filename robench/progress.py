"""Progress on stderr: a bar for a person who watches, a line a minute for a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

EVERY = 60.0  # seconds


def progress(items: Sequence[T], name: str, show: bool, unit: str = "chunk") -> Iterator[T]:
    """The items, one after the other, and how far that is.

    Args:
        items: what is to be done.
        name: of the work.
        show: whether to say anything.
        unit: what an item is.
    """
    if not show or not items:
        return iter(items)
    if not sys.stderr.isatty():
        return _in_lines(items, name, unit)
    from tqdm import tqdm

    return iter(tqdm(items, desc=f"{name:>10}", unit=unit, file=sys.stderr, mininterval=0.5))


def _in_lines(items: Sequence[T], name: str, unit: str) -> Iterator[T]:
    started = last_line = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last_line >= EVERY:
            left = (now - started) / done * (len(items) - done)
            print(f"{name}: {done} of {len(items)} {unit}s, about {duration(left)} to go", file=sys.stderr, flush=True)
            last_line = now
        yield item


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 12 min, 3.4 h."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
