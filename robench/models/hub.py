"""Models of the Hugging Face Hub in the formats of timm and transformers, config.json and model.safetensors: data, no code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from robench.models.entries import entries, numbers
from robench.models.hub_transformers import CLASSIFIES, CONFIG, PROCESSOR, build_transformers, count_labels
from robench.models.left_out import Normalisation, settle
from robench.models.library import build_timm
from robench.models.loaded_model import LoadedModel
from robench.models.output import remedy_for_outputs
from robench.models.weights import fit, in_dtype, read_weights
from robench.types import Dataset, ExternalModel, RobenchError

WEIGHTS = "model.safetensors"
ABSENT = ("EntryNotFoundError", "RemoteEntryNotFoundError")  # what huggingface_hub raises where the Hub itself was asked
# Settings of timm.create_model that reach for other files; a config that has them is none of timm's.
FORBIDDEN = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable", "exportable"}


def load_hub(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    """``hf:ORG/NAME``, or ``hf:ORG/NAME@REVISION``, fetched into the Hub's own cache and compared with the Hub's own hash.

    Raises:
        RobenchError: huggingface_hub is not installed, the files cannot be had or are damaged; see ``load_folder``.
    """
    loaded, snapshot = _build(external, _on_hub(external)[0].replace("/", "-"), dataset)
    return replace(loaded, origin={**loaded.origin, "revision": snapshot.name})


def load_folder(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    """A folder with config.json and model.safetensors, as ``timm.models.push_to_hf_hub``, ``save_pretrained`` of transformers and
    ``huggingface-cli download`` leave it.

    Raises:
        RobenchError: a file is missing, or not what its name says; the model has other classes than the data.
    """
    return _build(external, Path(external.reference).resolve().name, dataset)[0]


def count_outputs(external: ExternalModel) -> int:
    """How many outputs the model has, from its config.json alone.

    Raises:
        RobenchError: see ``load_folder``.
    """
    config = read_config(file_of(external, CONFIG))
    return _n_classes(config) if is_of_timm(config) else count_labels(config)


def _on_hub(external: ExternalModel) -> tuple[str, str]:
    """The name of a model on the Hub, and its revision, "" for the newest."""
    name, _, revision = external.reference.partition(":")[2].partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise RobenchError(f"`model={external.reference}`: expected hf:ORG/NAME, or hf:ORG/NAME@REVISION")
    return name, revision


def file_of(external: ExternalModel, file: str) -> Path:
    """Where a file of a Hub model or of a folder lies on this machine; it is fetched where that is needed.

    Raises:
        RobenchError: see ``load_hub``; the folder has no such file.
    """
    if external.reference.startswith("hf:"):
        return _fetch(*_on_hub(external), file)
    folder = Path(external.reference)
    if (folder / file).is_file():
        return folder / file
    present = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
    raise RobenchError(f"`model={folder}`: no {file} in it ({present}); expected a Hub model's {CONFIG} and {WEIGHTS}")


def file_if_any(external: ExternalModel, file: str) -> Path | None:
    """As ``file_of``, of a file that the model need not have; None where it has none, which on the Hub the Hub itself must say."""
    if not external.reference.startswith("hf:"):
        path = Path(external.reference) / file
        return path if path.is_file() else None
    try:
        path = file_of(external, file)
    except RobenchError as error:
        if type(error.__context__).__name__ in ABSENT:
            return None
        raise
    return path if path.is_file() else None


def _build(external: ExternalModel, name: str, dataset: Dataset) -> tuple[LoadedModel, Path]:
    """The model, and the folder of its files."""
    config_file, weights_file = file_of(external, CONFIG), file_of(external, WEIGHTS)
    config = read_config(config_file)
    if is_of_timm(config):
        loaded = _of_timm(external, config_file, config, weights_file, name, dataset)
    else:
        processor_file = file_if_any(external, PROCESSOR)
        loaded = build_transformers(
            config_file, config, weights_file, processor_file=processor_file, name=name, dataset=dataset, external=external
        )
    return loaded, weights_file.parent


def _n_classes(config: Mapping[str, Any]) -> Any:
    pretrained = pretrained_cfg(config, CONFIG)
    return config.get("num_classes", pretrained.get("num_classes"))


def _of_timm(external: ExternalModel, config_file: Path, config: Mapping[str, Any], weights_file: Path, name: str, dataset: Dataset) -> LoadedModel:  # fmt: skip
    settings = dict(entries(config.get("model_args"), "model_args", str(config_file)))
    if settings.keys() & FORBIDDEN:
        raise RobenchError(
            f"{config_file}: model_args has {', '.join(sorted(settings.keys() & FORBIDDEN))}, which is not a model's to set"
        )
    weights = read_weights(weights_file)
    pretrained = pretrained_cfg(config, str(config_file))
    n_classes, expected = _n_classes(config), len(dataset.classes)
    if n_classes != expected:
        remedy = remedy_for_outputs(n_classes, expected) if isinstance(n_classes, int) else "name its data with `dataset`"
        raise RobenchError(f"{config_file} describes a model with {n_classes} classes, {dataset.name} has {expected}; {remedy}")
    channels = numbers(pretrained.get("input_size"), "input_size", str(config_file)) or (3,)
    module = build_timm(config["architecture"], **{"in_chans": int(channels[0]), **settings, "num_classes": n_classes})
    left_out = fit(module, weights, config["architecture"], dataset)
    in_dtype(module, weights, external.weights_dtype)
    mean, std = (numbers(pretrained.get(key), key, str(config_file), positive=key == "std") for key in ("mean", "std"))
    settled = settle(left_out, weights_file, external, dataset.image_shape[0], Normalisation(mean, std))
    names = config.get("label_names") or pretrained.get("label_names") or ()
    return LoadedModel(
        module, name, {"architecture": config["architecture"], **weights.origin, **settled.origin}, mean=settled.normalise.mean,
        std=settled.normalise.std, classes=tuple(map(str, names)), notes=settled.notes,
    )  # fmt: skip


def is_of_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json names an architecture of timm rather than of transformers."""
    return isinstance(config.get("architecture"), str)


