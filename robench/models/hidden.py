"""What a module computes with outside of its parameters, buffers and parts: in lists, in underscored attributes, in globals."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from robench.models.module_digest import OF_EVERY_MODULE, Contents, digest_of, is_somebodys, referred, script_of

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
DEEPEST = 4  # lists in lists, objects in objects


def register_hidden_modules(module: nn.Module) -> list[str]:
    """Registers modules that a module keeps in lists, dictionaries or objects, where eval mode, device and digest do not reach them.

    Returns:
        The attributes in which they were.
    """
    known = set(module.modules())
    added: list[str] = []
    for name, part in list(module.named_modules()):
        for key, value in list(vars(part).items()):
            if key in (*OF_EVERY_MODULE, *HOOKS) or (key.startswith("_") and not is_somebodys(type(part).__module__)):
                continue
            modules = dict.fromkeys(each for each in _within(value) if isinstance(each, nn.Module))
            hidden = [each for each in modules if each not in known]
            if not hidden:
                continue
            part.add_module(f"listed_{key}", nn.ModuleList(hidden))
            known |= {inner for each in hidden for inner in each.modules()}
            added.append(f"{name}.{key}" if name else key)
    return added


def digest_of_hidden(module: nn.Module) -> str:
    """sha256 over what ``Classifier.digest`` does not read, "" where there is nothing: tensors, arrays and code in attributes, globals that
    somebody's classes name, programs of modules that were compiled, and hooks."""
    contents, found = Contents(), False
    for place, value in _unread(module):
        found = True
        contents.add(place)
        contents.add(value)
    return contents.digest if found else ""


def changeable(module: nn.Module) -> dict[str, Any]:
    """What a pass may change, by its name: every tensor's version, and a digest of every attribute."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state: dict[str, Any] = {
        name: (id(tensor), getattr(tensor, "_version", 0)) for name, tensor in tensors.items() if not tensor.is_inference()
    }
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in (*OF_EVERY_MODULE, *HOOKS) and not isinstance(value, nn.Module):
                state[f"{name}.{key}" if name else key] = digest_of(value)
    return state


def _unread(module: nn.Module) -> Iterator[tuple[str, Any]]:
    known = {id(each) for each in (*module.modules(), *module.parameters(), *module.buffers())}
    for name, part in module.named_modules():
        mine = is_somebodys(type(part).__module__)
        for key, value in sorted(vars(part).items()):
            if key in OF_EVERY_MODULE or (isinstance(value, Tensor) and not key.startswith("_")):
                continue
            if (mine and key.startswith("_") and key not in HOOKS) or any(_counts(each, known) for each in _within(value)):
                yield f"{name}.{key}", value
        script = script_of(part)
        if script is not None:
            yield f"{name} as a program", script
    for kind in dict.fromkeys(type(part) for part in module.modules()):
        if is_somebodys(kind.__module__):
            yield from _globals_of(kind)


def _globals_of(kind: type) -> Iterator[tuple[str, Any]]:
    """What the methods of a module's class refer to beside classes; the methods themselves where their text cannot be had."""
    for name, function in sorted(vars(kind).items()):
        if not isinstance(function, types.FunctionType) or name == "__init__":
            continue
        if not _has_text(kind):
            yield f"{kind.__qualname__}.{name}", function
        for named, value in referred(function):
            if not _is_covered(value):
                yield f"{kind.__qualname__}.{name}: {named}", value


def _is_covered(value: Any) -> bool:
    """Whether a thing that a method names is a library's, or the class of a module, whose text is read anyway."""
    if isinstance(value, type):
        return issubclass(value, nn.Module) or not is_somebodys(value.__module__)
    return callable(value) and not isinstance(value, nn.Module) and not is_somebodys(getattr(value, "__module__", None))


def _has_text(kind: type) -> bool:
    try:
        return bool(inspect.getsource(kind))
    except (OSError, TypeError):
        return False


def _counts(value: Any, known: set[int]) -> bool:
    """Whether a value is one that computes, and is not a part of the module anyway."""
    if isinstance(value, Tensor | nn.Module):
        return id(value) not in known
    if isinstance(value, types.FunctionType | types.MethodType):
        return is_somebodys(value.__module__)
    return isinstance(value, np.ndarray) or (not isinstance(value, type) and is_somebodys(type(value).__module__))


def _within(value: Any, depth: int = 0) -> Iterator[Any]:
    """A value and what lies in it: in lists, dictionaries, partial functions and the attributes of somebody's objects."""
    yield value
    inner: Any = ()
    if isinstance(value, list | tuple | set | frozenset):
        inner = value
    elif isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, partial):
        inner = (value.func, *value.args, *value.keywords.values())
    elif not isinstance(value, nn.Module | Tensor | type | types.FunctionType | types.ModuleType) and is_somebodys(
        type(value).__module__
    ):
        inner = getattr(value, "__dict__", {}).values()
    if depth < DEEPEST:
        for each in inner:
            yield from _within(each, depth + 1)
