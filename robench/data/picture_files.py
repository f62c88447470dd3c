"""Pictures in files, read when they are asked for, by several threads."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robench.data.file_index import FileIndex, readers
from robench.data.pictures import read_picture
from robench.data.preprocessing import Preprocessing
from robench.types import RobenchError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class PictureFiles:
    """The pictures of a folder as ``StoredImages``.

    Attributes:
        root: the folder.
        names: paths below it, as the system encodes them, (N,) of bytes.
        bytes: lengths that the files had when they were looked at, int64 (N,).
        sha256: of their contents, uint8 (N, 32).
        size: height and width of the pixels.
        digest: see ``StoredImages``.
        preprocessing: of every picture, None for none.
        upright: turn pictures as their EXIF tags say.
    """

    root: Path
    names: np.ndarray
    bytes: np.ndarray
    sha256: np.ndarray
    size: tuple[int, int]
    digest: str
    preprocessing: Preprocessing | None = None
    upright: bool = True

    @classmethod
    def of_index(
        cls, root: Path, index: FileIndex, size: tuple[int, int], preprocessing: Preprocessing | None, *, upright: bool
    ) -> PictureFiles:
        """The files of an index, in its order."""
        total = hashlib.sha256(f"{preprocessing or ''!s} {upright} {len(index)}\n".encode())
        total.update(np.ascontiguousarray(index.sha256).data)
        return cls(
            root=root, names=index.names, bytes=index.bytes, sha256=index.sha256, size=size, digest=total.hexdigest(),
            preprocessing=preprocessing, upright=upright,
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, H, W)."""
        return len(self), 3, *self.size

    def __len__(self) -> int:
        return len(self.names)

    def name(self, place: int) -> str:
        """The path of a picture."""
        return str(self.root / os.fsdecode(self.names[place]))

    def is_here(self) -> bool:
        """Whether the first and the last file are there, with the length that they had."""
        try:
            return all(os.stat(self.name(place)).st_size == self.bytes[place] for place in {0, len(self) - 1})
        except OSError:
            return False

    def read(self, places: Sequence[int]) -> Tensor:
        """See ``StoredImages``."""
        return read_together(self._read, places, self.size)

    def _read(self, place: int) -> np.ndarray:
        path = self.name(place)
        try:
            content = Path(path).read_bytes()
            if hashlib.sha256(content).digest() != self.sha256[place].tobytes():
                raise RobenchError("it has changed since it was looked at; start the same command again")
            pixels = read_picture(io.BytesIO(content), upright=self.upright, preprocessing=self.preprocessing)
            if pixels.shape[:2] != self.size:
                raise RobenchError(f"it has {pixels.shape[1]}x{pixels.shape[0]} pixels, its header says otherwise")
            return pixels
        except (OSError, RobenchError) as error:
            said = (error.strerror if isinstance(error, OSError) else "") or str(error)
            raise RobenchError(f"cannot read the image {path}: {said}; what was finished before is kept") from None


def read_together(read: Callable[[int], np.ndarray], places: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Pictures as one tensor, uint8 (n, 3, H, W), read by several threads.

    Args:
        read: from a place to uint8 (H, W, 3).
        places: whose pictures.
        size: height and width that each must have.

    Raises:
        RobenchError: one cannot be read.
    """
    import torch

    together = np.empty((len(places), 3, *size), np.uint8)

    def fill(row: int) -> None:
        together[row] = read(places[row]).transpose(2, 0, 1)

    for _ in _pool(os.getpid()).map(fill, range(len(places))):
        pass
    return torch.from_numpy(together)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One pool a process, whose threads start when they are needed; a forked process has none of its parent's threads."""
    return ThreadPoolExecutor(readers(), thread_name_prefix="robench-pictures")
