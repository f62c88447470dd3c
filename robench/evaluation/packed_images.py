"""Adversarial images on disk: 16 bits a pixel where that keeps the verdict, float32 where it does not."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robench.digest import digest_tensors
from robench.types import RobenchError, ThreatModel

if TYPE_CHECKING:
    from robench.types import Images

LEVELS = 65535  # 257 * 255: eight-bit pixels and radii of k/255 are whole levels


@dataclass(frozen=True, eq=False)
class PackedImages:
    """Adversarial images of one attack and chunk.

    Attributes:
        index: places in the data set, int64 (N,).
        kind: "returned" by the attack, or "best" of its queries where only that one is adversarial, (N,).
        levels: uint16 (N, C, H, W); pixel value times 65535.
        exact_rows: rows that 16 bits would change the verdict of, int64 (K,).
        exact: those images, float32 (K, C, H, W).
    """

    index: np.ndarray
    kind: np.ndarray
    levels: np.ndarray
    exact_rows: np.ndarray
    exact: np.ndarray

    def unpack(self) -> Images:
        """The images, float32 (N, C, H, W)."""
        images = torch.from_numpy(self.levels.astype(np.float64) / LEVELS).float()
        images[torch.from_numpy(self.exact_rows)] = torch.from_numpy(self.exact)
        return images

    @property
    def digest(self) -> str:
        """sha256 over indices and pixels."""
        return digest_tensors({"index": torch.from_numpy(self.index), "images": self.unpack()})

    def to_bytes(self) -> bytes:
        """As it lies on disk."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{f.name: getattr(self, f.name) for f in fields(self)})
        return buffer.getvalue()


def pack(
    images: Images,
    adv_images: Images,
    index: np.ndarray,
    kind: np.ndarray,
    threat: ThreatModel,
    predict: Callable[[Images], Tensor],
) -> PackedImages:
    """Packs images so that what they are read back as is inside the ball and predicted as they were.

    Args:
        images, adv_images: float32 (N, C, H, W), on the classifier's device.
        index, kind: see ``PackedImages``.
        threat: the ball that they must stay in.
        predict: classes of images.
    """
    images, adv_images = images.double().cpu(), adv_images.detach().double().cpu()
    start, moved = (images * LEVELS).round(), (adv_images - images) * LEVELS
    whole = torch.where((moved - moved.round()).abs() < 0.05, moved.round(), moved.trunc())  # toward the clean image
    levels = (start + whole).clamp(0, LEVELS).numpy().astype(np.uint16)
    none = np.zeros(0, np.int64)
    packed = PackedImages(index, kind, levels, none, np.zeros((0, *images.shape[1:]), np.float32))
    again = packed.unpack()
    same = predict(again) == predict(adv_images.float())
    moved_out = threat.contains(images.float(), adv_images.float()) & ~threat.contains(images.float(), again)
    rows = torch.nonzero(~same.cpu() | moved_out).flatten()
    return PackedImages(index, kind, levels, rows.numpy(), adv_images[rows].float().numpy())


def read_packed(path: Path) -> PackedImages:
    """The packed images of a file.

    Raises:
        RobenchError: it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            packed = PackedImages(**{name: arrays[name] for name in arrays.files})
        if len(packed.levels) != len(packed.index):
            raise ValueError
        packed.unpack()
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile, EOFError):
        raise RobenchError(f"{path} is damaged; delete it and run the same `robench attack --save-adv` again") from None
    return packed
