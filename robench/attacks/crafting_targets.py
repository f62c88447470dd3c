"""Attacks whose images are crafted on something else than the classifier under test: another model, or other heads of the same one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robench.digest import digest_tensors
from robench.identity import AttackIdentity, CraftedHeads, SourceModel
from robench.models.classifier import Classifier
from robench.models.multihead import MultiHead
from robench.models.subject import Subject
from robench.types import Attack, Column, CraftingTarget, Dataset, ReturnPolicy, RobenchError

if TYPE_CHECKING:
    from robench.types import Images, Labels

JOINT = "joint"
TEMPERATURE = 0.07  # of the contrastive head's loss, as in the paper's code


@dataclass(frozen=True, eq=False)
class Transfer:
    """Another classifier of the same classes; images are crafted on whole chunks, also on those that it gets wrong, as in the paper."""

    classifier: Classifier
    whole_chunks: bool = True

    def prepare(self, images: Images, labels: Labels, index: Tensor) -> tuple[Classifier, Labels]:
        """The other classifier, and the same labels."""
        return self.classifier.to(images.device), labels


@dataclass(frozen=True, eq=False)
class Heads:
    """Some heads of a model as one classifier whose cross-entropy is the sum of theirs.

    The classes are all combinations of the heads' classes, and the logit of a combination is the sum of the heads' log-softmax
    values: its cross-entropy is the sum of the heads' cross-entropies, so that every attack on a classifier becomes an attack on
    their joint loss with equal weights. A contrastive head counts as a classifier that must tell which of the chunk's clean images
    an image came from (NT-Xent against the clean views).

    Source: Mao et al., ECCV 2020, "Multitask Learning Strengthens Adversarial Robustness", section 3 (the joint attack).

    Attributes:
        model: on its device, in eval mode.
        heads: their names.
        widths: head to its classes, None for a contrastive one.
        targets: head to its labels, of the whole data set.
        normalise: what stands before the model.
    """

    model: MultiHead
    heads: tuple[str, ...]
    widths: Mapping[str, int | None]
    targets: Mapping[str, Tensor]
    normalise: Mapping[str, Any]
    whole_chunks: bool = False

    @property
    def digest(self) -> str:
        """Of the weights that images are crafted on."""
        prefixes = tuple(f"heads.{head}." for head in self.heads)
        state = self.model.state_dict()
        return digest_tensors({name: tensor for name, tensor in state.items() if name.startswith(("backbone.", *prefixes))})

    def n_classes(self, chunk: int) -> int:
        """Combinations of classes, where a contrastive head has as many as there are samples in a chunk."""
        return math.prod(self.widths[head] or chunk for head in self.heads)

    def prepare(self, images: Images, labels: Labels, index: Tensor) -> tuple[Classifier, Labels]:
        """The heads as one classifier, and the combinations that the chunk's labels are."""
        combined = torch.zeros_like(labels)
        for head in self.heads:
            head_labels = torch.arange(len(index)) if self.widths[head] is None else self.targets[head][index]
            combined = combined * (self.widths[head] or len(images)) + head_labels.to(labels.device)
        module = _Joint(self.model.to(images.device), self.heads, self.widths)
        classifier = Classifier(module, self.n_classes(len(images)), **self.normalise).to(images.device)
        if any(self.widths[head] is None for head in self.heads):
            with torch.no_grad():
                module.remember(classifier.normalised(images))
        return classifier, combined


class _Joint(nn.Module):
    """Logits of all combinations of the heads' classes, (N, product of widths)."""

    def __init__(self, model: MultiHead, heads: tuple[str, ...], widths: Mapping[str, int | None]) -> None:
        super().__init__()
        self.model, self.names, self.widths = model, heads, widths
        self.references: dict[str, Tensor] = {}

    def remember(self, inputs: Tensor) -> None:
        """Takes the clean images that a contrastive head compares with."""
        outputs = self.model(inputs)
        self.references = {name: F.normalize(outputs[name], dim=1) for name in self.names if self.widths[name] is None}

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.model(inputs)
        if len(self.names) == 1:
            return self._logits(self.names[0], outputs[self.names[0]])
        total = torch.zeros(len(inputs), 1, device=inputs.device)
        for name in self.names:
            total = (total[:, :, None] + self._logits(name, outputs[name]).log_softmax(1)[:, None, :]).flatten(1)
        return total

    def _logits(self, name: str, output: Tensor) -> Tensor:
        if self.widths[name] is None:
            return F.normalize(output, dim=1) @ self.references[name].T / TEMPERATURE
        return output[:, : self.widths[name]]


