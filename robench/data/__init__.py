"""DATASETS: name -> one split. EXTERNAL_DATA: what people's own data may look like."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from robench.data.location import data_folder as data_folder
from robench.data.preprocessing import OwnPreprocessing
from robench.data.reading import Reading
from robench.types import Dataset, ExternalData, RobenchError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class DatasetEntry:
    """How to load a data set.

    Attributes:
        load: ``load(split, data_dir) -> Dataset``; ``load(split, path, reading)`` where it consists of pictures in files.
        about: one line for ``robench list``.
        of_pictures: whether it does, so that how they are read can be asked for.
        splits: that it has.
    """

    load: Callable[..., Dataset]
    about: str
    of_pictures: bool = False
    splits: tuple[str, ...] = SPLITS

    def loaded(self, name: str, split: str, place: Path, reading: Reading) -> Dataset:
        """The split, read as asked for.

        Raises:
            RobenchError: a reading was asked for that these data do not have; see ``load``.
        """
        if self.of_pictures:
            return self.load(split, place, reading)
        options = ("resize", "crop", "interpolation", "check", "subset")
        asked = [option for option in options if getattr(reading, option) not in (None, False, "none")]
        if asked:
            raise RobenchError(
                f"`{asked[0]}` is about pictures in files, and {name} is an array of pixels: leave it out, or resize inside the model"
            )
        return self.load(split, place)


def _digits(split: str, data_dir: Path) -> Dataset:
    from robench.data.digits import load_digits

    return load_digits(split)


def _cifar10(split: str, data_dir: Path) -> Dataset:
    from robench.data.cifar import load_cifar

    return load_cifar("cifar10", split, data_dir)


def _cifar100(split: str, data_dir: Path) -> Dataset:
    from robench.data.cifar import load_cifar

    return load_cifar("cifar100", split, data_dir)


def _imagenet(split: str, data_dir: Path, reading: Reading) -> Dataset:
    from robench.data.imagenet import load_imagenet

    return load_imagenet(split, data_dir, reading)


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(
        _digits, "1,797 handwritten digits of scikit-learn, 32x32, 10 classes in 3 shapes; no download; Linf 0.2"
    ),
    "cifar10": DatasetEntry(_cifar10, "CIFAR-10, 60,000 images, 32x32, 10 classes; Linf 8/255"),
    "cifar100": DatasetEntry(_cifar100, "CIFAR-100, 60,000 images, 32x32, 100 classes in 20 superclasses; Linf 8/255"),
    "imagenet": DatasetEntry(
        _imagenet,
        "ImageNet's 50,000 validation pictures, 1,000 classes, from your own copy in imagenet/; Linf 4/255",
        of_pictures=True,
        splits=("test",),
    ),
}


def _folder(split: str, path: Path, reading: Reading) -> Dataset:
    from robench.data.folder import load_folder

    return load_folder(path, split, reading)


def _npz(split: str, path: Path) -> Dataset:
    from robench.data.npz import load_npz

    return load_npz(path, split)


def _parquet(split: str, path: Path, reading: Reading) -> Dataset:
    from robench.data.parquet import load_parquet

    return load_parquet(path, split, reading)


EXTERNAL_DATA: dict[str, DatasetEntry] = {
    "FOLDER": DatasetEntry(
        _folder, "your images, one sub-folder per class, alone or below train/ and test/; Linf 8/255", of_pictures=True
    ),
    "FOLDER of parquet": DatasetEntry(
        _parquet, "an image set as the Hugging Face Hub keeps it, train-*.parquet, test-*.parquet", of_pictures=True
    ),
    "FILE.npz": DatasetEntry(_npz, "your arrays: images and labels, or x_test and y_test (and x_train, y_train), and classes"),
}


def external_data(path: Path) -> DatasetEntry | None:
    """How to load what lies at a path, None where nothing does that looks like data."""
    if path.is_file():
        return EXTERNAL_DATA["FILE.npz"] if path.suffix == ".npz" else None
    if not path.is_dir():
        return None
    from robench.data.parquet import parquet_files

    return EXTERNAL_DATA["FOLDER of parquet" if parquet_files(path) else "FOLDER"]


def load_dataset(
    name: str | ExternalData, split: str = "test", data_dir: str | Path | None = None, *, own: OwnPreprocessing | None = None, tell: bool = False
) -> Dataset:  # fmt: skip
    """One split of a data set by name, or of people's own data by its path.

    Args:
        name: a name in ``DATASETS``, or a path; with how its pictures are to be read.
        split: "train" or "test".
        data_dir: see ``data_folder``.
        own: what the model's files say about preprocessing.
        tell: say on stderr how pictures are read.

    Raises:
        RobenchError: no such data set or folder; the files are absent, damaged, or not what they should be.
    """
    asked = name if isinstance(name, ExternalData) else ExternalData(name)
    named = str(asked.reference)
    if split not in SPLITS:
        raise RobenchError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    reading = Reading(
        resize=asked.resize, crop=asked.crop, interpolation=asked.interpolation, own=own, check=asked.check, subset=asked.subset, told=tell,
        recorded=asked.recorded,
    )  # fmt: skip
    if named in DATASETS:
        if tell and Path(named).is_dir():
            print(f"robench: {named} is the data set of that name; the folder here is ./{named}", file=sys.stderr)
        return DATASETS[named].loaded(named, split, data_folder(data_dir), reading)
    external = external_data(Path(named))
    if external is not None:
        return external.loaded(named, split, Path(named), reading)
    if Path(named).is_file():
        raise RobenchError(f"`dataset={named}`: expected a folder of images per class, a folder of parquet files, or a .npz file")
    raise RobenchError(
        f"unknown dataset {named!r}{did_you_mean(named, DATASETS)}; `robench list datasets` shows all {len(DATASETS)}, and a path to "
        "a folder with one sub-folder of images per class, or to a .npz file, works too"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'pgd20'?)"`` where something known is spelt alike, else nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
