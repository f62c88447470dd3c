"""People's own data: a folder with one sub-folder of images per class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from robench.data.file_index import Stat, index_files
from robench.data.picture_files import PictureFiles
from robench.data.pictures import IMAGE_SUFFIXES
from robench.data.preprocessing import Preprocessing
from robench.data.reading import AS_THEY_ARE, Reading
from robench.types import Dataset, RobenchError, StoredImages

if TYPE_CHECKING:
    from torch import Tensor

TEST_SHARE = 5  # one image in five
HELD_BYTES = 2**30  # of pixels: what is smaller, and needs no preprocessing, is held as one tensor


def load_folder(root: Path, split: str, reading: Reading = AS_THEY_ARE) -> Dataset:
    """``root/train/CLASS/*`` and ``root/test/CLASS/*`` (or ``val``); without them ``root/CLASS/*``, split by ourselves.

    Our split takes every fifth image of each class, by name, as test. Samples come in one fixed order that deals the
    classes in turn, so that the first n hold all of them. Images are read as RGB, upright.

    Raises:
        RobenchError: no classes, no images, an unreadable image; images of unequal size, and nothing says what to make of them.
    """
    reading.refuse_subset(str(root))
    sources = {"train": ["train"], "test": ["test", "val"]}[split]
    given = next((root / name for name in sources if (root / name).is_dir()), None)
    if given is None and any((root / name).is_dir() for name in ("train", "test", "val")):
        raise RobenchError(f"{root} has a folder for one split, but none for {split!r}; expected {' or '.join(sources)} beside it")
    base = given or root
    classes = tuple(sorted(entry.name for entry in os.scandir(base) if entry.is_dir() and not entry.name.startswith(".")))
    if len(classes) < 2:
        raise RobenchError(f"{base} holds {len(classes)} class folders, expected at least 2: one folder of images per class")
    listed = [
        Labelled(file, label) for label, name in enumerate(classes) for file in _images_of(base, name, split, ours=given is None)
    ]
    if not listed:
        raise RobenchError(f"{base} holds no images in its class folders; known endings: {' '.join(sorted(IMAGE_SUFFIXES))}")
    order = balanced_order([each.label for each in listed])
    files, labels = [listed[place].file for place in order], [listed[place].label for place in order]
    return dataset_of_files(root.resolve().name, split, base, files, labels, classes=classes, reading=reading, path=str(root))


class Labelled(NamedTuple):
    """A picture file and the number of its class."""

    file: Stat
    label: int


def dataset_of_files(
    name: str, split: str, root: Path, files: list[Stat], labels: Sequence[int], *, classes: tuple[str, ...], reading: Reading,
    path: str = "", upright: bool = True, default: Preprocessing | None = None, default_eps: Mapping[str, str] | None = None,
) -> Dataset:  # fmt: skip
    """A split whose images lie in files: held as one tensor where it is small, and taken as it is; else read when it is needed.

    Args:
        name, split, labels, classes, path, default_eps: of the data set.
        root: the folder.
        files: in the order of the split.
        reading: how files become pixels.
        upright: turn pictures as their EXIF tags say.
        default: the preprocessing of data that have a usual one.

    Raises:
        RobenchError: files are damaged; see ``Reading.settled``.
    """
    import torch

    index = index_files(root, files, check=reading.check)
    settled = reading.settled(index.sizes(upright=upright), str(root), default)
    stored = PictureFiles.of_index(root, index, settled.size, settled.preprocessing, upright=upright)
    images = held_if_small(stored, settled.preprocessing)
    known = torch.as_tensor(np.asarray(labels, np.int64))
    data = Dataset(name, split, images, known, classes, path=path, reading=settled.described)
    return data if default_eps is None else replace(data, default_eps=default_eps)


def held_if_small(stored: StoredImages, preprocessing: Preprocessing | None) -> Tensor | StoredImages:
    """Stored images, or the tensor of all of them where it is small and every picture is taken as it is."""
    n, channels, height, width = stored.shape
    if preprocessing or n * channels * height * width > HELD_BYTES:
        return stored
    return stored.read(range(n))


def balanced_order(labels: Sequence[int], *, mixed: bool = False) -> list[int]:
    """One fixed order in which the first n samples hold all classes as evenly as they come: shuffled within each, then dealt in turn.

    Args:
        labels: of the samples.
        mixed: deal the classes in another order at every turn, so that fewer samples than classes are not those of the first classes.
    """
    given, random = np.asarray(labels), np.random.RandomState(0)
    by_label = np.argsort(given, kind="stable")
    turns = np.empty(len(given), np.int64)
    for places in np.split(by_label, np.flatnonzero(np.diff(given[by_label])) + 1):
        turns[random.permutation(places)] = np.arange(len(places))
    within = random.random_sample(len(given)) if mixed else given
    return [int(place) for place in np.lexsort((within, turns))]


def list_pictures(base: Path, below: str) -> list[Stat]:
    """The picture files of a folder below another one, by name."""
    with os.scandir(base / below) as entries:
        pictures = (each for each in entries if Path(each.name).suffix.lower() in IMAGE_SUFFIXES and not each.name.startswith("."))
        found = [(entry.name, entry.stat()) for entry in sorted(pictures, key=lambda each: each.name)]
    return [
        Stat(f"{below}/{name}" if below else name, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns) for name, facts in found
    ]


def _images_of(base: Path, name: str, split: str, *, ours: bool) -> list[Stat]:
    files = list_pictures(base, name)
    if not ours:
        return files
    return [file for place, file in enumerate(files) if (place % TEST_SHARE == 0) == (split == "test")]
