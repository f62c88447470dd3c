"""Why a stored perturbation leaves another model standing: its size, its sign, the loss along it, and what else of its size does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robench.attacks import parse_columns
from robench.audit.probes import agreement
from robench.data.augment import to_unit
from robench.evaluation.external_images import saved_images
from robench.evaluation.run_folder import chunk_seed, split
from robench.models.classifier import Classifier
from robench.models.seeded import seeded
from robench.types import ThreatModel

if TYPE_CHECKING:
    from pathlib import Path

    from robench.types import Dataset, Images, Labels

SAMPLES = 500  # first samples of the test split
BATCH = 250
STEPS = 9  # points along a perturbation, both ends included


def explain(
    classifier: Classifier, dataset: Dataset, threat: ThreatModel, source_run: Path, attacks: tuple[str, ...], n: int
) -> dict[str, Any]:
    """What distinguishes the stored perturbations from the model's own, on the first ``min(n, 500)`` samples.

    Args:
        classifier: the evaluated model.
        dataset: the test split.
        threat: of the attacks.
        source_run: with the stored images of the source model.
        attacks: their names, the strongest last.
        n: samples of the run.

    Returns:
        ``l2`` (mean size of the stored perturbation, per attack), ``sign agreement`` with the evaluated model's own gradient at the
        clean image (per attack; chance is 0.5), ``transfer`` and ``white-box`` loss curves (mean cross-entropy at equal steps from the
        clean image to the stored image, and to the model's own, of the last attack), and ``same size``: accuracy on images that are changed as
        much as the last attack's stored ones, but without its knowledge, see ``_same_size``; "none" and "stored" beside them.
    """
    n = min(n, SAMPLES)
    images, labels = to_unit(dataset.pixels(slice(0, n))), dataset.labels[:n]
    gradient = _gradient(classifier, images, labels)
    deltas = {attack: saved_images(source_run, attack, dataset, n) - images for attack in attacks}
    white_box = _craft(classifier, images, labels, threat, attacks[-1]) - images
    return {
        "n": n,
        "l2": {attack: float(delta.flatten(1).norm(dim=1).mean()) for attack, delta in deltas.items()},
        "sign agreement": {attack: agreement(delta, gradient) for attack, delta in deltas.items()},
        "transfer": _losses(classifier, images, labels, deltas[attacks[-1]]),
        "white-box": _losses(classifier, images, labels, white_box),
        "same size": {
            kind: _accuracy(classifier, (images + change).clamp(0, 1), labels)
            for kind, change in _same_size(images, deltas[attacks[-1]]).items()
        },
    }


def _same_size(images: Images, delta: Tensor) -> dict[str, Tensor]:
    """Changes whose L2 size is each stored perturbation's own: Gaussian noise, blur, the stored perturbation of another image, its pixels
    shuffled, and, to compare with, none and the stored one."""
    size = delta.flatten(1).norm(dim=1)[:, None, None, None]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(delta.shape, generator=generator)
    order = torch.randperm(delta[0].numel(), generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1) - images
    shuffled = delta.flatten(1)[:, order].view_as(delta)
    return {
        "none": torch.zeros_like(delta),
        "noise": _scaled(noise, size),
        "blur": _scaled(blurred, size),
        "shuffled": shuffled,
        "another image's": _scaled(delta.roll(1, 0), size),
        "stored": delta,
    }


def _scaled(change: Tensor, size: Tensor) -> Tensor:
    return change * (size / change.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None])


@torch.no_grad()
def _accuracy(classifier: Classifier, images: Images, labels: Labels) -> float:
    parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    hits = sum(
        int((classifier(batch.to(classifier.device)).argmax(1).cpu() == batch_labels).sum()) for batch, batch_labels in parts
    )
    return hits / len(images)


def _craft(classifier: Classifier, images: Images, labels: Labels, threat: ThreatModel, name: str) -> Images:
    """An attack on every image, also on those that the model gets wrong."""
    ((attack,),) = (column.stages for column in parse_columns(name, threat, classifier.n_classes))
    parts = []
    for chunk in split(len(images), BATCH):
        part, seed = slice(chunk.start, chunk.stop), chunk_seed(0, attack.family, chunk)
        batch, batch_labels = images[part].to(classifier.device), labels[part].to(classifier.device)
        with seeded(seed, batch.device):
            parts.append(attack.fn(classifier, batch, batch_labels, threat, seed).detach().cpu())
    return torch.cat(parts)


def _gradient(classifier: Classifier, images: Images, labels: Labels) -> Tensor:
    parts = []
    for batch, batch_labels in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        batch = batch.to(classifier.device).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(classifier(batch), batch_labels.to(batch.device), reduction="sum"), batch)
        parts.append(gradient.cpu())
    return torch.cat(parts)


@torch.no_grad()
def _losses(classifier: Classifier, images: Images, labels: Labels, delta: Tensor) -> list[float]:
    losses = []
    for share in torch.linspace(0, 1, STEPS).tolist():
        total = 0.0
        for chunk in split(len(images), BATCH):
            part = slice(chunk.start, chunk.stop)
            moved = (images[part] + share * delta[part]).to(classifier.device)
            total += float(F.cross_entropy(classifier(moved), labels[part].to(moved.device), reduction="sum"))
        losses.append(total / len(images))
    return losses
