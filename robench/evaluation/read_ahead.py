"""The pixels of chunks: of stored images, the next chunk's are read while this one is attacked."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from robench.types import pixels_of

if TYPE_CHECKING:
    from torch import Tensor

    from robench.evaluation.run_folder import Chunk
    from robench.types import StoredImages

KEPT = 2  # chunks in memory: the one that is attacked, and the next


class ReadAhead:
    """Reads chunks of a data set's images, at most ``KEPT`` of them at a time.

    Args:
        images: see ``Dataset``; what is held as a tensor is only cut.
    """

    def __init__(self, images: Tensor | StoredImages) -> None:
        self._images = images
        self.is_stored = hasattr(images, "read")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="robench-read-ahead") if self.is_stored else None
        self._chunks: dict[Chunk, Future[Tensor]] = {}

    def pixels(self, chunk: Chunk) -> Tensor:
        """The images of a chunk, as ``pixels_of`` gives them.

        Raises:
            RobenchError: one cannot be read.
        """
        if not self.is_stored:
            return pixels_of(self._images, slice(chunk.start, chunk.stop))
        self.expect(chunk)
        return self._chunks[chunk].result()

    def expect(self, chunk: Chunk) -> None:
        """Begins to read a chunk; the one that was asked for longest ago is forgotten."""
        if self._reader is None:
            return
        known = self._chunks.pop(chunk, None)
        while len(self._chunks) >= KEPT:
            del self._chunks[next(iter(self._chunks))]
        self._chunks[chunk] = known or self._reader.submit(pixels_of, self._images, slice(chunk.start, chunk.stop))

    def close(self) -> None:
        """Stops reading."""
        if self._reader is not None:
            self._reader.shutdown(wait=False, cancel_futures=True)
