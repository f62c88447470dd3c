"""Images that arrive block by block, and are more than memory should hold: kept in a file that is mapped into memory."""

from __future__ import annotations

import math
import tempfile
from typing import IO

import numpy as np
import torch
from torch import Tensor

from robench.data.augment import in_unit
from robench.types import RobenchError

WRITTEN_AGAIN = 256  # images that are read and written at a time


class Spool:
    """A file of images that nobody else sees, and that is gone with this process.

    As uint8 as long as all blocks are, else as float32 in [0, 1].
    """

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.uint8
        self._n = 0
        self._file = _new_file()

    def add(self, block: Tensor) -> None:
        """Appends images.

        Args:
            block: uint8, or float32 in [0, 1], (n, C, H, W).

        Raises:
            RobenchError: they have another size than those before, or the disk is full.
        """
        self._shape = self._shape or tuple(block.shape[1:])
        if tuple(block.shape[1:]) != self._shape:
            sizes = ", ".join(map(str, sorted({self._shape, tuple(block.shape[1:])})))
            raise RobenchError(f"images differ in size: {sizes}; resize or crop them to one size first")
        if block.dtype != torch.uint8 and self._dtype == torch.uint8:
            self._to_float()
        _append(self._file, block if self._dtype == torch.uint8 else in_unit(block))
        self._n += len(block)

    def images(self) -> Tensor:
        """All of them as one tensor, whose pages the system reads from the file when they are asked for; what is written to it stays in memory."""
        self._file.flush()
        dtype = np.uint8 if self._dtype == torch.uint8 else np.float32
        return torch.from_numpy(np.memmap(self._file, dtype, mode="c", shape=(self._n, *self._shape)))

    def _to_float(self) -> None:
        """Writes everything again as float32."""
        self._dtype, old, self._file = torch.float32, self._file, _new_file()
        old.seek(0)
        one = math.prod(self._shape)
        while content := old.read(WRITTEN_AGAIN * one):
            _append(self._file, in_unit(torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, *self._shape)))
        old.close()


def _new_file() -> IO[bytes]:
    """Without a name where the system has that, so that nothing of it is left, however this process ends."""
    return tempfile.TemporaryFile(prefix="robench-images-")


def _append(file: IO[bytes], block: Tensor) -> None:
    try:
        file.write(block.contiguous().numpy().data)
    except OSError as error:
        raise RobenchError(
            f"the images are more than memory should hold, and cannot be kept in {tempfile.gettempdir()}: {error.strerror or error}; set TMPDIR to a folder "
            "with more room, or give a folder of picture files"
        ) from None
