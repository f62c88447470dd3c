"""What a function computes, as a digest: the text of its file, and whatever it refers to. Two that may differ in a number differ here."""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.util
import logging
import os
import random
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from robench.digest import codes_of, digest_tensors, owner_of

INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
HERE = str(Path(__file__).parent)
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
AMBIENT = (
    logging.Logger,
    type(os.environ),
    random.Random,
)  # they differ from process to process and call to call, and are no settings
NOT_KEYED = ("torch", "torchvision", "numpy")  # chunks record torch's version, and their last bits alone depend on it


def digest_function(fn: Callable[..., Any]) -> str:
    """sha256 over the text of a function's file and everything that the function refers to.

    That is: closures, the globals that it names, and the same of every function and class that they are; modules that are not installed,
    by their text; installed packages, by their name and version. A function that has no file (of a notebook, of ``exec``) counts by its
    bytecode and constants. A file that was changed after it was imported does not count as what it says now.
    """
    return hashlib.sha256(_Walk(fn).of(fn).encode()).hexdigest()


def modules_of(fn: Callable[..., Any]) -> list[ModuleType]:
    """The modules that a function needs and that no other machine has: those that are not installed."""
    walk = _Walk(fn)
    walk.of(fn)
    return [walk.modules[name] for name in sorted(walk.modules)]


def innermost(fn: Any) -> Any:
    """The function that a partial or a method was made of, and the type of an object that can be called."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, MethodType):
        return fn.__func__
    return fn if isinstance(fn, FunctionType | BuiltinFunctionType) else type(fn)


def file_of(fn: Any) -> Path | None:
    """Where a function is written, None for one that was typed or made by ``exec``."""
    inner = innermost(fn)
    module = sys.modules.get(getattr(inner, "__module__", None) or "")
    name = inner.__code__.co_filename if isinstance(inner, FunctionType) else getattr(module, "__file__", None)
    return Path(name) if name and Path(name).is_file() else None


class _Walk:
    """A text for every value that is met; modules of somebody's own are noted on the way."""

    def __init__(self, root: Any) -> None:
        top = (getattr(innermost(root), "__module__", None) or "").partition(".")[0]
        self.package = top if top != "robench" else None  # counts by its text wherever it lies; robench, by its version
        self.modules: dict[str, ModuleType] = {}
        self._said: dict[int, str] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def of(self, value: Any) -> str:
        if isinstance(value, StrEnum) and type(value).__module__.startswith("robench."):
            value = value.value  # a word of robench's, such as ReturnPolicy.ANY, is the text that it is written as
        if isinstance(value, PLAIN):
            return f"{type(value).__name__} {value!r}"
        if id(value) not in self._said:
            self._said[id(value)] = f"{type(value).__name__} again"  # where it refers to itself
            self._kept.append(value)
            self._said[id(value)] = hashlib.sha256(self._described(value).encode()).hexdigest()
        return self._said[id(value)]

    def _described(self, value: Any) -> str:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, functools.partial):
            return f"partial {self.of(value.func)} {self.of(value.args)} {self.of(value.keywords)}"
        if isinstance(value, MethodType | staticmethod | classmethod):
            return f"method {self.of(value.__func__)} {self.of(getattr(value, '__self__', None))}"
        if isinstance(value, property):
            return f"property {self.of(value.fget)}"
        if isinstance(value, ModuleType):
            return self._module(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, CodeType):
            return self._code(value)
        return self._data(value)

    def _data(self, value: Any) -> str:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, list | tuple):
            return f"{kind} {[self.of(each) for each in value]}"
        if isinstance(value, set | frozenset):
            return f"{kind} {sorted(self.of(each) for each in value)}"
        if isinstance(value, BuiltinFunctionType):
            owner = owner_of(value)
            return f"{kind} {value.__module__}.{value.__qualname__}{'' if owner is None else self.of(owner)}"
        if isinstance(value, AMBIENT):
            return f"{kind} {getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        if isinstance(value, Mapping):
            return f"{kind} {sorted(self.of(key) + self.of(each) for key, each in value.items())}"
        if kind.startswith("torch.") and hasattr(value, "detach"):
            return f"{kind} {digest_tensors({'': value})}"
        if kind == "numpy.ndarray":
            return f"{kind} {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
        if hasattr(value, "named_modules") and hasattr(value, "state_dict"):
            return self._network(value)
        said = repr(value)
        inside = self.of(vars(value)) if hasattr(value, "__dict__") else "" if " at 0x" in said else said
        return f"{self.of(type(value))} {inside}"

    def _network(self, network: Any) -> str:
        """Weights, and what the layers are: not what they counted or remembered."""
        layers = [
            (
                name,
                self.of(type(layer)),
                {key: each for key, each in vars(layer).items() if key[0] != "_" and _is_plain(each)},
            )
            for name, layer in network.named_modules()
        ]
        tensors = dict(network.state_dict()) | dict(network.named_buffers())  # also those that are not saved
        return f"network {self.of(tensors)} {self.of(layers)}"

    def _function(self, fn: FunctionType) -> str:
        cells = [_content(cell) for cell in fn.__closure__ or ()]
        file = Path(fn.__code__.co_filename)
        if self._is_installed(fn.__module__, str(file) if file.is_file() else _module_file(fn.__module__)):
            return f"{fn.__module__}.{fn.__qualname__} {_version(fn.__module__)} {self.of(cells)}"
        self._note(fn.__module__)
        text = file.read_bytes() if file.is_file() else None
        said = f"{fn.__qualname__} {hashlib.sha256(text).hexdigest()}" if text is not None else fn.__qualname__
        if text is None or not _says(text, fn.__code__):
            said += self.of(fn.__code__)
        names = sorted({name for code in codes_of(fn.__code__) for name in code.co_names} & fn.__globals__.keys())
        named = {name: fn.__globals__[name] for name in names if not name.startswith("__")}
        imported = [self._imported(name) for code in codes_of(fn.__code__) for name in _imports(code)]
        return f"{said} {self.of([cells, fn.__defaults__, fn.__kwdefaults__, named, imported])}"

    def _class(self, cls: type) -> str:
        if self._is_installed(cls.__module__, _module_file(cls.__module__)):
            return f"{cls.__module__}.{cls.__qualname__} {_version(cls.__module__)}"
        self._note(cls.__module__)
        members = {
            name: each for name, each in vars(cls).items() if name not in ("__dict__", "__weakref__", "__module__", "__doc__")
        }
        methods = {
            name: each
            for name, each in members.items()
            if isinstance(each, (*PLAIN, FunctionType, staticmethod, classmethod, property))
        }
        data = {name: each for name, each in members.items() if not name.startswith("__") and _is_data(each)}
        return f"{cls.__qualname__} {self.of(methods | data)} {self.of(cls.__bases__)}"

    def _module(self, module: ModuleType) -> str:
        """An installed one by name and version, another by its text and that of the others which it uses."""
        file = getattr(module, "__file__", None) or ""
        if self._is_installed(module.__name__, file):
            return f"{module.__name__} {_version(module.__name__)}"
        self._note(module.__name__)
        used = {getattr(each, "__module__", None) for each in vars(module).values() if isinstance(each, type | FunctionType)}
        others = [each for each in vars(module).values() if isinstance(each, ModuleType)]
        others += [sys.modules[name] for name in used if name in sys.modules]
        text = hashlib.sha256(Path(file).read_bytes()).hexdigest() if Path(file).is_file() else ""
        return f"{text} {sorted(self.of(each) for each in others if each is not module)}"

    def _imported(self, name: str) -> str:
        """A module that a function imports when it runs: the same whether or not something has imported it before."""
        file = _file_of_import(name)
        if self._is_installed(name, file):
            return f"{name} {_installed_version(name.partition('.')[0])}"
        if name in sys.modules:
            self.of(sys.modules[name])  # notes it, and what it uses
        return Path(file).read_text(errors="replace") if Path(file).is_file() else name

    def _code(self, code: CodeType) -> str:
        plain = (
            code.co_code,
            code.co_exceptiontable,
            code.co_names,
            code.co_varnames,
            code.co_freevars,
            code.co_cellvars,
            code.co_flags,
        )
        return f"code {plain!r} {code.co_argcount} {code.co_kwonlyargcount} {self.of(code.co_consts)}"

    def _is_installed(self, module: str | None, file: str) -> bool:
        top = (module or "").partition(".")[0]
        if top in (self.package, "__main__"):
            return False
        return top in sys.stdlib_module_names or _lies_with_packages(file)

    def _note(self, module: str | None) -> None:
        if module in sys.modules and module != "__main__" and not _lies_with_packages(_module_file(module)):
            self.modules[str(module)] = sys.modules[str(module)]