def pretrained_cfg(config: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    """What a config.json of timm says of the weights, in an entry of its own or, in older files, beside the architecture.

    Raises:
        RobenchError: it is no object.
    """
    return entries(config.get("pretrained_cfg"), "pretrained_cfg", origin) or config


def read_config(path: Path) -> dict[str, Any]:
    """What a config.json says.

    Raises:
        RobenchError: it is no JSON, or of no image classifier that robench can build.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RobenchError(f"{path} is no JSON: {error}; download it again") from None
    if isinstance(config, dict) and is_of_timm(config):
        return config
    other = config.get("architectures") if isinstance(config, dict) else None
    if isinstance(other, list) and any(CLASSIFIES in str(each) for each in other) and config.get("model_type"):
        return config
    raise RobenchError(
        f"{path} names no timm architecture and none of transformers' ...{CLASSIFIES}"
        + (f", but {other} of another library; write a factory, `model=FILE.py:FACTORY`, with `head=logits`" if other else "")
    )


def _fetch(name: str, revision: str, file: str) -> Path:
    """A file of a Hub model, from the cache where it is there already."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise RobenchError(
            f"huggingface_hub is not installed: pip install 'robench[models]'; or download {CONFIG} and {WEIGHTS} into a folder, and "
            "name that with `model`"
        ) from None
    try:
        path = Path(hf_hub_download(name, file, revision=revision or None))
    except Exception as error:  # its own, the network library's, the system's
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RobenchError(
            f"`model=hf:{name}`: cannot get {file} ({type(error).__name__}: {first[:150]}); a model without {WEIGHTS} is not loaded: "
            "fetch its weights yourself and use `model=timm:NAME` `weights=FILE`"
        ) from None
    _compare_with_hash(path)
    return path


def _compare_with_hash(path: Path) -> None:
    """What the cache's link to a large file names is the sha256 that the Hub has on record; a second link may follow, named otherwise."""
    promised = Path(os.readlink(path)).name if path.is_symlink() else ""
    if len(promised) == 64 and hashlib.sha256(path.read_bytes()).hexdigest() != promised:
        raise RobenchError(
            f"{path} is damaged: its sha256 is not the Hub's, {promised}; delete {path.resolve()} and run the command again"
        )
