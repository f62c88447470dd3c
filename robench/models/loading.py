"""Where a classifier comes from: a checkpoint of ours, or a factory in somebody's Python file."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robench.checkpoint import load_checkpoint
from robench.models.classifier import Classifier
from robench.models.multihead import MAIN, HeadLogits, MultiHead, rebuild
from robench.types import Dataset, RobenchError


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
    """

    name: str
    classifier: Classifier
    digest: str
    origin: dict
    model: MultiHead | None = None
    heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    normalise: Mapping[str, Any] = field(default_factory=dict)


def load_classifier(path: str | Path, device: str = "cpu") -> Classifier:
    """The main task of a robench checkpoint as a classifier."""
    return classifier_of_checkpoint(Path(path), None, device).classifier


def classifier_of_checkpoint(path: Path, dataset: Dataset | None, device: str, head: str = MAIN) -> Subject:
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
    if dataset is not None and head == MAIN and dataset.classes != checkpoint.classes:
        raise RobenchError(
            f"{path} was trained on {checkpoint.dataset} ({checkpoint.n_classes} classes: {_some(checkpoint.classes)}), but {dataset.name} "
            f"has {len(dataset.classes)} ({_some(dataset.classes)}); leave --dataset out to use the checkpoint's own"
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
    if head != MAIN:
        origin["head"] = head
    return Subject(path.stem, classifier, classifier.digest(), origin, model, checkpoint.heads, preprocessing)


def of_head(dataset: Dataset, head: str) -> Dataset:
    """The data set as a head of a supervised multitask model is to be tested on it.

    Raises:
        RobenchError: it has no labels for that head.
    """
    if head == MAIN:
        return dataset
    if head != "coarse" or dataset.coarse_labels is None:
        raise RobenchError(
            f"--head {head!r}: {dataset.name} has labels for {'main, coarse' if dataset.coarse_classes else 'main'} only"
        )
    return replace(dataset, labels=dataset.coarse_labels, classes=dataset.coarse_classes)


def classifier_of_module(module: nn.Module, n_classes: int, device: str, name: str = "model") -> Subject:
    """Anybody's module, copied so that the original keeps its mode, its gradients and its place.

    Raises:
        RobenchError: it is no ``torch.nn.Module``.
    """
    if not isinstance(module, nn.Module):
        raise RobenchError(f"the model is a {type(module).__name__}, expected a torch.nn.Module that takes [0, 1] images")
    classifier = Classifier(copy.deepcopy(module), n_classes).to(device)
    return Subject(name, classifier, classifier.digest(), {"module": type(module).__qualname__})


def classifier_of_factory(where: str, dataset: Dataset, device: str) -> Subject:
    """The module that ``file.py:factory`` returns. This runs the file.

    Raises:
        RobenchError: no such file or function; it raised; its result is no module.
    """
    file, _, function = where.rpartition(":")
    path = Path(file)
    if not file and Path(where).is_file():
        raise RobenchError(f"--model {where!r} lacks the function to call: write {where}:FACTORY, such as {where}:make")
    if not file or not path.is_file():
        raise RobenchError(f"--model {where!r}: no file {file or where!r}; expected FILE.py:FACTORY, such as my_model.py:make")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise RobenchError(f"--model {where!r}: {path} is not a Python file")
    namespace = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = namespace  # dataclasses look their module up there
    sys.path.insert(0, str(path.resolve().parent))  # so that the file can import its neighbours, as a script can
    try:
        spec.loader.exec_module(namespace)
        factory = getattr(namespace, function, None)
        if not callable(factory):
            raise RobenchError(f"--model {where!r}: {path} has no function {function!r}")
        module = factory()
    except RobenchError:
        raise
    except Exception as error:  # somebody else's code may raise anything
        raise RobenchError(f"--model {where!r} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    subject = classifier_of_module(module, len(dataset.classes), device, name=f"{path.stem}-{function}")
    code = hashlib.sha256(subject.digest.encode() + path.read_bytes()).hexdigest()
    return Subject(subject.name, subject.classifier, code, {"model": where})


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