def _module_file(module: str | None) -> str:
    return getattr(sys.modules.get(module or ""), "__file__", None) or ""


def _lies_with_packages(file: str) -> bool:
    return file.startswith(tuple(folder + os.sep for folder in (*INSTALLED, HERE)))


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(_is_plain(each) for each in value))


def _is_data(value: Any) -> bool:
    """Whether it is a collection, a tensor or an array."""
    return isinstance(value, list | tuple | set | frozenset | dict | functools.partial) or hasattr(value, "dtype")


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _says(text: bytes, code: CodeType) -> bool:
    """Whether a file's text is what a loaded code was made from: it may have been changed since."""
    try:
        whole = compile(text, code.co_filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return any(each == code for each in codes_of(whole) if each.co_firstlineno == code.co_firstlineno)


def _imports(code: CodeType) -> Iterator[str]:
    """The names of the modules that a function imports when it runs."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME" and step.argval)


def _file_of_import(name: str) -> str:
    """Where a module lies, "" where nobody knows; imports nothing."""
    if name in sys.modules:
        return _module_file(name)
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ""
    if not inner or spec is None:
        return (spec.origin if spec else None) or ""
    paths = [Path(folder, *inner) for folder in spec.submodule_search_locations or ()]
    files = [file for path in paths for file in (path / "__init__.py", Path(f"{path}.py"))]
    return next((str(file) for file in files if file.is_file()), spec.origin or "")


@functools.cache
def _installed_version(top: str) -> str:
    """Of a package by what is written beside it, so that it need not be imported."""
    if top in NOT_KEYED or top in sys.stdlib_module_names:
        return ""
    names = sorted(packages_distributions().get(top, [top]))
    try:
        return version(names[0])
    except PackageNotFoundError:
        return ""


def _version(module: str) -> str:
    """Of the installed package that a module belongs to, where it says so."""
    top = module.partition(".")[0]
    return (
        ""
        if top in NOT_KEYED
        else str(getattr(sys.modules.get(top), "__version__", ""))
        if top not in sys.stdlib_module_names
        else ""
    )
