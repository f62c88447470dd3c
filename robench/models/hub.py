"""Models of the Hugging Face Hub in timm's format, config.json and model.safetensors: data, no code."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from robench.models.library import build_timm
from robench.models.loaded_model import LoadedModel
from robench.models.weights import fit, read_weights
from robench.types import Dataset, ExternalModel, RobenchError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Settings of timm.create_model that reach for other files; a config that has them is none of timm's.
FORBIDDEN = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable", "exportable"}


def load_hub(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    """``hf:ORG/NAME``, or ``hf:ORG/NAME@REVISION``, fetched into the Hub's own cache and compared with the Hub's own hash.

    Raises:
        RobenchError: huggingface_hub is not installed, the files cannot be had or are damaged; see ``load_folder``.
    """
    name, _, revision = external.reference.partition(":")[2].partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise RobenchError(f"`model={external.reference}`: expected hf:ORG/NAME, or hf:ORG/NAME@REVISION")
    files = [_fetch(name, file, revision or None) for file in (CONFIG, WEIGHTS)]
    loaded = _build(files[0], files[1], name.replace("/", "-"), dataset)
    snapshot = files[1].parent.name
    return LoadedModel(
        loaded.module,
        loaded.name,
        {**loaded.origin, "revision": snapshot},
        mean=loaded.mean,
        std=loaded.std,
        classes=loaded.classes,
    )


def load_folder(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    """A folder with config.json and model.safetensors, as ``timm.models.push_to_hf_hub`` and ``huggingface-cli download`` leave it.

    Raises:
        RobenchError: a file is missing, or not what its name says; the model has other classes than the data.
    """
    folder = Path(external.reference)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            present = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
            raise RobenchError(f"`model={folder}`: no {name} in it ({present}); expected a Hub model's {CONFIG} and {WEIGHTS}")
    return _build(folder / CONFIG, folder / WEIGHTS, folder.resolve().name, dataset)


def _build(config_file: Path, weights_file: Path, name: str, dataset: Dataset) -> LoadedModel:
    config = _read_config(config_file)
    settings = dict(config.get("model_args") or {})
    if settings.keys() & FORBIDDEN:
        raise RobenchError(
            f"{config_file}: model_args has {', '.join(sorted(settings.keys() & FORBIDDEN))}, which is not a model's to set"
        )
    weights = read_weights(weights_file)
    pretrained = config.get("pretrained_cfg") or config
    n_classes, expected = config.get("num_classes", pretrained.get("num_classes")), len(dataset.classes)
    if n_classes != expected:
        raise RobenchError(
            f"{config_file} describes a model with {n_classes} classes, {dataset.name} has {expected}; name its data with `dataset`"
        )
    module = build_timm(
        config["architecture"], **{"in_chans": (pretrained.get("input_size") or [3])[0], **settings, "num_classes": n_classes}
    )
    fit(module, weights, config["architecture"], dataset)
    mean, std = (tuple(float(value) for value in pretrained.get(key) or ()) for key in ("mean", "std"))
    names = config.get("label_names") or pretrained.get("label_names") or ()
    return LoadedModel(
        module, name, {"architecture": config["architecture"], **weights.origin}, mean=mean, std=std, classes=tuple(map(str, names))
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RobenchError(f"{path} is no JSON: {error}; download it again") from None
    if isinstance(config, dict) and isinstance(config.get("architecture"), str):
        return config
    other = config.get("architectures") if isinstance(config, dict) else None
    raise RobenchError(
        f"{path} names no timm architecture"
        + (f", but {other} of another library; write a factory, `model=FILE.py:FACTORY`, with `head=logits`" if other else "")
    )


def _fetch(name: str, file: str, revision: str | None) -> Path:
    """A file of a Hub model, from the cache where it is there already."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise RobenchError(
            f"huggingface_hub is not installed: pip install 'robench[models]'; or download {CONFIG} and {WEIGHTS} into a folder, and "
            "name that with `model`"
        ) from None
    try:
        path = Path(hf_hub_download(name, file, revision=revision))
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
