"""CONTROLS: models built to cheat, each with the checks that must notice, and honest ones that no check may accuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from robench.audit.cheats import BatchStatistics, Crop, Detached, Inputs, KWinners, NoGradient, Noise, Outputs, Quantise, Ripple
from robench.data.augment import to_unit
from robench.evaluation.external_images import saved_images
from robench.models.multihead import MAIN_HEAD
from robench.models.seeded import seeded
from robench.models.subject import Subject, classifier_of_module, load_classifier
from robench.run.attack import attack
from robench.run.request import AttackRequest
from robench.training.spec import TrainSpec
from robench.training.trainer import train
from robench.types import Dataset, RobenchError, parse_eps


@dataclass(frozen=True, eq=False)
class Bench:
    """Where controls come from: a data set, and models trained on it that the controls are wrapped around.

    Attributes:
        train_set, test_set: the data.
        folder: of the trained models.
        device: to train on.
        wrapped: the checkpoint that controls are wrapped around in place of one that is trained here; see ``WRAPPERS``.
    """

    train_set: Dataset
    test_set: Dataset
    folder: Path
    device: str = "cpu"
    wrapped: Path | None = None

    @property
    def eps(self) -> float:
        """The data set's own radius."""
        return parse_eps(self.test_set.default_eps["Linf"])

    def trained(self, arch: str = "single", adversarial: str = "none", seed: int = 0, epochs: int = 15) -> nn.Module:
        """The main task of a model that robench trains, as a plain module of logits."""
        name = f"{arch}-{adversarial}-{seed}"
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            spec = TrainSpec.of(
                arch, self.train_set, backbone="small", adversarial=adversarial, seed=seed, epochs=epochs, batch_size=64, lr=5e-3
            )
            train(spec, self.train_set, self.test_set, out=path, device=self.device, show_progress=False)
        return load_classifier(path, self.device).module

    @cached_property
    def undefended(self) -> nn.Module:
        """Single task, no defence."""
        return self.trained() if self.wrapped is None else load_classifier(self.wrapped, self.device).module

    @cached_property
    def defended(self) -> nn.Module:
        """The same, adversarially trained with N-FGSM."""
        return self.trained(adversarial="nfgsm", epochs=30)

    def fitted(self, module: nn.Module, *, smoothing: float = 0.0, epochs: int = 15) -> nn.Module:
        """A module of somebody's own, trained by plain cross-entropy."""
        images, labels = to_unit(self.train_set.pixels(slice(None))), self.train_set.labels
        optimiser = torch.optim.Adam(module.parameters(), lr=2e-3)
        with seeded(0, torch.device("cpu")):
            for _ in range(epochs):
                for rows in torch.randperm(len(images)).split(64):
                    optimiser.zero_grad()
                    F.cross_entropy(module(images[rows]), labels[rows], label_smoothing=smoothing).backward()
                    optimiser.step()
        return module.to(self.device).eval()

    def network(self, activation: Callable[[], nn.Module], depth: int, width: int) -> nn.Module:
        """An untrained fully connected network."""
        size, n_classes = math.prod(self.train_set.image_shape), len(self.train_set.classes)
        with seeded(0, torch.device("cpu")):
            layers: list[nn.Module] = [nn.Flatten()]
            for _ in range(depth):
                layers += [nn.Linear(size, width), activation()]
                size = width
            return nn.Sequential(*layers, nn.Linear(size, n_classes))


class StoredImages(NamedTuple):
    """Where stored images are, a file or RUN:ATTACK, and the checkpoint that they are said to come from, None where nobody says."""

    adv: str
    source: Path | None = None


@dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
        make: builds the module.
        honest: whether no check may fail on it.
        must: checks of which at least one must notice it, see ``complaint_of``.
        about: how it cheats, or why it is honest.
        external: where its number's stored images are, and the checkpoint that they are said to come from.
        eps: of the threat model, where it is not the data set's own.
    """

    make: Callable[[Bench], nn.Module]
    _: KW_ONLY
    honest: bool
    must: tuple[str, ...]
    about: str
    external: Callable[[Bench, int, str], StoredImages] | None = None
    eps: str | None = None


def _external(bench: Bench, name: str, checkpoint: str, *, n: int, eps: str, heads: str) -> StoredImages:
    """PGD-20 crafted on a trained model, as ``robench attack --save-adv`` keeps it."""
    run = bench.folder / f"{name}-run-{n}"
    request = AttackRequest("pgd20", eps=eps, n=n, attack_heads=heads, save_adv=True, chunk=n)
    attack(request, ckpt=bench.folder / f"{checkpoint}.safetensors", device=bench.device, out=run, show_progress=False)
    return StoredImages(f"{run}:pgd20" + (f"(heads={heads})" if heads != MAIN_HEAD else ""))


def _wrong_head(bench: Bench, n: int, eps: str) -> StoredImages:
    bench.trained(arch="supervised")
    return _external(bench, "wrong-head", "supervised-none-0", n=n, eps=eps, heads="coarse")


def _other_model(bench: Bench, n: int, eps: str) -> StoredImages:
    bench.trained()
    return _external(bench, "stored-file", "single-none-0", n=n, eps=eps, heads=MAIN_HEAD)


def _unnamed(bench: Bench, n: int, eps: str) -> StoredImages:
    """The images of another model as a file that says nothing about it."""
    run, _, attack_name = _other_model(bench, n, eps).adv.rpartition(":")
    images = saved_images(Path(run), attack_name, bench.test_set, n)
    path = bench.folder / f"unknown-{n}.pt"
    torch.save({"adv_inputs": images, "labels": bench.test_set.labels[:n].clone()}, path)
    return StoredImages(str(path))


def _copy(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module)


CONTROLS: dict[str, Control] = {
    "undefended": Control(lambda bench: bench.undefended, honest=True, must=(), about="no defence"),
    "adversarial-nfgsm": Control(lambda bench: bench.defended, honest=True, must=(), about="adversarially trained with N-FGSM"),
    "adversarial-pgd": Control(lambda bench: bench.trained(adversarial="pgd", epochs=20), honest=True, must=(), about="adversarially trained with PGD"),
    "linear": Control(lambda bench: bench.fitted(bench.network(nn.Identity, 0, 0)), honest=True, must=(), about="one linear layer"),
    "honest-noise": Control(
        lambda bench: Inputs(Noise(bench.eps / 10), bench.defended), honest=True, must=("randomness",), about="small noise in front of the N-FGSM model; said to be random"
    ),
    "label-smoothing": Control(
        lambda bench: bench.fitted(bench.network(nn.ReLU, 2, 256), smoothing=0.9), honest=False, must=(), about="trained with label smoothing 0.9"
    ),
    "large-logits": Control(
        lambda bench: Outputs(_copy(bench.undefended), lambda logits: 1e4 * logits), honest=False, must=("rescaling", "saturation", "zero-gradients"),
        about="logits x 1e4: cross-entropy underflows",
    ),
    "saturating": Control(
        lambda bench: Outputs(_copy(bench.undefended), lambda logits: 100 * torch.tanh(20 * logits)), honest=False, must=("zero-gradients",),
        about="a last layer that saturates",
    ),
    "quantised": Control(
        lambda bench: Inputs(Quantise(4), _copy(bench.undefended)), honest=False, must=("input-stage", "zero-gradients"), about="input rounded to five levels"
    ),
    "ripple": Control(
        lambda bench: Inputs(Ripple(), _copy(bench.undefended)), honest=False, must=("secants",), about="input with a ripple that turns gradients about"
    ),
    "k-winners": Control(
        lambda bench: bench.fitted(bench.network(lambda: KWinners(0.03), 5, 400)), honest=False, must=("continuity", "silent-success"),
        about="k-winners-take-all activations",
    ),
    "random-crop": Control(lambda bench: Inputs(Crop(4), _copy(bench.undefended)), honest=False, must=("randomness",), about="random shift at test time"),
    "random-noise": Control(lambda bench: Inputs(Noise(1.5 * bench.eps), _copy(bench.undefended)), honest=False, must=("randomness",), about="large noise at test time"),
    "train-mode": Control(
        lambda bench: BatchStatistics(_copy(bench.undefended)), honest=False, must=("batch-dependence", "train-mode"), about="BatchNorm on the batch's own statistics"
    ),
    "softmax": Control(
        lambda bench: Outputs(_copy(bench.undefended), lambda logits: logits.softmax(1)), honest=False, must=("softmax-outputs",), about="returns probabilities"
    ),
    "detached": Control(lambda bench: Detached(_copy(bench.undefended)), honest=False, must=("zero-gradients",), about="gradient cut behind the input"),
    "no-gradient": Control(lambda bench: NoGradient(_copy(bench.undefended)), honest=False, must=("zero-gradients",), about="computes without gradients"),
    "wrong-head": Control(
        lambda bench: bench.trained(arch="supervised"), honest=False, must=("provenance",), about="stored images crafted on the coarse head", external=_wrong_head,
    ),
    "stored-file": Control(
        lambda bench: bench.trained(arch="contrastive"), honest=False, must=("provenance",), about="the paper's protocol: images crafted on another model",
        external=_other_model, eps="0.1",
    ),
    "unknown-file": Control(
        lambda bench: bench.trained(arch="contrastive"), honest=False, must=("transfer-gap",), about="the same, and nobody says on which", external=_unnamed, eps="0.1",
    ),
}  # fmt: skip


# Controls that are made of an undefended model alone, and so can be wrapped around any.
WRAPPERS = (
    "undefended", "large-logits", "saturating", "quantised", "ripple", "random-crop", "random-noise", "train-mode", "softmax", "detached",
    "no-gradient",
)  # fmt: skip


def subject_of_control(name: str, bench: Bench) -> Subject:
    """The control as the audit sees it.

    Raises:
        RobenchError: there is none of that name.
    """
    if name not in CONTROLS:
        raise RobenchError(f"unknown control {name!r}; there are {', '.join(CONTROLS)}")
    subject = classifier_of_module(CONTROLS[name].make(bench), len(bench.test_set.classes), bench.device, name=name)
    return replace(subject, origin={"control": CONTROLS[name].about})
