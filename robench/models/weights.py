"""Other people's state dicts: read without running code, unwrapped, and fitted to a module without a silent gap."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robench.formats import Format, recognise
from robench.models.left_out import names_of
from robench.models.output import remedy_for_outputs
from robench.types import Dataset, RobenchError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # moving averages, taken where nothing else is there
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")  # of DataParallel, torch.compile, Lightning
WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # of wrapped parts, anywhere in a name


@dataclass(frozen=True, eq=False)
class Weights:
    """A state dict and what its file says about it.

    Attributes:
        path: the file.
        tensors: name to tensor.
        mean, std: of the normalisation that the file brings; empty where it says nothing.
        sha256: of the file.
        entry: the entry of the file under which they lay; "" where the file is the state dict itself.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    entry: str = ""

    @property
    def origin(self) -> dict[str, str]:
        """What run.json says about the file."""
        said = {"weights file": str(self.path), "weights file sha256": self.sha256}
        if self.entry:
            said["weights entry"] = self.entry
        if self.dtype not in (None, torch.float32):
            said["weights stored in"] = str(self.dtype).removeprefix("torch.")
        return said

    @property
    def dtype(self) -> torch.dtype | None:
        """The one floating type of the tensors, None where they have several or none."""
        kinds = {tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point()}
        return kinds.pop() if len(kinds) == 1 else None


def read_weights(path: Path) -> Weights:
    """The state dict in a safetensors file or in a file of ``torch.save``, which is read with weights_only and never otherwise.

    Raises:
        RobenchError: it is something else (said what), holds code, or holds no state dict.
    """
    path, kind = Path(path), recognise(path)
    if kind == Format.SAFETENSORS:
        content = read_safetensors(path)
    elif kind in Format.PICKLES:
        content = _unwrap(read_plain(path), path)
    else:
        raise RobenchError(f"{path} is {kind}, expected a state dict (safetensors, or torch.save of one){_instead(kind, path)}")
    normalise = {name: _numbers(content.about.get(name), name, path) for name in ("mean", "std")}
    return Weights(path, content.tensors, **normalise, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), entry=content.entry)


def _instead(kind: str, path: Path) -> str:
    return {
        Format.CHECKPOINT: f"; attack it with `ckpt={path}`",
        Format.TORCHSCRIPT: f"; a program brings its weights: `model={path}` `trust`",
        Format.EXPORT: f"; a program brings its weights: `model={path}` `trust`",
        Format.HTML: ": the download failed and saved the server's answer; download it again",
        Format.LFS: ": fetch the content with `git lfs pull`",
        Format.EMPTY: "; copy it again",
        Format.CUT: "; copy or download it again",
    }.get(kind, "")


class StateDict(NamedTuple):
    """Tensors by name, and ``mean`` and ``std`` where the file gives them, as it writes them; and the entry that holds them."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]
    entry: str = ""


def read_safetensors(path: Path) -> StateDict:
    """What a safetensors file holds, its header's JSON read.

    Raises:
        RobenchError: it is truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, KeyError) as error:
        raise RobenchError(f"{path} is no readable safetensors file: {error}; copy it again") from None
    about = {}
    for name in ("mean", "std"):
        if name in metadata:
            try:
                about[name] = json.loads(metadata[name])
            except ValueError:
                raise RobenchError(f"{path}: {name} in its header is {metadata[name]!r}, expected a list of numbers") from None
    return StateDict(tensors, about)


def read_plain(path: Path) -> Any:
    """What a file of ``torch.save`` holds, where it is made of tensors and plain containers.

    Raises:
        RobenchError: it is damaged, or loading it would run code; with the safe way.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RobenchError(f"{path} {_why_not_plain(str(error), _is_lightning(path))}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RobenchError(f"{path} is damaged or no file of torch.save ({first[:120]}); copy it again") from None


def _why_not_plain(message: str, lightning: bool) -> str:
    asked_for = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"`([\w.]+)`", message)
    asks = f" (it asks for {asked_for[1]})" if asked_for else ""
    if lightning:
        return (
            f"is a Lightning checkpoint with more than tensors beside its weights, in hyper_parameters or callbacks{asks}: loading that can run code, so "
            "robench does not. The safe way: where you trust it, save the weights alone, "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pt'), and pass that with `weights`; "
            "save_weights_only=True of ModelCheckpoint leaves the callbacks out from the start"
        )
    return (
        f"is a full pickle{asks}: loading it can run code, so robench does not. The safe way: "
        "where you trust it, save only the weights, torch.save(model.state_dict(), 'weights.pt') or "
        "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors'), and pass that with `weights`"
    )


def _is_lightning(path: Path) -> bool:
    """Whether a file of torch.save says that Lightning wrote it; its pickle is searched and not loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((each for each in archive.namelist() if each.endswith("/data.pkl")), None)
            return name is not None and b"pytorch-lightning_version" in archive.read(name)
    except (OSError, zipfile.BadZipFile):
        return False


def _unwrap(content: Any, path: Path) -> StateDict:
    """The state dict inside the usual wrappers, and the entries beside it."""
    about: dict[str, Any] = {}
    taken: list[str] = []
    while isinstance(content, Mapping) and not (content and all(isinstance(value, Tensor) for value in content.values())):
        held = [name for name in (*WRAPPERS, *AVERAGED) if isinstance(content.get(name), Mapping)]
        if not held:
            break
        averaged = [name for name in held[1:] if name in AVERAGED]
        taken.append(held[0] + (f" (and not {', '.join(averaged)})" if averaged else ""))
        normalise = content.get("normalize")
        beside = normalise if isinstance(normalise, Mapping) else content
        about |= {name: beside[name] for name in ("mean", "std") if name in beside}
        content = content[held[0]]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        holds = f"entries {names_of(map(str, content))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise RobenchError(f"{path} holds {holds}, expected a state dict, alone or under one of {', '.join(WRAPPERS)}")
    odd = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise RobenchError(
            f"{path}: its state dict has entries that are no tensors: {names_of(odd)}; save model.state_dict() alone"
        )
    return StateDict(dict(content), about, ".".join(taken))


