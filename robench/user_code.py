"""Somebody's own Python file, loaded as a module, and what it raises said in one line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from robench.seeds import derive_seed
from robench.types import RobenchError


def load_module(path: Path, said: str) -> ModuleType:
    """A Python file as a module, run anew at every call. Running it runs its code.

    Args:
        path: the file.
        said: what a message begins with, such as "`attack='mine.py:shift'`".

    Raises:
        RobenchError: it is no Python file, or it raised.
    """
    path = path.resolve()
    name = _module_name(path)
    loader = _FromText(name, str(path)) if path.suffix == ".py" else None
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None or spec.loader is None:
        raise RobenchError(f"{said}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    with somebody_elses_code(said, path.parent):
        spec.loader.exec_module(module)
    return module


class _FromText(SourceFileLoader):
    """Loads a file as its text is now: a compiled copy is taken for it while it has the same size and the same second of change."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _module_name(path: Path) -> str:
    """The file's own name, unless a module of another file is called so: nobody's ``torch.py`` is to stand in for torch."""
    there = sys.modules.get(path.stem)
    if there is not None:
        file = getattr(there, "__file__", None)
    elif path.stem.isidentifier() and (spec := importlib.util.find_spec(path.stem)):
        file = spec.origin
    else:
        return path.stem
    return path.stem if file and Path(file).resolve() == path else f"{path.stem}_{derive_seed(path):x}"


@contextmanager
def somebody_elses_code(said: str, neighbours: Path) -> Iterator[None]:
    """Lets code import what lies beside it, as a script can, and says in one line what it raised."""
    sys.path.insert(0, str(neighbours))
    try:
        yield
    except RobenchError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's code may raise anything, and a script may end itself
        raise RobenchError(f"{said} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(neighbours))
