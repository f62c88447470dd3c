"""What is known of every picture of a folder: looked at once, kept in the user's cache, and asked again only of files that have changed."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robench.data.location import cache_folder
from robench.data.pictures import TURNED, check_picture
from robench.files import write_atomically
from robench.processes import usable_cores
from robench.progress import progress
from robench.types import RobenchError

BLOCK = 2_000  # files between two looks at the clock
KEEP_EVERY = 30.0  # seconds between two writings of an index that is being made
LISTED = 5  # damaged files that a message names
WORTH_KEEPING = 200  # files; fewer are looked at again in a second
SCHEMA = 2
LONGEST_WAIT = 1800.0  # seconds that a process waits for another one to make the index


@dataclass(frozen=True, eq=False, kw_only=True)
class FileIndex:
    """Facts of picture files, a row each.

    Attributes:
        names: paths below the folder, with slashes, as the system encodes them, (N,) of bytes.
        bytes: lengths, int64 (N,).
        changed: times of the last change of the content, nanoseconds, int64 (N,).
        touched: times of the last change of anything, which no copying program sets back, likewise.
        sha256: of their contents, uint8 (N, 32).
        height, width: as they are stored, int32 (N,).
        orientation: by EXIF, uint8 (N,).
        decoded: whether they were decoded to see that they are whole, bool (N,).
    """

    names: np.ndarray
    bytes: np.ndarray
    changed: np.ndarray
    touched: np.ndarray
    sha256: np.ndarray
    height: np.ndarray
    width: np.ndarray
    orientation: np.ndarray
    decoded: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> FileIndex:
        """Some rows, in the order of their numbers."""
        return FileIndex(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})

    def sizes(self, *, upright: bool) -> dict[tuple[int, int], int]:
        """How many files have which height and width."""
        turned = np.isin(self.orientation, list(TURNED)) & upright
        pairs = np.stack([np.where(turned, self.width, self.height), np.where(turned, self.height, self.width)], 1)
        found, counts = np.unique(pairs, axis=0, return_counts=True)
        return {(int(height), int(width)): int(count) for (height, width), count in zip(found, counts, strict=True)}


class Stat(NamedTuple):
    """A file as the system lists it: its name below the folder, its length, and the times of the last change of its content and of anything,
    in nanoseconds."""

    name: str
    bytes: int
    changed: int
    touched: int


def index_files(root: Path, listed: list[Stat], *, check: bool = False) -> FileIndex:
    """The facts of files, in their order; what an earlier call found of unchanged ones is taken from its index.

    Args:
        root: the folder.
        listed: its files.
        check: decode every file, to see that it is whole; else only those whose header or end leave a doubt.

    Raises:
        RobenchError: files are damaged; names them.
    """
    path = cache_folder() / "indices" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.npz"
    if len(listed) < WORTH_KEEPING:
        return _completed(root, listed, path, check)
    with alone(path):
        return _completed(root, listed, path, check)


def _completed(root: Path, listed: list[Stat], path: Path, check: bool) -> FileIndex:
    index, known = _empty(listed), np.zeros(len(listed), bool)
    earlier = _read(path)
    others = None if earlier is None else earlier.take(np.flatnonzero(~np.isin(earlier.names, index.names)))  # of the other split
    if earlier is not None and len(earlier):
        order = np.argsort(earlier.names)
        found = order[np.searchsorted(earlier.names, index.names, sorter=order).clip(max=len(order) - 1)]
        known = np.ones(len(listed), bool)
        for name in ("names", "bytes", "changed", "touched"):
            known &= getattr(earlier, name)[found] == getattr(index, name)
        known &= earlier.decoded[found] | (not check)
        for name in ("sha256", "height", "width", "orientation", "decoded"):
            getattr(index, name)[known] = getattr(earlier, name)[found[known]]
    missing = np.flatnonzero(~known)
    if not len(missing):
        return index
    damaged: dict[str, str] = {}
    blocks = [missing[start : start + BLOCK] for start in range(0, len(missing), BLOCK)]
    last = time.monotonic()
    with ThreadPoolExecutor(readers()) as pool:
        for block in progress(blocks, f"looking at the pictures in {root}", len(blocks) > 1, f"{BLOCK:,} file"):
            looks = pool.map(lambda row: _look(root / listed[row].name, check), block.tolist())
            for row, look in zip(block.tolist(), looks, strict=True):
                if isinstance(look, str):
                    damaged[listed[row].name] = look
                    continue
                index.sha256[row] = np.frombuffer(look.sha256, np.uint8)
                index.height[row], index.width[row], index.orientation[row] = look.height, look.width, look.orientation
                index.decoded[row], known[row] = check, True
            if time.monotonic() - last > KEEP_EVERY:
                _keep(index.take(np.flatnonzero(known)), others, path)
                last = time.monotonic()
    if len(listed) >= WORTH_KEEPING:
        _keep(index.take(np.flatnonzero(known)), others, path)
    if damaged:
        _refuse(root, damaged, len(listed))
    return index


def readers() -> int:
    """Threads that read and decode pictures."""
    return min(usable_cores(), 16)


class _Look(NamedTuple):
    sha256: bytes
    height: int
    width: int
    orientation: int


def _look(path: Path, decode: bool) -> _Look | str:
    """The facts of a file, or what is wrong with it."""
    try:
        content = path.read_bytes()
        return _Look(hashlib.sha256(content).digest(), *check_picture(content, decode=decode))
    except OSError as error:
        return str(error.strerror or error)
    except RobenchError as error:
        return str(error)


def _refuse(root: Path, damaged: dict[str, str], total: int) -> None:
    some = "; ".join(f"{root / name}: {said}" for name, said in sorted(damaged.items())[:LISTED])
    more = f"; and {len(damaged) - LISTED} more" if len(damaged) > LISTED else ""
    raise RobenchError(
        f"{len(damaged)} of {total:,} pictures cannot be read: {some}{more}. Copy them again, or take them out of the folder"
    )


def _empty(listed: list[Stat]) -> FileIndex:
    n = len(listed)
    return FileIndex(
        names=np.array([os.fsencode(each.name) for each in listed], dtype=np.bytes_),
        bytes=np.array([each.bytes for each in listed], np.int64), changed=np.array([each.changed for each in listed], np.int64),
        touched=np.array([each.touched for each in listed], np.int64),
        sha256=np.zeros((n, 32), np.uint8), height=np.zeros(n, np.int32), width=np.zeros(n, np.int32),
        orientation=np.ones(n, np.uint8), decoded=np.zeros(n, bool),
    )  # fmt: skip


def _read(path: Path) -> FileIndex | None:
    """An earlier index; one that is damaged or of another version is made again."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if int(arrays["schema"]) != SCHEMA:
                return None
            index = FileIndex(**{each.name: arrays[each.name] for each in fields(FileIndex)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return index if len({len(getattr(index, each.name)) for each in fields(FileIndex)}) == 1 else None


def _keep(index: FileIndex, others: FileIndex | None, path: Path) -> None:
    """Written where that can be done: an index only saves time.

    Args:
        index: what was looked at.
        others: what an earlier call found of other files of the folder.
        path: where.
    """
    parts = [index, *([others] if others is not None else [])]
    arrays: dict[str, Any] = {each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(index)}
    buffer = io.BytesIO()
    np.savez(buffer, schema=SCHEMA, **arrays)
    try:
        write_atomically(path, buffer.getvalue())
    except RobenchError as error:
        print(f"robench: warning: the pictures will be looked at again next time: {error}", file=sys.stderr)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lets one of several processes on a machine make a file, which the others then find; where nothing can be locked, each makes it.

    Args:
        path: of the file.
    """
    with ExitStack() as stack:
        try:
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(path.with_suffix(".lock"), "w"))
        except (ImportError, OSError):
            lock = None
        started, told = time.monotonic(), False
        while lock is not None and time.monotonic() - started < LONGEST_WAIT:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    print(f"robench: another process makes {path}; this one waits for it", file=sys.stderr)
                told = True
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        yield