def _numbers(value: Any, name: str, path: Path) -> tuple[float, ...]:
    if value is None:
        return ()
    flat = value.flatten().tolist() if isinstance(value, Tensor) else value
    try:
        return tuple(float(part) for part in (flat if isinstance(flat, list | tuple) else [flat]))
    except (TypeError, ValueError):
        raise RobenchError(f"{path}: its {name} is {value!r}, expected a list of numbers") from None


def fit(module: nn.Module, weights: Weights, what: str, dataset: Dataset) -> dict[str, Tensor]:
    """Loads a state dict into a module, whole or not at all.

    Half and bfloat16 weights become what the module computes in.

    Args:
        module: built for the classes of the data.
        weights: read from a file.
        what: the architecture, for messages.
        dataset: that the module was built for.

    Returns:
        The tensors that are no part of the module, such as those of a loss or a normalisation beside it; see ``settle``.

    Raises:
        RobenchError: entries are missing, left over or of another shape, with their names; or the weights are of a model with
            another number of classes.
    """
    expected = module.state_dict()
    given, left_out = _fitting(weights.tensors, set(expected))
    shapes = {name: (tuple(given[name].shape), tuple(expected[name].shape)) for name in given.keys() & expected.keys()}
    unequal = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    # BatchNorm counts its batches only since torch 0.4.1, and evaluation does not read the count.
    missing = [name for name in expected if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in expected]
    if not missing and not unexpected and unequal:
        _refuse_other_classes(unequal, weights.path, dataset)
    if missing or unexpected or unequal:
        complaints = [
            f"{len(missing)} missing ({names_of(missing)})" if missing else "",
            f"{len(unexpected)} unexpected ({names_of(unexpected)})" if unexpected else "",
            f"{len(unequal)} of another shape ({names_of(f'{name} {got}, expected {needed}' for name, (got, needed) in unequal.items())})"
            if unequal
            else "",
        ]
        raise RobenchError(
            f"the weights in {weights.path} do not fit {what}: {'; '.join(part for part in complaints if part)}; name the architecture that "
            "they were trained in, or build it in a Python file: `model=FILE.py:FACTORY` `weights=FILE`"
        )
    module.load_state_dict(given, strict=False)
    return left_out


def in_dtype(module: nn.Module, weights: Weights, weights_dtype: str) -> None:
    """Puts a module that has taken weights into the type in which they are stored, where ``--weights-dtype as-is`` asks for it."""
    if weights_dtype != "float32" and weights.dtype is not None:
        module.to(weights.dtype)


def count_outputs(module: nn.Module, weights: Weights, n_classes: int) -> int | None:
    """How many outputs the model of some weights has, where a module that was built for ``n_classes`` shows which tensors end in them."""
    expected = module.state_dict()
    given, _ = _fitting(weights.tensors, set(expected))
    pairs = [(tuple(given[name].shape), tuple(expected[name].shape)) for name in given.keys() & expected.keys()]
    numbers = {got[0] for got, needed in pairs if got != needed and got[1:] == needed[1:] and needed[:1] == (n_classes,)}
    return numbers.pop() if len(numbers) == 1 else None


class Fitting(NamedTuple):
    """Tensors by the names of a module, and those beside it."""

    tensors: dict[str, Tensor]
    left_out: dict[str, Tensor]


def _fitting(tensors: Mapping[str, Tensor], expected: set[str]) -> Fitting:
    """A state dict without what wrappers put into its names. Where one of them is around the whole module, what lies beside it, such as a
    loss with weights of its own, is left out."""
    given = dict(tensors)
    for wrapper in WITHIN:
        if given.keys() != expected and not any(wrapper in name for name in expected):
            given = {name.replace(wrapper, ""): tensor for name, tensor in given.items()}
    given = _without_prefix(given, expected)
    needed = {name for name in expected if not name.endswith("num_batches_tracked")}
    if needed <= given.keys():
        return Fitting(given, {})
    for prefix in PREFIXES:
        inside = {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}
        inside = _without_prefix(inside, expected)
        if inside and needed <= inside.keys():
            return Fitting(inside, {name: tensor for name, tensor in given.items() if not name.startswith(prefix)})
    return Fitting(given, {})


def _without_prefix(tensors: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Without what wrappers put in front of every name, unless the module itself has it."""
    again = bool(tensors)
    while again and tensors.keys() != expected:
        again = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in tensors) and not any(name.startswith(prefix) for name in expected):
                tensors, again = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, True
    return tensors


def _refuse_other_classes(unequal: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], path: Path, dataset: Dataset) -> None:
    """Where only the outputs of the last layer differ, the model is one of other data."""
    n_classes = len(dataset.classes)
    if all(got[1:] == needed[1:] and needed[:1] == (n_classes,) for got, needed in unequal.values()):
        outputs = " and ".join(sorted({str(got[0]) for got, _ in unequal.values()}))
        raise RobenchError(
            f"the weights in {path} are of a model with {outputs} classes, {dataset.name} has {n_classes} ({names_of(dataset.classes)}); "
            f"{remedy_for_outputs(next(iter(unequal.values()))[0][0], n_classes)}"
        )
