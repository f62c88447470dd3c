"""Models that somebody's Python code builds: ``FILE.py:FACTORY`` and ``package.module:FACTORY``. Loading one runs that code."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from torch import nn

from robench.models.adapting import as_module
from robench.models.loaded_model import LoadedModel
from robench.types import Dataset, ExternalModel, RobenchError
from robench.user_code import load_module, somebody_elses_code


def load_file(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    """The module that ``FILE.py:FACTORY`` returns.

    Raises:
        RobenchError: no such file or function; it raised; its result is no module.
    """
    reference = external.reference
    file, _, function = reference.rpartition(":")
    path = Path(file)
    if not file and Path(reference).is_file():
        raise RobenchError(f"`model={reference!r}` lacks the function to call: write {reference}:FACTORY, such as {reference}:make")
    if not file or not path.is_file():
        raise RobenchError(
            f"`model={reference!r}`: no file {file or reference!r}; expected FILE.py:FACTORY, such as my_model.py:make"
        )
    said = f"`model={reference!r}`"
    namespace = load_module(path, said)
    with somebody_elses_code(said, path.resolve().parent):
        module = _made(namespace, function, reference, str(path))
    return LoadedModel(as_module(module), f"{path.stem}-{function}", code=path.read_bytes())


def load_package(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    """The module that ``package.module:FACTORY`` returns, of an installed package or one in the working directory.

    Raises:
        RobenchError: no such module or function; it raised; its result is no module.
    """
    name, _, function = external.reference.rpartition(":")
    with somebody_elses_code(f"`model={external.reference!r}`", Path.cwd()):
        try:
            namespace = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            raise RobenchError(
                f"`model={external.reference!r}`: there is no Python module {error.name!r} here; install it, or write FILE.py:FACTORY"
            ) from None
        module = _made(namespace, function, external.reference, name)
    file = getattr(namespace, "__file__", None)
    return LoadedModel(as_module(module), f"{name.rpartition('.')[2]}-{function}", code=Path(file).read_bytes() if file else b"")


def _made(namespace: ModuleType, name: str, reference: str, shown: str) -> object:
    """What the named function returns; a module that stands there ready is taken as it is."""
    made = getattr(namespace, name, None)
    if isinstance(made, nn.Module):
        return made
    if not callable(made):
        raise RobenchError(f"`model={reference!r}`: {shown} has no function {name!r}")
    return made()
