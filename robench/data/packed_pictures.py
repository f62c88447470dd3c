"""Pictures that lie one behind the other in one file, as they come out of parquet files: any of them is read without its neighbours."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import sys
import zipfile
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robench.data.file_index import alone
from robench.data.location import cache_folder
from robench.data.picture_files import read_together
from robench.data.pictures import TURNED, check_picture, read_picture
from robench.data.preprocessing import Preprocessing
from robench.files import PARTIAL, write_atomically
from robench.types import RobenchError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Facts:
    """What is known of packed pictures, a row each: where each begins, its length, its label, sha256, size as it is shown.

    Attributes:
        start, length, label: int64 (N,).
        sha256: uint8 (N, 32).
        height, width: int32 (N,).
    """

    start: np.ndarray
    length: np.ndarray
    label: np.ndarray
    sha256: np.ndarray
    height: np.ndarray
    width: np.ndarray

    def sizes(self) -> dict[tuple[int, int], int]:
        """How many pictures have which height and width."""
        found, counts = np.unique(np.stack([self.height, self.width], 1), axis=0, return_counts=True)
        return {(int(height), int(width)): int(count) for (height, width), count in zip(found, counts, strict=True)}


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedPictures:
    """The pictures of one file as ``StoredImages``.

    Attributes:
        file: that holds them.
        source: what they came from, for messages.
        facts: in the order of the file.
        order: places in the file, in the order of the split, int64 (N,).
        size: height and width of the pixels.
        preprocessing: of every picture, None for none.
    """

    file: Path
    source: str
    facts: Facts
    order: np.ndarray
    size: tuple[int, int]
    preprocessing: Preprocessing | None = None

    @property
    def digest(self) -> str:
        """See ``StoredImages``."""
        total = hashlib.sha256(f"{self.preprocessing or ''!s} {len(self)}\n".encode())
        total.update(np.ascontiguousarray(self.facts.sha256[self.order]).data)
        return total.hexdigest()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, H, W)."""
        return len(self), 3, *self.size

    def __len__(self) -> int:
        return len(self.order)

    def name(self, place: int) -> str:
        """The row that a picture came from."""
        return f"{self.source}, row {self.order[place]}"

    def is_here(self) -> bool:
        """Whether the file is there, as long as it was."""
        try:
            return self.file.stat().st_size == int((self.facts.start + self.facts.length).max())
        except OSError:
            return False

    def read(self, places: Sequence[int]) -> Tensor:
        """See ``StoredImages``."""
        try:
            with open(self.file, "rb") as file:
                return read_together(lambda place: self._read(file.fileno(), place), places, self.size)
        except OSError as error:
            raise RobenchError(f"cannot read {self.file}: {error.strerror or error}; start the same command again") from None

    def _read(self, descriptor: int, place: int) -> np.ndarray:
        row = self.order[place]
        content = os.pread(descriptor, int(self.facts.length[row]), int(self.facts.start[row]))
        try:
            pixels = read_picture(io.BytesIO(content), preprocessing=self.preprocessing)
            if pixels.shape[:2] != self.size:
                raise RobenchError(f"it has {pixels.shape[1]}x{pixels.shape[0]} pixels, its header says otherwise")
            return pixels
        except RobenchError as error:
            raise RobenchError(f"cannot read the image in {self.name(place)}: {error}; what was finished before is kept") from None


def pack_pictures(
    named: str, version: str, rows: Iterable[tuple[bytes, int]], source: str, *, expected: int, check: bool
) -> tuple[Path, Facts]:  # fmt: skip
    """The file that holds the pictures of a version, written where it is not there yet, and what is known of them; earlier versions are removed.

    Args:
        named: what the pictures come from, as a part of a file's name.
        version: of it, likewise; the same version is the same pictures.
        rows: contents of picture files and their labels.
        source: what they come from, for messages.
        expected: bytes, for the message that tells of the copy.
        check: decode every picture, to see that it is whole.

    Raises:
        RobenchError: a picture is damaged; or the disk is full.
    """
    file = cache_folder() / "unpacked" / f"{named}-{version}.pictures"
    with alone(file):
        facts = _read_facts(file.with_suffix(".npz"))
        if facts is None or check or not file.is_file():
            facts = _unpack(file, rows, source, expected=expected, check=check)
            for earlier in file.parent.glob(f"{named}-*"):
                if earlier.stem != file.stem:
                    earlier.unlink(missing_ok=True)
    return file, facts


def _unpack(file: Path, rows: Iterable[tuple[bytes, int]], source: str, *, expected: int, check: bool) -> Facts:
    print(f"robench: {source} is unpacked once, about {expected / 2**20:,.0f} MiB, into {file}", file=sys.stderr)
    partial = file.with_name(f".{file.name}.{secrets.token_hex(6)}{PARTIAL}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as target:
            facts = _packed(rows, target, source, check)
            target.flush()
            os.fsync(target.fileno())
        os.replace(partial, file)
    except OSError as error:
        raise RobenchError(
            f"cannot unpack {source} into {file}: {error.strerror or error}; make room, or set XDG_CACHE_HOME to a folder with more"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **{each.name: getattr(facts, each.name) for each in fields(facts)})
    write_atomically(file.with_suffix(".npz"), buffer.getvalue())
    return facts


def _packed(rows: Iterable[tuple[bytes, int]], target: io.BufferedWriter, source: str, check: bool) -> Facts:
    # Arrays of numbers: a million rows of Python's own would take 600 MB.
    start, hashes = 0, bytearray()
    starts, lengths, labels, heights, widths = (array("q") for _ in range(5))
    for row, (content, label) in enumerate(rows):
        try:
            header = check_picture(content, decode=check)
        except RobenchError as error:
            raise RobenchError(f"cannot read the image in {source}, row {row}: {error}") from None
        turned = header.orientation in TURNED
        target.write(content)
        hashes += hashlib.sha256(content).digest()
        for column, value in (
            (starts, start), (lengths, len(content)), (labels, label), (heights, header.width if turned else header.height),
            (widths, header.height if turned else header.width),
        ):  # fmt: skip
            column.append(value)
        start += len(content)
    return Facts(
        start=np.array(starts), length=np.array(lengths), label=np.array(labels),
        sha256=np.frombuffer(bytes(hashes), np.uint8).reshape(-1, 32), height=np.array(heights, np.int32), width=np.array(widths, np.int32),
    )  # fmt: skip


def _read_facts(path: Path) -> Facts | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Facts(**{each.name: arrays[each.name] for each in fields(Facts)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
