"""CIFAR-10 and CIFAR-100 from their official files, checked against the MD5 that torchvision publishes."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from robench.types import Dataset, RobenchError

TIMEOUT = 30  # seconds without a byte before a download is given up; torchvision's own downloader has none


def load_cifar(name: str, split: str, data_dir: Path) -> Dataset:
    """One split of "cifar10" or "cifar100" (fine and coarse labels), downloaded into ``data_dir`` where absent.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html
    """
    import numpy as np
    import torch
    from torchvision.datasets import CIFAR10, CIFAR100

    official = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = data_dir / official.base_folder
    meta_file = (official.meta["filename"], official.meta["md5"])
    files = [*official.train_list, *official.test_list, meta_file]
    missing = [file for file, _ in files if not (folder / file).is_file()]
    if missing:
        _download(official, name, data_dir, missing)
    meta = _read(folder, *meta_file)
    batches = [_read(folder, *entry) for entry in (official.train_list if split == "train" else official.test_list)]
    fine = "labels" if name == "cifar10" else "fine_labels"
    labels = torch.tensor([label for batch in batches for label in batch[fine]])
    pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    coarse = [label for batch in batches for label in batch.get("coarse_labels", [])]
    return Dataset(
        name=name,
        split=split,
        images=torch.from_numpy(pixels),
        labels=labels,
        classes=tuple(meta[official.meta["key"]]),
        coarse_labels=torch.tensor(coarse) if coarse else None,
        coarse_classes=tuple(meta.get("coarse_label_names", ())),
    )


class CifarFiles(NamedTuple):
    """The folder of a data set, which of its files are missing, and which are not the published ones."""

    folder: Path
    missing: list[str]
    damaged: list[str]


def cifar_files(name: str, data_dir: Path) -> CifarFiles:
    """What is there of "cifar10" or "cifar100"."""
    from torchvision.datasets import CIFAR10, CIFAR100

    official = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = data_dir / official.base_folder
    files = [*official.train_list, *official.test_list, (official.meta["filename"], official.meta["md5"])]
    missing = [file for file, _ in files if not (folder / file).is_file()]
    present = [(file, md5) for file, md5 in files if file not in missing]
    damaged = [file for file, md5 in present if hashlib.md5((folder / file).read_bytes()).hexdigest() != md5]
    return CifarFiles(folder, missing, damaged)


def _read(folder: Path, file: str, md5: str) -> dict[str, Any]:
    """The content of one official pickle, which is opened only if it is the published one to the byte."""
    content = (folder / file).read_bytes()
    if hashlib.md5(content).hexdigest() != md5:
        raise RobenchError(
            f"{folder / file} is damaged: its MD5 is not the published {md5}; delete {folder} and run the same command again "
            "to download it"
        )
    return pickle.loads(content, encoding="latin1")


def _download(official: Any, name: str, data_dir: Path, missing: list[str]) -> None:
    """Fetches and unpacks the official archive; the files appear only once the archive has the published MD5."""
    ways_out = (
        f"(1) on a machine with network, download {official.url} and unpack it into {data_dir}; (2) point `data_dir` or "
        f"$ROBENCH_DATA at a folder that has {official.base_folder}/; (3) use `dataset=digits`, which needs no download"
    )
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as scratch:
            archive = Path(scratch) / official.filename
            _fetch(official.url, archive)
            if hashlib.md5(archive.read_bytes()).hexdigest() != official.tgz_md5:
                raise RobenchError(
                    f"the download of {official.url} is damaged (MD5 is not {official.tgz_md5}); try again, or {ways_out}"
                )
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            target = data_dir / official.base_folder
            target.mkdir(exist_ok=True)
            for file in (Path(scratch) / official.base_folder).iterdir():
                os.replace(file, target / file.name)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise RobenchError(
            f"{name} is not in {data_dir} (no {official.base_folder}/{missing[0]}) and cannot be downloaded: {reason}. Ways out: {ways_out}"
        ) from None
    except OSError as error:
        raise RobenchError(f"cannot store {name} in {data_dir}: {error.strerror or error}. Ways out: {ways_out}") from None


def _fetch(url: str, target: Path) -> None:
    from tqdm import tqdm

    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(target, "wb") as file:
        total = int(answer.headers.get("Content-Length", 0)) or None
        with tqdm.wrapattr(answer, "read", total=total, desc=f"downloading {target.name}", unit="B") as stream:
            shutil.copyfileobj(stream, file)
