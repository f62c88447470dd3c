"""DATASETS: name -> one split as one tensor. OWN_DATA: what people's own data may look like."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from robench.types import Dataset, RobenchError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class DatasetEntry:
    """How to load a data set: ``load(split, data_dir or its own path) -> Dataset``, and one line about it for ``robench list``."""

    load: Callable[[str, Path], Dataset]
    about: str


def _digits(split: str, data_dir: Path) -> Dataset:
    from robench.data.digits import load_digits

    return load_digits(split)


def _cifar10(split: str, data_dir: Path) -> Dataset:
    from robench.data.cifar import load_cifar

    return load_cifar("cifar10", split, data_dir)


def _cifar100(split: str, data_dir: Path) -> Dataset:
    from robench.data.cifar import load_cifar

    return load_cifar("cifar100", split, data_dir)


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(
        _digits, "1,797 handwritten digits of scikit-learn, 32x32, 10 classes in 3 shapes; no download; Linf 0.2"
    ),
    "cifar10": DatasetEntry(_cifar10, "CIFAR-10, 60,000 images, 32x32, 10 classes; Linf 8/255"),
    "cifar100": DatasetEntry(_cifar100, "CIFAR-100, 60,000 images, 32x32, 100 classes in 20 superclasses; Linf 8/255"),
}


def _folder(split: str, path: Path) -> Dataset:
    from robench.data.folder import load_folder

    return load_folder(path, split)


def _npz(split: str, path: Path) -> Dataset:
    from robench.data.npz import load_npz

    return load_npz(path, split)


def _parquet(split: str, path: Path) -> Dataset:
    from robench.data.parquet import load_parquet

    return load_parquet(path, split)


EXTERNAL_DATA: dict[str, DatasetEntry] = {
    "FOLDER": DatasetEntry(_folder, "your images, one sub-folder per class, alone or below train/ and test/; Linf 8/255"),
    "FOLDER of parquet": DatasetEntry(_parquet, "an image set as the Hugging Face Hub keeps it, train-*.parquet, test-*.parquet"),
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


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Where data sets lie: ``data_dir``, else ``$ROBENCH_DATA``, else the user's cache."""
    if data_dir:
        return Path(data_dir).expanduser()
    if os.environ.get("ROBENCH_DATA"):
        return Path(os.environ["ROBENCH_DATA"]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "robench"


def load_dataset(name: str, split: str = "test", data_dir: str | Path | None = None) -> Dataset:
    """One split of a data set by name, or of people's own data by its path.

    Args:
        name: a name in ``DATASETS``, or a path.
        split: "train" or "test".
        data_dir: see ``data_folder``.

    Raises:
        RobenchError: no such data set or folder; the files are absent, damaged, or not what they should be.
    """
    if split not in SPLITS:
        raise RobenchError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if name in DATASETS:
        return DATASETS[name].load(split, data_folder(data_dir))
    external = external_data(Path(name))
    if external is not None:
        return external.load(split, Path(name))
    if Path(name).is_file():
        raise RobenchError(f"`dataset={name}`: expected a folder of images per class, a folder of parquet files, or a .npz file")
    raise RobenchError(
        f"unknown dataset {name!r}{did_you_mean(name, DATASETS)}; `robench list datasets` shows all {len(DATASETS)}, and a path to "
        "a folder with one sub-folder of images per class, or to a .npz file, works too"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'pgd20'?)"`` where something known is spelt alike, else nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