def crafted_on(attack: Attack, source: Subject, crafting_target: Transfer | None = None) -> Attack:
    """The attack, crafted on another model: a transfer attack, whose name and parameters say so.

    Args:
        attack: to be crafted there.
        source: the other model.
        crafting_target: how; by default on whole chunks.
    """
    target = crafting_target or Transfer(source.classifier)
    return _crafted_by(
        attack,
        target,
        replace(attack.identity, name=f"{attack.name}@{source.name}", crafted_on=SourceModel(source.name, source.digest)),
    )


def _refuse_detectors(columns: list[Column], heads: str) -> None:
    for column in columns:
        if any(stage.returns != ReturnPolicy.LAST for stage in column.stages if stage.crafting_target is None):
            raise RobenchError(
                f"`attack_heads={heads}`: {column.name} leaves a sample alone as soon as the heads that it asks are wrong, which says nothing "
                "about the judged one; use fgsm or pgdN"
            )


def on_heads(columns: list[Column], heads: str, target: Heads) -> list[Column]:
    """The suites, crafted on other heads than the one that is judged; transfer attacks stay as they are.

    Args:
        columns: columns.
        heads: what the user called them.
        target: the same, see ``make_heads_target``.

    Raises:
        RobenchError: an attack ends where its own classifier errs.
    """
    _refuse_detectors(columns, heads)
    asked = CraftedHeads(target.heads, target.digest)

    def moved(attack: Attack, name: str) -> Attack:
        if attack.crafting_target is not None:
            return attack
        return _crafted_by(attack, target, replace(attack.identity, name=name, heads=asked))

    def moved_column(column: Column) -> Column:
        name = f"{column.name}(heads={heads})"
        if column.is_cascade:
            return replace(column, name=name, stages=tuple(moved(stage, stage.name) for stage in column.stages))
        stage = moved(column.stages[0], name)
        return replace(column, name=stage.name, stages=(stage,))

    return [moved_column(column) for column in columns]


def make_heads_target(heads: str, subject: Subject, dataset: Dataset) -> Heads:
    """The heads that a name means, ready to be crafted on.

    Args:
        heads: a head's name, or "joint" for all.
        subject: the model under test.
        dataset: the whole split, with the labels of its main task.

    Raises:
        RobenchError: the model has no such head, or a head's labels are unknown.
    """
    if subject.model is None:
        raise RobenchError(f"`attack_heads={heads}`: only checkpoints of robench have named heads; leave it out for `model`")
    known = list(subject.heads)
    if heads != JOINT and heads not in known:
        raise RobenchError(f"`attack_heads={heads!r}`: the model has the heads {', '.join(known)}; name one, or joint for all")
    chosen = tuple(known) if heads == JOINT else (heads,)
    widths = {name: subject.heads[name]["classes"] for name in chosen}
    targets = {name: labels for name, (labels, _) in dataset.tasks.items()}
    for name in chosen:
        if widths[name] is not None and name not in targets:
            raise RobenchError(f"`attack_heads={heads}`: {dataset.name} has no {name} labels to turn that head away from")
    return Heads(subject.model, chosen, widths, targets, subject.normalise)


def _crafted_by(attack: Attack, crafting_target: CraftingTarget, identity: AttackIdentity) -> Attack:
    # What the other classifier misclassifies proves nothing about this one, so that the referee cannot end the call or share it.
    return replace(attack.identified(identity), crafting_target=crafting_target, returns=ReturnPolicy.LAST, prefix_of="")
