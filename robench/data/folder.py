"""People's own data: a folder with one sub-folder of images per class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from robench.data.arrays import refuse_deep_images
from robench.types import Dataset, RobenchError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
TEST_SHARE = 5  # one image in five


def load_folder(root: Path, split: str) -> Dataset:
    """``root/train/CLASS/*`` and ``root/test/CLASS/*`` (or ``val``); without them ``root/CLASS/*``, split by ourselves.

    Our split takes every fifth image of each class, by name, as test. Samples come in one fixed order that deals the
    classes in turn, so that the first n hold all of them. All images must have one size; they are read as RGB.

    Raises:
        RobenchError: no classes, no images, images of unequal size, an unreadable image.
    """
    import torch

    sources = {"train": ["train"], "test": ["test", "val"]}[split]
    given = next((root / name for name in sources if (root / name).is_dir()), None)
    if given is None and any((root / name).is_dir() for name in ("train", "test", "val")):
        raise RobenchError(f"{root} has a folder for one split, but none for {split!r}; expected {' or '.join(sources)} beside it")
    base = given or root
    classes = tuple(sorted(entry.name for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if len(classes) < 2:
        raise RobenchError(f"{base} holds {len(classes)} class folders, expected at least 2: one folder of images per class")
    listed = [(path, label) for label, name in enumerate(classes) for path in _images_of(base / name, split, ours=given is None)]
    if not listed:
        raise RobenchError(f"{base} holds no images in its class folders; known endings: {' '.join(sorted(IMAGE_SUFFIXES))}")
    order = balanced_order([label for _, label in listed])
    return Dataset(
        name=root.resolve().name,
        split=split,
        images=stack([read_image(listed[i][0], str(listed[i][0])) for i in order], base),
        labels=torch.tensor([listed[i][1] for i in order]),
        classes=classes,
        path=str(root),
    )


def stack(pixels: list[np.ndarray], base: Path) -> Tensor:
    """Images (N, C, H, W) of arrays (H, W, C).

    Raises:
        RobenchError: they differ in size.
    """
    import numpy as np
    import torch

    sizes = Counter(image.shape[:2] for image in pixels)
    if len(sizes) > 1:
        seen = ", ".join(f"{width}x{height}: {count}" for (height, width), count in sizes.most_common(4))
        raise RobenchError(f"the images in {base} differ in size ({seen}); scale them to one size first")
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def balanced_order(labels: list[int]) -> list[int]:
    """One fixed order in which the first n samples hold all classes as evenly as they come: shuffled within each, then dealt in turn."""
    import numpy as np

    random, rank = np.random.RandomState(0), {}
    for label in sorted(set(labels)):
        places = [place for place, each in enumerate(labels) if each == label]
        for turn, place in enumerate(random.permutation(places)):
            rank[int(place)] = (turn, label)
    return sorted(rank, key=rank.__getitem__)


def _images_of(folder: Path, split: str, *, ours: bool) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not ours:
        return paths
    return [path for place, path in enumerate(paths) if (place % TEST_SHARE == 0) == (split == "test")]


def read_image(source: Path | BinaryIO, named: str) -> np.ndarray:
    """An image file as RGB, uint8 (H, W, 3).

    Raises:
        RobenchError: it is none.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source) as image:
            refuse_deep_images(image.mode, named)
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise RobenchError(f"cannot read the image {named}: {error}") from None
