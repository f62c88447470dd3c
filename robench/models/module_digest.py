"""What somebody's code computes with: constants, numbers, arrays, modules and functions that it refers to, in one digest."""

from __future__ import annotations

import dis
import hashlib
import random
import sys
import types
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robench.digest import codes_of, digest_tensors, owner_of

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, type(...), slice, range)
OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks"}
CODE = ("co_code", "co_consts", "co_names", "co_varnames", "co_freevars")
OF_OBJECTS = ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM", "LOAD_SUPER_ATTR")
OF_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME")
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator, torch.Generator)
TRAINED = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
COMPILED = "_torchdynamo_orig_callable"  # what torch.compile made a function of
FUNCTIONS = (types.FunctionType, types.MethodType, staticmethod, classmethod, property, partial)


class Contents:
    """Reads values of any kind into a digest that is the same in every process that holds the same.

    Attributes:
        opaque: kinds of objects, of no library that ships with Python, into which nobody can see.
        training: kinds of layers in training mode that compute otherwise in it.
    """

    def __init__(self) -> None:
        self.opaque: list[str] = []
        self.training: list[str] = []
        self._total = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # what was seen stays alive, since a number of a dead object is given to another one

    @property
    def digest(self) -> str:
        return self._total.hexdigest()

    def add(self, value: Any) -> None:
        """Adds one value and all that it refers to."""
        if isinstance(value, PLAIN):
            self._say(repr(value))
        elif id(value) in self._seen:
            self._say(f"again {self._seen[id(value)]}")
        else:
            if not isinstance(value, type):  # which _kind notes
                self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
            self._say(type(value).__qualname__)
            next((read for kind, read in _READERS if isinstance(value, kind)), Contents._object)(self, value)

    def _say(self, text: str) -> None:
        self._total.update(f"{text}\n".encode(errors="replace"))

    def _tensor(self, value: Tensor) -> None:
        if value.is_meta or value.layout != torch.strided or value.is_quantized:
            self._say(f"{value.dtype} {value.layout} {tuple(value.shape)} {'' if value.is_meta else value}")
        self._say(digest_tensors({"": value}))  # a text leaves out what lies in the middle

    def _array(self, value: np.ndarray | np.generic) -> None:
        array = np.ascontiguousarray(value)
        self._say(f"{array.dtype} {array.shape}")
        if array.dtype == object:
            self._each(array.ravel().tolist())
        else:
            self._total.update(array.tobytes())

    def _each(self, values: Any) -> None:
        self._say(str(len(values)))
        for value in values:
            self.add(value)

    def _unordered(self, values: Any) -> None:
        self._say(" ".join(sorted(digest_of(value) for value in values)))

    def _mapping(self, values: Mapping[Any, Any]) -> None:
        for name, value in sorted(values.items(), key=lambda pair: repr(pair[0]) if isinstance(pair[0], PLAIN) else ""):
            self.add(name)
            self.add(value)

    def _module(self, module: nn.Module) -> None:
        for kind in type(module).__mro__:
            self._kind(kind)
        if module.training and isinstance(module, TRAINED):
            self.training.append(type(module).__qualname__)
        script = script_of(module)
        if script is not None:
            self.add(script)
        tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        self._mapping(tensors)
        self._mapping(dict(module.named_children()))
        self._mapping({key: value for key, value in vars(module).items() if key not in OF_EVERY_MODULE})

    def _function(self, function: types.FunctionType) -> None:
        if hasattr(function, COMPILED):
            self.add(getattr(function, COMPILED))
            return
        if not is_somebodys(function.__module__):
            self._say(f"{function.__module__}.{function.__qualname__}")
            return
        self._code(function.__code__)
        self.add(function.__defaults__)
        self.add(function.__kwdefaults__)
        if "version" in vars(function):
            self.add(vars(function)["version"])
        for name, value in referred(function):
            self._say(name)
            self.add(value)

    def _code(self, code: types.CodeType) -> None:
        for name in CODE:
            value = getattr(code, name)
            if name != "co_consts":
                self._say(repr(value))
                continue
            for constant in value:
                self._code(constant) if isinstance(constant, types.CodeType) else self.add(constant)

    def _method(self, method: Any) -> None:
        self.add(method.__self__)
        self.add(method.__func__)

    def _partial(self, value: partial[Any]) -> None:
        self._each([value.func, value.args, value.keywords])

    def _wrapped(self, value: Any) -> None:
        self.add(value.fget if isinstance(value, property) else value.__func__)

    def _kind(self, kind: type) -> None:
        self._say(f"{kind.__module__}.{kind.__qualname__}")
        if id(kind) in self._seen or not is_somebodys(kind.__module__):
            return
        self._seen[id(kind)] = len(self._seen)
        for name, value in sorted(vars(kind).items()):
            if isinstance(value, FUNCTIONS) or not name.startswith("__"):
                self.add(value)

    def _builtin(self, function: types.BuiltinFunctionType) -> None:
        self._say(f"{function.__module__}.{function.__qualname__}")
        owner = owner_of(function)
        if owner is not None:
            self.add(owner)

    def _object(self, value: Any) -> None:
        """What pickle would keep of it; where it would keep nothing, its kind."""
        kind = type(value)
        self._kind(kind)
        if isinstance(getattr(value, "__wrapped__", None), types.FunctionType):  # cached, which pickle keeps by its name
            self.add(value.__wrapped__)
        try:
            reduced = value.__reduce_ex__(2)
        except Exception:  # somebody else's object may raise anything
            if is_library(kind.__module__):
                self.opaque.append(kind.__qualname__)
            return
        for part in (reduced,) if isinstance(reduced, str) else reduced:
            self.add(list(part) if isinstance(part, Iterator) else part)


