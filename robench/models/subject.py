"""Where a classifier comes from: a checkpoint of ours, or a model of somebody else's."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench.checkpoint import checkpoint_name, load_checkpoint
from robench.data.augment import in_unit
from robench.models.adapting import adapt, uncompiled
from robench.models.chosen_outputs import Data, Selection, selection_of
from robench.models.classifier import Classifier
from robench.models.failures import first_line, is_out_of_memory
from robench.models.multihead import MAIN_HEAD, HeadLogits, MultiHead, rebuild
from robench.models.sources import load_external
from robench.types import Dataset, ExternalModel, RobenchError

TRIAL_IMAGES = 16  # images that a model is asked with
LISTED = 20  # classes whose outputs a message lists


@dataclass(frozen=True)
class Subject:
    """A classifier under test and where it came from.

    Attributes:
        name: for titles and folder names.
        classifier: on its device.
        digest: of weights and code.
        origin: what run.json says about it.
        model: all heads of a robench checkpoint; None for a foreign module.
        heads: what each of them is, as in ``Checkpoint``.
        normalise: mean and std in front of the model, where there are any.
        notes: what of somebody's model was changed so that it fits, and what its files leave open, in sentences.
    """

    name: str
    classifier: Classifier
    digest: str
    origin: dict[str, Any]
    _: KW_ONLY
    model: MultiHead | None = None
    heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    normalise: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_classifier(path: str | Path, device: str = "cpu") -> Classifier:
    """The main task of a robench checkpoint as a classifier."""
    return classifier_of_checkpoint(Path(path), None, device).classifier


def classifier_of_checkpoint(path: Path, dataset: Dataset | None, device: str, head: str = MAIN_HEAD) -> Subject:
    """One task of a checkpoint, checked against the data that it is to be tested on.

    Args:
        path: the file.
        dataset: labelled for the main task, or, where ``head`` is another one, for that (see ``of_head``).
        device: where to put it.
        head: the task.

    Raises:
        RobenchError: see ``load_checkpoint`` and ``rebuild``; or the data set has other classes or another image size.
    """
    checkpoint = load_checkpoint(path)
    if head not in checkpoint.heads or checkpoint.heads[head]["classes"] is None:
        known = ", ".join(name for name, entry in checkpoint.heads.items() if entry["classes"] is not None)
        raise RobenchError(f"{path} has no head {head!r} that classifies; it has {known}")
    n_classes = checkpoint.heads[head]["classes"]
    if dataset is not None and head == MAIN_HEAD and dataset.classes != checkpoint.classes:
        raise RobenchError(
            f"{path} was trained on {checkpoint.dataset} ({checkpoint.n_classes} classes: {_some(checkpoint.classes)}), but {dataset.name} "
            f"has {len(dataset.classes)} ({_some(dataset.classes)}); leave `dataset` out to use the checkpoint's own"
        )
    if dataset is not None and dataset.image_shape != checkpoint.image_shape:
        raise RobenchError(
            f"{path} was trained on images of shape {checkpoint.image_shape}, but {dataset.name} has {dataset.image_shape}"
        )
    preprocessing = {name: tuple(values) for name, values in checkpoint.preprocessing.items()}
    model = rebuild(checkpoint).requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    classifier = Classifier(HeadLogits(model, head, n_classes), n_classes, **preprocessing).to(device)
    origin = {
        "checkpoint": str(path),
        "weights": checkpoint.digest,
        "arch": checkpoint.arch,
        "backbone": checkpoint.backbone,
        "dataset": checkpoint.dataset,
        "recipe": dict(checkpoint.recipe),
        "clean accuracy on the whole test split": dict(checkpoint.clean_accuracy),
        "versions": dict(checkpoint.versions),
        "training seconds": round(sum(epoch.get("seconds", 0.0) for epoch in checkpoint.history)),
    }
    if head != MAIN_HEAD:
        origin["head"] = head
    return Subject(
        checkpoint_name(path), classifier, classifier.digest(), origin, model=model, heads=checkpoint.heads, normalise=preprocessing
    )


def subject_of(ckpt: Path | None, model: str | ExternalModel | None, data: Dataset, device: str, head: str) -> Subject:
    """The checkpoint or the model that a call names, as a classifier of the data.

    Raises:
        RobenchError: see ``classifier_of_checkpoint`` and ``classifier_of_model``.
    """
    if model is None:
        return classifier_of_checkpoint(Path(str(ckpt)), data, device, head)
    return classifier_of_model(ExternalModel(model) if isinstance(model, str) else model, data, device, head)


def of_head(dataset: Dataset, head: str) -> Dataset:
    """The data set as a head of a supervised multitask model is to be tested on it.

    Raises:
        RobenchError: it has no labels for that head.
    """
    if head == MAIN_HEAD:
        return dataset
    if head not in dataset.tasks:
        raise RobenchError(f"`head={head!r}`: {dataset.name} has labels for {', '.join(dataset.tasks)} only")
    labels, classes = dataset.tasks[head]
    return replace(dataset, labels=labels, classes=classes)


def classifier_of_module(
    module: nn.Module | Callable[[Tensor], Any], n_classes: int | None, device: str, name: str = "model", *, mean: Sequence[float] = (),
    std: Sequence[float] = (), head: str = MAIN_HEAD, images: Tensor | None = None, weights_dtype: str = "float32",
    columns: Sequence[int] = (),
) -> Subject:  # fmt: skip
    """Anybody's module, copied so that the original keeps its mode, its gradients and its place, and adapted: see ``adapt``.

    Args:
        module: takes images, returns logits.
        n_classes: of the logits; None for as many as it returns.
        device: where to put it.
        name: for titles.
        mean, std: of the normalisation in front of it, none by default.
        head: which of its outputs holds the logits, where it returns several.
        images: a few, float in [0, 1], to ask it with; needed where its classes are to be counted.
        weights_dtype, columns: see ``adapt``.

    Raises:
        RobenchError: see ``adapt``.
    """
    try:
        adapted = adapt(
            module, images, device=device, head=head, mean=mean, std=std, weights_dtype=weights_dtype, expected=n_classes, columns=columns
        )  # fmt: skip
    except RobenchError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's model may raise anything, and leave
        if is_out_of_memory(error):
            raise
        raise RobenchError(f"the model cannot be used: {raised(error)}") from error
    n_classes = n_classes or adapted.n_classes
    if n_classes is None:
        raise RobenchError(
            f"the model returned {adapted.returned} for one image, expected one tensor of logits (1, n_classes); {adapted.remedy}"
        )
    classifier = Classifier(adapted.module, n_classes, mean=tuple(mean) or (0.0,), std=tuple(std) or (1.0,)).to(device)
    origin = {"module": getattr(module, "__qualname__", type(uncompiled(module)).__qualname__)} | _described(mean, std, head)
    if adapted.notes:
        origin["adapted"] = list(adapted.notes)
    digest = classifier.digest()
    if adapted.hidden:
        digest = hashlib.sha256(f"{digest} {adapted.hidden}".encode()).hexdigest()
    return Subject(name, classifier, digest, origin, notes=adapted.notes)


def raised(error: BaseException) -> str:
    """What somebody's model raised, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line(error)} ({Path(place.filename).name}, line {place.lineno})"


