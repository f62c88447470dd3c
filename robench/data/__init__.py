"""DATASETS: name -> one split as one tensor. A folder of images per class is a data set too."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robench.types import Dataset, RobenchError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class DatasetEntry:
    """How to load a data set: ``load(split, data_dir) -> Dataset``, and one line about it for ``robench list``."""

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


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Where data sets lie: ``data_dir``, else ``$ROBENCH_DATA``, else the user's cache."""
    if data_dir:
        return Path(data_dir).expanduser()
    if os.environ.get("ROBENCH_DATA"):
        return Path(os.environ["ROBENCH_DATA"]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "robench"


def load_dataset(name: str, split: str = "test", data_dir: str | Path | None = None) -> Dataset:
    """One split of a data set by name, or of a folder that has one sub-folder of images per class.

    Args:
        name: a name in ``DATASETS``, or a path.
        split: "train" or "test".
        data_dir: see ``data_folder``.

    Raises:
        RobenchError: no such data set or folder; the files are absent, damaged, or of unequal size.
    """
    if split not in SPLITS:
        raise RobenchError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if name in DATASETS:
        return DATASETS[name].load(split, data_folder(data_dir))
    if Path(name).is_dir():
        from robench.data.folder import load_folder

        return load_folder(Path(name), split)
    raise RobenchError(
        f"unknown dataset {name!r}{did_you_mean(name, DATASETS)}; `robench list datasets` shows all {len(DATASETS)}, and a path to "
        "a folder with one sub-folder of images per class works too"
    )


def did_you_mean(name: str, known) -> str:
    """``" (did you mean 'pgd20'?)"`` where something known is spelt alike, else nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