def digest_of(value: Any) -> str:
    """sha256 over one value and all that it refers to."""
    contents = Contents()
    contents.add(value)
    return contents.digest


def referred(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function's code names: variables around it, globals, and what it takes out of somebody's Python modules."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    names = list(_names(function.__code__))
    attributes = {name for operation, name in names if operation in OF_OBJECTS}
    for operation, name in names:
        found = sys.modules.get(name) if operation == "IMPORT_NAME" else function.__globals__.get(name)
        if operation in OF_OBJECTS or found is None:
            continue
        if not isinstance(found, types.ModuleType):
            yield name, found
        elif is_somebodys(found.__name__):
            yield from ((f"{name}.{each}", vars(found)[each]) for each in sorted(attributes & vars(found).keys()))


def _names(code: types.CodeType) -> Iterator[tuple[str, str]]:
    """The names in a function's code and in the functions inside it, each once, with the operation."""
    steps = (each for part in codes_of(code) for each in dis.get_instructions(part))
    yield from dict.fromkeys((each.opname, each.argval) for each in steps if each.opname in (*OF_OBJECTS, *OF_GLOBALS))


def script_of(module: nn.Module) -> Any:
    """The program of a module that was compiled or traced, with its constants."""
    if isinstance(module, torch.jit.ScriptModule):
        try:
            code, constants = module.code_with_constants
        except (RuntimeError, AttributeError):  # a part without forward
            return None
        return code, dict(constants.const_mapping)
    return module.code if isinstance(module, torch.fx.GraphModule) else None


@cache
def is_somebodys(name: str | None) -> bool:
    """Whether a Python module is neither Python's, nor of an installed library, nor robench's own."""
    root = (name or "__main__").partition(".")[0]
    if root in sys.stdlib_module_names or root in ("builtins", "robench"):
        return root == "__main__"
    return not any(part in _file_of(root) for part in ("site-packages", "dist-packages"))


def is_library(name: str | None) -> bool:
    """Whether a Python module is somebody's or of an installed library: its objects may be models."""
    root = (name or "__main__").partition(".")[0]
    return root == "__main__" or not (root in sys.stdlib_module_names or root in ("builtins", "robench"))


def _file_of(root: str) -> str:
    module = sys.modules.get(root)
    where = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
    return str(where).replace("\\", "/")


_READERS: tuple[tuple[Any, Any], ...] = (
    (GENERATORS, lambda self, value: None),  # what it has drawn so far is no part of the model
    (Tensor, Contents._tensor),
    (np.ndarray | np.generic, Contents._array),
    (nn.Module, Contents._module),
    (types.FunctionType, Contents._function),
    (types.MethodType, Contents._method),
    (partial, Contents._partial),
    (staticmethod | classmethod | property, Contents._wrapped),
    (type, Contents._kind),
    (types.ModuleType, lambda self, value: self._say(value.__name__)),
    (types.BuiltinFunctionType, Contents._builtin),
    (torch.jit.ScriptFunction, lambda self, value: self._say(str(value.code))),
    (dict | types.MappingProxyType, Contents._mapping),
    (list | tuple, Contents._each),
    (set | frozenset, Contents._unordered),
)
