"""Some of a data set's samples, in an order of their own; of stored images none is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from robench.types import Dataset, StoredImages

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ChosenImages:
    """Some of other ``StoredImages``, themselves such.

    Attributes:
        images: all of them.
        places: of those that are chosen, in their order.
    """

    images: StoredImages
    places: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        _, channels, height, width = self.images.shape
        return len(self), channels, height, width

    @property
    def digest(self) -> str:
        """See ``StoredImages``."""
        return hashlib.sha256(f"{self.images.digest} {','.join(map(str, self.places))}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.places)

    def read(self, places: Sequence[int]) -> Tensor:
        """See ``StoredImages``."""
        return self.images.read([self.places[place] for place in places])

    def name(self, place: int) -> str:
        """See ``StoredImages``."""
        return self.images.name(self.places[place])

    def is_here(self) -> bool:
        """See ``StoredImages``."""
        return self.images.is_here()


def chosen_samples(data: Dataset, places: Tensor) -> Dataset:
    """A split of some samples alone.

    Args:
        data: the whole split.
        places: which ones, int64 (n,), in the order that they get.
    """
    stored = ChosenImages(cast(StoredImages, data.images), tuple(places.tolist())) if data.is_stored else None
    coarse = None if data.coarse_labels is None else data.coarse_labels[places]
    return replace(data, images=stored or data.pixels(places), labels=data.labels[places], coarse_labels=coarse)
