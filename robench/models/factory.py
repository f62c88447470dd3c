"""Models that somebody's Python code builds: ``FILE.py:FACTORY`` and ``package.module:FACTORY``. Loading one runs that code."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from torch import nn

from robench.models.adapting import as_module
from robench.models.loaded import Loaded
from robench.types import Dataset, OwnModel, RobenchError
from robench.user_code import load_module, somebody_elses_code


def load_file(own: OwnModel, dataset: Dataset) -> Loaded:
    """The module that ``FILE.py:FACTORY`` returns.

    Raises:
        RobenchError: no such file or function; it raised; its result is no module.
    """
    where = own.where
    file, _, function = where.rpartition(":")
    path = Path(file)
    if not file and Path(where).is_file():
        raise RobenchError(f"--model {where!r} lacks the function to call: write {where}:FACTORY, such as {where}:make")
    if not file or not path.is_file():
        raise RobenchError(f"--model {where!r}: no file {file or where!r}; expected FILE.py:FACTORY, such as my_model.py:make")
    said = f"--model {where!r}"
    namespace = load_module(path, said)
    with somebody_elses_code(said, path.resolve().parent):
        module = _made(namespace, function, where, str(path))
    return Loaded(as_module(module), f"{path.stem}-{function}", code=path.read_bytes())


def load_package(own: OwnModel, dataset: Dataset) -> Loaded:
    """The module that ``package.module:FACTORY`` returns, of an installed package or one in the working directory.

    Raises:
        RobenchError: no such module or function; it raised; its result is no module.
    """
    name, _, function = own.where.rpartition(":")
    with somebody_elses_code(f"--model {own.where!r}", Path.cwd()):
        try:
            namespace = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            raise RobenchError(
                f"--model {own.where!r}: there is no Python module {error.name!r} here; install it, or write FILE.py:FACTORY"
            ) from None
        module = _made(namespace, function, own.where, name)
    file = getattr(namespace, "__file__", None)
    return Loaded(as_module(module), f"{name.rpartition('.')[2]}-{function}", code=Path(file).read_bytes() if file else b"")


def _made(namespace: ModuleType, name: str, where: str, shown: str) -> object:
    """What the named function returns; a module that stands there ready is taken as it is."""
    found = getattr(namespace, name, None)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise RobenchError(f"--model {where!r}: {shown} has no function {name!r}")
    return found()
