"""SOURCES: every way in which ``--model`` names a model that robench did not train. Imports no torch until one is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robench.models.loaded_model import LoadedModel
from robench.types import Dataset, ExternalModel, RobenchError

if TYPE_CHECKING:
    from robench.models.chosen_outputs import Selection


@dataclass(frozen=True)
class Source:
    """One way to name a model.

    Attributes:
        pattern: of what stands behind ``--model``, as a whole.
        load: ``load(own, dataset) -> Loaded``.
        about: one line for ``robench list models``.
        takes_weights: whether ``--weights`` makes sense with it.
        runs_code: whether loading runs code that robench and its libraries did not bring.
        outputs: how many outputs the model has, where its files say so without being loaded.
    """

    pattern: str
    load: Callable[[ExternalModel, Dataset], LoadedModel]
    about: str
    takes_weights: bool = False
    runs_code: bool = False
    outputs: Callable[[ExternalModel], int] | None = None


def _torchvision(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    from robench.models.library import load_torchvision

    return load_torchvision(external, dataset)


def _timm(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    from robench.models.library import load_timm

    return load_timm(external, dataset)


def _hub(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    from robench.models.hub import load_hub

    return load_hub(external, dataset)


def _outputs_of_hub(external: ExternalModel) -> int:
    from robench.models.hub import count_outputs

    return count_outputs(external)


def _robustbench(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    from robench.models.zoo import load_zoo

    return load_zoo(external, dataset)


def _file(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    from robench.models.factory import load_file

    return load_file(external, dataset)


def _folder(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    from robench.models.hub import load_folder

    return load_folder(external, dataset)


def _program(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    from robench.models.programs import load_program

    return load_program(external, dataset)


def _package(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    from robench.models.factory import load_package

    return load_package(external, dataset)


SOURCES: dict[str, Source] = {  # the first whose pattern fits
    "FILE.py:FACTORY": Source(
        r".+\.py(:.*)?",
        _file,
        "a function in a Python file that returns the module; runs the file",
        takes_weights=True,
        runs_code=True,
    ),
    "torchvision:NAME": Source(
        r"torchvision:.*", _torchvision, "a classifier of torchvision.models, with `weights=FILE`", takes_weights=True
    ),
    "timm:NAME": Source(r"timm:.*", _timm, "a model of timm, with `weights=FILE`", takes_weights=True),
    "hf:ORG/NAME": Source(
        r"hf:.*",
        _hub,
        "a timm or transformers model on the Hugging Face Hub: config.json and model.safetensors, no code",
        outputs=_outputs_of_hub,
    ),
    "robustbench:NAME": Source(
        r"robustbench:.*", _robustbench, "a model of RobustBench's zoo, such as Carmon2019Unlabeled; downloads are checked"
    ),
    "FOLDER": Source(
        r".*", _folder, "a local copy of such a Hub model: config.json and model.safetensors", outputs=_outputs_of_hub
    ),
    "FILE.pt": Source(
        r".+\.(pt|pt2|ts|pth|jit|ckpt|bin|pkl|pickle|th|tar|safetensors|onnx)",
        _program,
        "a program of TorchScript or torch.export (.pt2), with `trust`",
        runs_code=True,
    ),
    "package.module:FACTORY": Source(
        r"[A-Za-z_]\w*(\.\w+)*:\w+", _package, "a function of an installed package; runs it", takes_weights=True, runs_code=True
    ),
}


def source_of(reference: str) -> Source:
    """The way that a text takes.

    Raises:
        RobenchError: none; lists them all.
    """
    for shown, source in SOURCES.items():
        if shown == "FOLDER" and not Path(reference).is_dir():
            continue
        if re.fullmatch(source.pattern, reference) or (shown == "FILE.pt" and Path(reference).is_file()):
            return source
    raise RobenchError(f"`model={reference!r}`: expected one of {', '.join(SOURCES)}; `robench list models` explains them")


def load_external(external: ExternalModel, dataset: Dataset, selection: Selection | None = None) -> LoadedModel:
    """The model that ``--model`` names, with its weights and all of its outputs.

    Args:
        external: the model.
        dataset: what it is to be tested on.
        selection: which of its outputs stand for the data's classes, None for all.

    Raises:
        RobenchError: see the sources; ``--weights`` is missing, unneeded, or does not fit.
    """
    source = source_of(external.reference)
    if external.weights is not None and not source.takes_weights:
        raise RobenchError(f"`weights={external.weights}`: `model={external.reference}` brings its own weights; leave it out")
    if external.weights is None:
        n_outputs = source.outputs(external) if selection and source.outputs else None
        return source.load(external, selection.whole(dataset, n_outputs) if selection else dataset)
    from robench.models.left_out import Normalisation, settle
    from robench.models.weights import count_outputs, fit, in_dtype, read_weights

    weights = read_weights(external.weights)  # first, since it is the quicker one to be refused
    whole = selection.whole(dataset, None) if selection else dataset
    loaded = source.load(external, whole)
    n_outputs = count_outputs(loaded.module, weights, len(whole.classes))
    if selection and not selection.outputs and n_outputs not in (None, len(whole.classes)):
        whole = selection.whole(dataset, n_outputs)
        loaded = source.load(external, whole)
    left_out = fit(loaded.module, weights, external.reference, whole)
    said = Normalisation(weights.mean or loaded.mean, weights.std or loaded.std)
    settled = settle(left_out, weights.path, external, dataset.image_shape[0], said)
    in_dtype(loaded.module, weights, external.weights_dtype)
    return LoadedModel(
        loaded.module,
        loaded.name,
        {**loaded.origin, **weights.origin, **settled.origin},
        code=loaded.code,
        mean=settled.normalise.mean,
        std=settled.normalise.std,
        notes=settled.notes,
    )
