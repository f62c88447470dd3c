"""RobustBench's zoo: ``robustbench:NAME``, or with the data set and threat model in front, ``robustbench:cifar10/L2/NAME``."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from robench.adapters import robustbench
from robench.data import data_folder, did_you_mean
from robench.files import PARTIAL
from robench.formats import Format, recognise
from robench.models.loaded_model import LoadedModel
from robench.models.weights import read_plain
from robench.types import Dataset, ExternalModel, RobenchError


def load_zoo(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    """A model of the zoo, whose weights are fetched once, checked, and kept beside the data sets.

    RobustBench publishes no hashes: a file must be one of torch.save that loads as plain tensors; its sha256 goes into run.json.

    Raises:
        RobenchError: robustbench is not installed or damaged, has no such model, or the download is none.
    """
    parts = external.reference.partition(":")[2].split("/")
    entry = _choose(parts[-1], parts[:-1], dataset, robustbench.zoo())
    folder = data_folder(external.data_dir) / "robustbench"
    files = {file: _fetched(folder / file, identifier) for file, identifier in entry.files.items()}
    origin = {
        "zoo": robustbench.library(),
        "zoo entry": "/".join((entry.dataset, entry.threat, entry.name)),
        "weights file sha256": files,
    }
    return LoadedModel(robustbench.load(entry, folder), entry.name, origin)


def _choose(
    name: str, given: list[str], dataset: Dataset, entries: Mapping[tuple[str, str, str], robustbench.Entry]
) -> robustbench.Entry:
    """The entry of a name, for the data set at hand unless another is given."""
    datasets, threats = {key[0] for key in entries}, {key[1] for key in entries}
    wanted = [part for part in given if part in datasets] or ([dataset.name] if dataset.name in datasets else [])
    if not wanted or any(part not in datasets | threats for part in given):
        raise RobenchError(
            f"robustbench:{'/'.join([*given, name])}: expected robustbench:NAME on {', '.join(sorted(datasets))}, or "
            f"robustbench:DATASET/THREAT/NAME with one of these and of {', '.join(sorted(threats))}; the data here is {dataset.name}"
        )
    matching = [
        entry for (of, threat, named), entry in entries.items()
        if (of, named) == (wanted[0], name) and (threat in given or not threats & set(given))
    ]  # fmt: skip
    if len(matching) > 1:
        ways = ", ".join(f"robustbench:{'/'.join((entry.dataset, entry.threat, entry.name))}" for entry in matching)
        raise RobenchError(f"robustbench:{name} is the name of several models; say which: {ways}")
    if not matching:
        known = sorted({named for of, _, named in entries if of == wanted[0]})
        raise RobenchError(
            f"robustbench has no model {name!r} for {'/'.join([*wanted, *(set(given) & threats)])}{did_you_mean(name, known)}"
        )
    if not matching[0].files:
        raise RobenchError(
            f"robustbench:{name} is one of those whose weights other libraries fetch unchecked; get its file and use "
            "`model=timm:NAME` or torchvision:NAME with `weights=FILE`"
        )
    return matching[0]


def _fetched(path: Path, identifier: str) -> str:
    """The sha256 of a weights file, downloaded where it is not there."""
    if not path.is_file():
        partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            robustbench.download(identifier, partial)
            _check_download(partial, f"the download of {path.name}", f"download it in a browser (file {identifier}) to {path}")
            os.replace(partial, path)
        except OSError as error:
            raise RobenchError(f"cannot store {path}: {error.strerror or error}; choose another `data_dir`") from None
        finally:
            partial.unlink(missing_ok=True)
    _check_download(path, str(path), "delete it and run the command again")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_download(path: Path, shown: str, remedy: str) -> None:
    """That a file is what zoo models are: one of torch.save, made of plain tensors."""
    if not path.is_file():
        raise RobenchError(f"{shown} brought no file; {remedy}")
    kind = recognise(path)
    if kind not in Format.PICKLES:
        why = " (Google Drive answers so when a file was asked for too often)" if kind == Format.HTML else ""
        raise RobenchError(f"{shown} is {kind}, not a model{why}; {remedy}")
    try:
        read_plain(path)
    except RobenchError as error:
        raise RobenchError(f"{shown} {str(error).removeprefix(str(path)).strip()}") from None
