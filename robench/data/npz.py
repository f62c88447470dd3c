"""People's own data: arrays in one .npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from robench.data.arrays import to_images, to_labels
from robench.types import Dataset, RobenchError

IMAGES, LABELS, CLASSES = (
    ("images", "x", "X", "data"),
    ("labels", "y", "label", "targets"),
    ("classes", "class_names", "label_names"),
)
SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}


def load_npz(path: Path, split: str) -> Dataset:
    """``x_test``, ``y_test`` (``images_test``, ``test_labels``, ... and the same for train), or one set ``images``, ``labels``.

    One set is a test set, in its own order. Class names stand under ``classes``; without them classes are numbers.

    Raises:
        RobenchError: it is no such file, an array is missing, or its values are no images or labels.
    """
    arrays = _read(path)
    sets = {name: _keys(arrays, tags) for name, tags in SPLITS.items()}
    whole = _keys(arrays, ("",))
    if not any(sets.values()) and whole:
        sets = {"train": None, "test": whole}
    keys = sets[split]
    if keys is None:
        raise RobenchError(
            f"{path} has the arrays {', '.join(arrays) or 'nothing'}, expected x_{split} and y_{split}"
            + (", or images and labels" if split == "test" else "; one set, images and labels, is for testing only")
        )
    names = _classes(arrays, path)
    images = to_images(arrays[keys.images], f"{path}: {keys.images}")
    labels = to_labels(arrays[keys.labels], len(images), names, f"{path}: {keys.labels}")
    if split == "train" and images.is_floating_point():
        raise RobenchError(f"{path}: {keys.images} are floats between the 256 levels of 8 bits; to train, store uint8")
    all_labels = [arrays[each.labels] for each in sets.values() if each]
    used = [int(each.max()) for each in all_labels if np.issubdtype(each.dtype, np.integer)]
    return Dataset(
        name=path.stem, split=split, images=images, labels=labels, classes=names or tuple(map(str, range(max(used) + 1))),
        path=str(path),
    )  # fmt: skip


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise RobenchError(
                    f"{path} holds one array, expected images and labels: np.savez('data.npz', images=..., labels=...)"
                )
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        code = "pickled objects, which are not loaded since they can run code" if "allow_pickle" in str(error) else str(error)
        raise RobenchError(
            f"{path} is no readable .npz file of plain arrays ({code[:150]}); write it with np.savez('data.npz', images=..., labels=...)"
        ) from None


class Keys(NamedTuple):
    """The names of the arrays that hold a split's images and labels."""

    images: str
    labels: str


def _keys(arrays: dict[str, np.ndarray], tags: tuple[str, ...]) -> Keys | None:
    """Where a split lies in the file; None where one of both is not there."""

    def named(stems: tuple[str, ...]) -> str | None:
        tagged = [name for tag in tags for stem in stems for name in ((f"{stem}_{tag}", f"{tag}_{stem}") if tag else (stem,))]
        return next((name for name in tagged if name in arrays), None)

    images, labels = named(IMAGES), named(LABELS)
    return Keys(images, labels) if images and labels else None


def _classes(arrays: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    name = next((name for name in CLASSES if name in arrays), None)
    if name is None:
        return ()
    if arrays[name].ndim != 1 or len(set(arrays[name].tolist())) != len(arrays[name]):
        raise RobenchError(f"{path}: {name} must be one list of different names, in the order of the labels")
    return tuple(each.decode() if isinstance(each, bytes) else str(each) for each in arrays[name].tolist())
