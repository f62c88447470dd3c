"""SOURCES: every way in which ``--model`` names a model that robench did not train. Imports no torch until one is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robench.models.loaded import Loaded
from robench.types import Dataset, OwnModel, RobenchError


@dataclass(frozen=True)
class Source:
    """One way to name a model.

    Attributes:
        pattern: of what stands behind ``--model``, as a whole.
        load: ``load(own, dataset) -> Loaded``.
        about: one line for ``robench list models``.
        takes_weights: whether ``--weights`` makes sense with it.
        runs_code: whether loading runs code that robench and its libraries did not bring.
    """

    pattern: str
    load: Callable[[OwnModel, Dataset], Loaded]
    about: str
    takes_weights: bool = False
    runs_code: bool = False


def _torchvision(own: OwnModel, dataset: Dataset) -> Loaded:
    from robench.models.library import load_torchvision

    return load_torchvision(own, dataset)


def _timm(own: OwnModel, dataset: Dataset) -> Loaded:
    from robench.models.library import load_timm

    return load_timm(own, dataset)


def _hub(own: OwnModel, dataset: Dataset) -> Loaded:
    from robench.models.hub import load_hub

    return load_hub(own, dataset)


def _robustbench(own: OwnModel, dataset: Dataset) -> Loaded:
    from robench.models.zoo import load_zoo

    return load_zoo(own, dataset)


def _file(own: OwnModel, dataset: Dataset) -> Loaded:
    from robench.models.factory import load_file

    return load_file(own, dataset)


def _folder(own: OwnModel, dataset: Dataset) -> Loaded:
    from robench.models.hub import load_folder

    return load_folder(own, dataset)


def _program(own: OwnModel, dataset: Dataset) -> Loaded:
    from robench.models.programs import load_program

    return load_program(own, dataset)


def _package(own: OwnModel, dataset: Dataset) -> Loaded:
    from robench.models.factory import load_package

    return load_package(own, dataset)


SOURCES: dict[str, Source] = {  # the first whose pattern fits
    "FILE.py:FACTORY": Source(
        r".+\.py(:.*)?",
        _file,
        "a function in a Python file that returns the module; runs the file",
        takes_weights=True,
        runs_code=True,
    ),
    "torchvision:NAME": Source(
        r"torchvision:.*", _torchvision, "a classifier of torchvision.models, with --weights FILE", takes_weights=True
    ),
    "timm:NAME": Source(r"timm:.*", _timm, "a model of timm, with --weights FILE", takes_weights=True),
    "hf:ORG/NAME": Source(r"hf:.*", _hub, "a timm model on the Hugging Face Hub: config.json and model.safetensors, no code"),
    "robustbench:NAME": Source(
        r"robustbench:.*", _robustbench, "a model of RobustBench's zoo, such as Carmon2019Unlabeled; downloads are checked"
    ),
    "FOLDER": Source(r".*", _folder, "a local copy of such a Hub model: config.json and model.safetensors"),
    "FILE.pt": Source(
        r".+\.(pt|pt2|ts|pth|jit|ckpt|bin|pkl|pickle|th|tar|safetensors|onnx)",
        _program,
        "a program of TorchScript or torch.export (.pt2), with --trust",
        runs_code=True,
    ),
    "package.module:FACTORY": Source(
        r"[A-Za-z_]\w*(\.\w+)*:\w+", _package, "a function of an installed package; runs it", takes_weights=True, runs_code=True
    ),
}


def source_of(where: str) -> Source:
    """The way that a text takes.

    Raises:
        RobenchError: none; lists them all.
    """
    for shown, source in SOURCES.items():
        if shown == "FOLDER" and not Path(where).is_dir():
            continue
        if re.fullmatch(source.pattern, where) or (shown == "FILE.pt" and Path(where).is_file()):
            return source
    raise RobenchError(f"--model {where!r}: expected one of {', '.join(SOURCES)}; `robench list models` explains them")


def load_own(own: OwnModel, dataset: Dataset) -> Loaded:
    """The model that ``--model`` names, with its weights.

    Raises:
        RobenchError: see the sources; ``--weights`` is missing, unneeded, or does not fit.
    """
    source = source_of(own.where)
    if own.weights is not None and not source.takes_weights:
        raise RobenchError(f"--weights {own.weights}: --model {own.where} brings its own weights; leave it out")
    if own.weights is None:
        return source.load(own, dataset)
    from robench.models.weights import fit, read_weights

    weights = read_weights(own.weights)  # first, since it is the quicker one to be refused
    loaded = source.load(own, dataset)
    fit(loaded.module, weights, own.where, dataset)
    return Loaded(
        loaded.module,
        loaded.name,
        {**loaded.origin, **weights.origin},
        loaded.code,
        weights.mean or loaded.mean,
        weights.std or loaded.std,
    )