def classifier_of_model(external: ExternalModel, dataset: Dataset, device: str, head: str = MAIN_HEAD) -> Subject:
    """The model that ``--model`` names, as a classifier of the data.

    Args:
        external: see ``robench list models``.
        dataset: what it is to be tested on.
        device: where to put it.
        head: which of its outputs holds the logits, where it returns several.

    Raises:
        RobenchError: see ``load_external``; the normalisation has other channels than the images; the model names its classes in
            another order than the data does.
    """
    selection = selection_of(external.classes, Data(dataset.name, dataset.classes))
    loaded = load_external(external, dataset, selection)
    _refuse_other_order(external, loaded.classes, dataset, selection)
    mean, std = (external.mean, external.std) if external.mean else (loaded.mean, loaded.std)
    channels = dataset.image_shape[0]
    if len(mean) != len(std) or len(mean) not in (0, 1, channels):
        raise RobenchError(
            f"`model={external.reference}`: normalisation by mean {list(mean)} and std {list(std)}, but {dataset.name} has {channels} channels"
        )
    subject = classifier_of_module(
        loaded.module, len(dataset.classes), device, loaded.name, mean=mean, std=std, head=head, images=_trial_images(dataset),
        weights_dtype=external.weights_dtype, columns=selection.columns if selection else (),
    )  # fmt: skip
    digest = hashlib.sha256(subject.digest.encode() + loaded.code).hexdigest() if loaded.code else subject.digest
    origin = {"model": external.reference, **loaded.origin} | _described(mean, std, head)
    if selection is not None:
        origin["classes"] = external.classes
    if subject.notes:
        origin["adapted"] = list(subject.notes)
    return replace(subject, digest=digest, origin=origin, notes=(*loaded.notes, *subject.notes))


def _trial_images(dataset: Dataset) -> Tensor:
    """Images to ask a model with."""
    images = dataset.pixels(slice(0, TRIAL_IMAGES))
    return in_unit(images)


def _described(mean: Sequence[float], std: Sequence[float], head: str) -> dict[str, Any]:
    """What run.json says about how a module is used."""
    return ({"mean": list(mean), "std": list(std)} if mean else {}) | ({"head": head} if head != MAIN_HEAD else {})


def _refuse_other_order(external: ExternalModel, classes: tuple[str, ...], dataset: Dataset, selection: Selection | None) -> None:
    if selection is not None:
        _refuse_other_outputs(external, classes, dataset, selection)
        if not selection.outputs:
            return
        dataset = selection.whole(dataset, None)
    if set(classes) == set(dataset.classes) and classes != dataset.classes:
        raise RobenchError(
            f"`model={external.reference}` has the classes of {dataset.name} in another order: {_some(classes)}; the data has "
            f"{_some(dataset.classes)}; bring one into the order of the other, or every number is wrong"
        )


def _refuse_other_outputs(external: ExternalModel, classes: tuple[str, ...], dataset: Dataset, selection: Selection) -> None:
    """Where the model's files name all classes of the data, the chosen outputs must be those."""
    if not set(dataset.classes) <= set(classes) or max(selection.columns) >= len(classes):
        return
    chosen = tuple(classes[column] for column in selection.columns)
    if chosen != dataset.classes:
        right = ",".join(str(classes.index(name)) for name in dataset.classes)
        remedy = (
            f"the outputs of these names are `classes={right}`"
            if len(dataset.classes) <= LISTED
            else "give the outputs of these names"
        )
        raise RobenchError(
            f"`classes={external.classes}` chooses outputs that the files of `model={external.reference}` call {_some(chosen)}, but the classes of "
            f"{dataset.name} are {_some(dataset.classes)}; {remedy}, or every number is wrong"
        )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
