"""robustbench: its zoo of models, and the clash of its files with torchattacks' wheel."""

from __future__ import annotations

import base64
import hashlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, PackagePath, distribution, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from robench.types import RobenchError

if TYPE_CHECKING:
    from torch import nn


def damaged_files() -> list[str]:
    """Files of an installed robustbench that are not the ones it was installed with; empty where all is well or it is absent.

    torchattacks' wheels (2.11 to 3.5.1) carry an old top-level ``robustbench/``, so that whichever of the two is installed last
    wins, and removing torchattacks deletes robustbench's files; ``pip check`` sees none of it. The metadata is asked and not the
    import system, which finds torchattacks' copy where robustbench was never installed.
    """
    try:
        files = distribution("robustbench").files or []
    except PackageNotFoundError:
        return []
    return [str(file) for file in files if not _is_intact(file)]


def _is_intact(file: PackagePath) -> bool:
    """Whether a file is as its package says; one of which the package says nothing is."""
    if file.hash is None:
        return True
    try:
        content = Path(file.locate()).read_bytes()
    except OSError:
        return False
    digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, content).digest()).rstrip(b"=").decode()
    return digest == file.hash.value


def clash_warning() -> str | None:
    """What a user must be told before a run, or None."""
    damaged = damaged_files()
    if not damaged:
        return None
    return (
        f"{len(damaged)} files of robustbench were overwritten or removed by another package (torchattacks' wheel carries old copies), "
        f"{damaged[0]} among them; repair: pip install --force-reinstall --no-deps robustbench==1.1.1"
    )


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        dataset, threat, name: what RobustBench calls it, such as "cifar10", "Linf", "Carmon2019Unlabeled".
        files: below the zoo's folder, to their identifiers on Google Drive; empty where another library fetches them.
    """

    dataset: str
    threat: str
    name: str
    files: Mapping[str, str]


def library() -> str:
    """The installed library with its version."""
    return f"robustbench {version('robustbench')}"


def zoo() -> dict[tuple[str, str, str], Entry]:
    """Every model of the installed zoo, by data set, threat model and name.

    Raises:
        RobenchError: robustbench is not installed, damaged, or not importable.
    """
    with _importable():
        from robustbench.model_zoo import model_dicts
    entries = {}
    for dataset, threats in model_dicts.items():
        for threat, models in threats.items():
            for name, about in models.items():
                entry = Entry(dataset.value, threat.value, name, _files(dataset.value, threat.value, name, about["gdrive_id"]))
                entries[dataset.value, threat.value, name] = entry
    return entries


def _files(dataset: str, threat: str, name: str, identifiers: Any) -> dict[str, str]:
    """The names that ``load_model`` looks for (robustbench 1.1.1), to identifiers."""
    if not identifiers or (dataset == "imagenet" and "Standard" in name):
        return {}
    base = f"{dataset}/{threat}/{name}.pt"
    return (
        {f"{base}_m{i}.pt": identifier for i, identifier in enumerate(identifiers)}
        if isinstance(identifiers, list)
        else {base: identifiers}
    )


def download(identifier: str, path: Path) -> None:
    """Fetches a file of the zoo; what arrives may be anything.

    Raises:
        RobenchError: the network does not answer.
    """
    with _importable():
        from robustbench.utils import download_gdrive_new
    try:
        download_gdrive_new(identifier, path)
    except Exception as error:  # gdown's own, the network library's, the system's
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RobenchError(
            f"the zoo's file {identifier} cannot be downloaded ({type(error).__name__}: {first[:150]}); fetch it on another machine"
        ) from None


def load(entry: Entry, folder: Path) -> nn.Module:
    """The model, from files that lie below ``folder``; it normalises by itself.

    Raises:
        RobenchError: robustbench cannot build it.
    """
    with _importable():
        from robustbench.utils import load_model
    try:
        return load_model(entry.name, folder, entry.dataset, entry.threat)
    except Exception as error:  # architectures of many authors
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RobenchError(f"robustbench cannot build {entry.name} ({type(error).__name__}: {first[:150]})") from error


@contextmanager
def _importable() -> Iterator[None]:
    """Stands in for what robustbench 1.1.1 imports but its dependencies do not bring: ``autoattack``, which is installed as
    pyautoattack, and pkg_resources, which setuptools dropped in 82. Needless once it names what it needs."""
    try:
        distribution("robustbench")
    except PackageNotFoundError:
        raise RobenchError("robustbench is not installed: pip install 'robench[robustbench]'") from None
    warning = clash_warning()
    if warning:
        raise RobenchError(warning)
    added = []
    try:
        for name, module in _stand_ins().items():
            if name not in sys.modules and find_spec(name.partition(".")[0]) is None:
                sys.modules[name] = module
                added.append(name)
        with warnings.catch_warnings(action="ignore"):  # timm's, about names that the zoo still uses
            yield
    except ImportError as error:
        raise RobenchError(f"robustbench cannot be imported: {error}; pip install 'robench[robustbench]'") from None
    finally:
        for name in added:
            del sys.modules[name]


def _stand_ins() -> dict[str, ModuleType]:
    import pyautoattack
    import pyautoattack.state

    resources = ModuleType("pkg_resources")
    resources.resource_filename = lambda package, path: str(Path(sys.modules[package].__file__ or "").parent / path)  # type: ignore[attr-defined]
    return {"autoattack": pyautoattack, "autoattack.state": pyautoattack.state, "pkg_resources": resources}
