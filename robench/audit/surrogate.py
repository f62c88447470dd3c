"""A second model that imitates the first one's answers, to attack in its place where its own gradients cannot be trusted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import nn

from robench.attacks import parse_columns
from robench.attacks.crafting_targets import Transfer, crafted_on
from robench.data.augment import in_unit
from robench.digest import digest_tensors
from robench.evaluation.judge import classes_of
from robench.files import write_atomically
from robench.models.backbones import BACKBONES
from robench.models.classifier import Classifier
from robench.models.failures import narrowed
from robench.models.seeded import seeded
from robench.models.subject import Subject
from robench.types import Attack, Dataset, ThreatModel

if TYPE_CHECKING:
    from torch import Tensor

SURROGATE = "pgd50@surrogate"  # the attack's name
LARGEST_SET = 20_000  # images that it learns from
LARGEST_BYTES = 2**29  # of their pixels
BATCH = 128
STEPS = 600
SMALL_BACKBONE_BELOW = 10_000  # images below which a small backbone learns as much


def surrogate_attack(subject: Subject, learn_from: Dataset, threat: ThreatModel, file: Path, seed: int) -> Attack:
    """PGD-50 crafted on a model that was distilled from the judged one, on the samples that are still robust.

    Args:
        subject: the judged model.
        learn_from: images whose labels are asked of it; their own labels are not used.
        threat: the threat model.
        file: the file that keeps the surrogate's weights.
        seed: of the distillation.

    Source: Papernot et al. 2017, https://arxiv.org/abs/1602.02697 (substitute models).
    """
    module = _untrained(subject.classifier.n_classes, len(learn_from), learn_from.image_shape[0])
    if file.exists():
        module.load_state_dict(load_file(file))
    else:
        _distil(module, subject.classifier, learn_from, seed)
        write_atomically(file, save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))
    device = subject.classifier.device
    other = Subject(
        "surrogate", Classifier(module, subject.classifier.n_classes).to(device), digest_tensors(module.state_dict()), {}
    )
    ((attack,),) = (column.stages for column in parse_columns("pgd50", threat, subject.classifier.n_classes))
    return crafted_on(attack, other, Transfer(other.classifier, whole_chunks=False))


def n_learned(learn_from: Dataset) -> int:
    """How many of the images a surrogate learns from."""
    return min(len(learn_from), LARGEST_SET, LARGEST_BYTES // math.prod(learn_from.image_shape))


def _untrained(n_classes: int, images: int, n_channels: int) -> nn.Module:
    entry = BACKBONES["small" if images < SMALL_BACKBONE_BELOW else "resnet18"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(entry.build(), nn.Linear(entry.n_features, n_classes))
        if n_channels != 3:  # backbones see three
            model.insert(0, nn.Conv2d(n_channels, 3, 1))
        return model


def _distil(module: nn.Module, teacher: Classifier, learn_from: Dataset, seed: int) -> None:
    """Learns the classes that the teacher names, on images and on noisy copies of them."""
    device = teacher.device
    images = learn_from.pixels(slice(0, n_learned(learn_from)))
    with torch.no_grad():
        named = torch.cat([_named(teacher, _unit(part).to(device)) for part in images.split(250)])
    known = named >= 0
    images, named = images[known.cpu()], named[known]
    module.to(device).train()
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    with seeded(seed, device):
        for _ in range(STEPS):
            rows = torch.randint(len(images), (BATCH,))
            batch = _unit(images[rows]).to(device)
            noisy = (batch + 0.1 * torch.randn_like(batch)).clamp(0, 1)
            optimiser.zero_grad()
            F.cross_entropy(module(noisy), named[rows.to(device)]).backward()
            optimiser.step()
    module.eval()


def _named(teacher: Classifier, images: Tensor) -> Tensor:
    """The class that the teacher says, of a random one the class of most of its votes; -1 where it says none."""
    if teacher.draws == 1:
        return classes_of(teacher.heard(images)[0])
    blank = images.new_zeros((1, teacher.n_classes))
    votes = narrowed(lambda part: teacher.votes(images[part]), len(images), blank, largest_pass=teacher.largest_pass).logits
    return torch.where(votes.amax(1) > 0, votes.argmax(1), -1)


def _unit(images: Tensor) -> Tensor:
    return in_unit(images)
