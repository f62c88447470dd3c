"""Image classifiers of Hugging Face's transformers: config.json, model.safetensors and preprocessor_config.json; data, no code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench.models.entries import entries, number
from robench.models.failures import first_line
from robench.models.left_out import Normalisation, Settled, names_of, settle
from robench.models.loaded_model import LoadedModel
from robench.models.output import LOGITS, Output, remedy_for_outputs
from robench.models.preprocessor_config import normalisation_of, read_processor
from robench.models.weights import Weights, read_weights
from robench.types import Dataset, ExternalModel, RobenchError

NO_TRANSFORMERS = "transformers is not installed: pip install 'robench[transformers]'"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
CLASSIFIES = "ForImageClassification"
# Settings by which a config.json would have other files or code fetched; a model needs none of them to be what its weights are.
IGNORED = {
    "_name_or_path", "auto_map", "attn_implementation", "_attn_implementation", "custom_pipelines", "experts_implementation", "kernel_config",
    "transformers_weights", "use_kernels", "use_pretrained_backbone",
}  # fmt: skip


class Bgr(nn.Module):
    """A module that takes images in the order blue, green, red, for images in the usual one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images.flip(1))


def count_labels(config: Mapping[str, Any]) -> int:
    """How many outputs a config.json gives its model; two where it says nothing."""
    return len(entries(config.get("id2label"), "id2label", CONFIG)) or int(
        number(config.get("num_labels", 2), "num_labels", CONFIG)
    )


def build_transformers(
    config_file: Path, config: Mapping[str, Any], weights_file: Path, *, processor_file: Path | None, name: str, dataset: Dataset,
    external: ExternalModel,
) -> LoadedModel:  # fmt: skip
    """A classifier, its weights loaded whole, with the normalisation of its image processor.

    Args:
        config_file: for messages.
        config: what it holds.
        weights_file: model.safetensors.
        processor_file: preprocessor_config.json, None where there is none.
        name: for titles.
        dataset: whose classes it is to have.
        external: what the user says of it.

    Raises:
        RobenchError: transformers is not installed or does not know the architecture; the model has other classes than the data; weights
            are missing, misshapen or compressed.
    """
    if config.get("quantization_config"):
        raise RobenchError(f"{config_file} is of a compressed model (quantization_config); take the one that it was made of")
    n_labels, n_classes = count_labels(config), len(dataset.classes)
    if n_labels != n_classes:
        raise RobenchError(
            f"{config_file} describes a model with {n_labels} classes, {dataset.name} has {n_classes}; {remedy_for_outputs(n_labels, n_classes)}"
        )
    weights = read_weights(weights_file)
    module, left_out = _load(config_file, config, weights)
    processor = read_processor(processor_file) if processor_file is not None else {}
    normalise = Normalisation()
    if processor and not external.mean:
        normalise = normalisation_of(processor, str(processor_file))
    settled = settle(left_out, weights.path, external, dataset.image_shape[0], normalise)
    with_logits: nn.Module = Output(module, LOGITS)
    if processor.get("do_flip_channel_order"):
        with_logits = Bgr(with_logits)
    names = tuple(str((config.get("id2label") or {}).get(str(place), "")) for place in range(n_labels))
    origin = {"architecture": type(module).__name__, **weights.origin, **settled.origin}
    named = all(names) and not any(re.fullmatch(r"LABEL_\d+", each) for each in names)
    return LoadedModel(
        with_logits, name, origin, mean=settled.normalise.mean, std=settled.normalise.std, classes=names if named else (),
        notes=(*_unsaid(processor_file, processor, settled, external), *settled.notes),
    )  # fmt: skip


def _unsaid(processor_file: Path | None, processor: Mapping[str, Any], settled: Settled, external: ExternalModel) -> list[str]:
    """That nobody says how images are prepared, where nobody does."""
    if external.mean or settled.normalise.mean:
        return []
    if processor_file is None:
        return [
            f"the model has no {PROCESSOR}: nothing is normalised, and pictures are taken as asked for; give `mean` and `std` where it "
            "needs them"
        ]
    if "do_normalize" not in processor:
        return [
            f"{processor_file} says nothing of a normalisation, and none is done; give `mean` and `std` where the model needs them"
        ]
    return []


def _load(config_file: Path, config: Mapping[str, Any], weights: Weights) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module, and the weights that it has no place for. transformers is handed tensors, so that it opens no file."""
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError:
        raise RobenchError(NO_TRANSFORMERS) from None
    settings = {key: value for key, value in config.items() if key not in IGNORED}
    with _quiet():
        try:
            built = AutoConfig.for_model(settings.pop("model_type"), **settings)
            with torch.device("meta"):
                kind = type(AutoModelForImageClassification.from_config(built, trust_remote_code=False))
            module, loading = kind.from_pretrained(
                None, config=built, state_dict=dict(weights.tensors), dtype=weights.dtype or torch.float32, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        except Exception as error:  # of a library that knows hundreds of architectures, each with checks of its own
            raise RobenchError(
                f"{config_file}: transformers cannot build it ({type(error).__name__}: {first_line(error)[:200]})"
            ) from None
    unequal = [f"{name} {tuple(got)}, expected {tuple(needed)}" for name, got, needed in sorted(loading["mismatched_keys"])]
    wrong = {"missing": sorted(loading["missing_keys"]), "of another shape": unequal}
    if any(wrong.values()):
        said = "; ".join(f"{len(names)} {what} ({names_of(names)})" for what, names in wrong.items() if names)
        raise RobenchError(f"the weights in {weights.path} do not fit {kind.__name__}: {said}; download the model again")
    return module, {name: weights.tensors.get(name, torch.empty(0)) for name in sorted(loading["unexpected_keys"])}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and tables on stderr: what they say is said here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
