"""What to train: every setting that decides what a training ends with, but for the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robench.data import did_you_mean
from robench.data.augment import VIEWS
from robench.models.backbones import BACKBONES
from robench.training.adversarial import ADVERSARIAL
from robench.training.objectives import OBJECTIVES, OPTIONS, Heads
from robench.training.recipes import RECIPES
from robench.types import Dataset, RobenchError, parse_eps


@dataclass(frozen=True)
class TrainSpec:
    """Everything that decides what a training ends with, but for the machine.

    Attributes:
        arch: a name in ``OBJECTIVES``.
        dataset: name of the training set.
        recipe: a name in ``RECIPES``.
        backbone: a name in ``BACKBONES``.
        adversarial: a name in ``ADVERSARIAL``.
        train_eps: radius of adversarial training, as text; None without it.
        views: "standard" or "simclr".
        lambda_main, lambda_aux, temperature: see ``Terms``.
        epochs, batch_size, lr, weight_decay: of Adam.
        seed: of weights, order, augmentation and adversarial noise.
        precision: "fp32", "tf32" (convolutions and matrix products on NVIDIA GPUs since Ampere), "bf16" (autocast of the forward pass),
            or "auto" for which of fp32 and bf16 the device does faster.
    """

    arch: str
    dataset: str
    recipe: str
    backbone: str
    adversarial: str
    train_eps: str | None
    views: str
    lambda_main: float
    lambda_aux: float
    temperature: float
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int
    precision: str

    @classmethod
    def of(cls, arch: str, dataset: Dataset, *, recipe: str = "paper", adversarial: str = "none", **chosen: Any) -> TrainSpec:
        """A full specification: what is given, and the recipe's and data set's defaults for the rest (None counts as not given).

        Raises:
            RobenchError: a name is unknown, a number is out of its range, or an option means nothing for this variant; or the variant has
                no weights for the recipe.
        """
        check_names(arch, recipe, adversarial)
        chosen = {name: value for name, value in chosen.items() if value is not None}
        _refuse_options_without_meaning(arch, adversarial, chosen)
        objective, defaults = OBJECTIVES[arch], RECIPES[recipe]
        if recipe not in objective.lambdas:
            raise RobenchError(
                f"arch {arch!r} has no weights for the recipe {recipe!r}; it has them for {', '.join(objective.lambdas)}"
            )
        lambda_main, lambda_aux = objective.lambdas[recipe]
        settings: dict[str, Any] = {
            "backbone": "resnet18",
            "train_eps": None if adversarial == "none" else dataset.default_eps["Linf"],
            "views": objective.views,
            "lambda_main": lambda_main,
            "lambda_aux": lambda_aux,
            "temperature": defaults.temperature,
            "epochs": defaults.epochs,
            "batch_size": defaults.batch_size,
            "lr": defaults.lr,
            "weight_decay": defaults.weight_decay,
            "seed": 0,
            "precision": "fp32",
        } | chosen
        spec = cls(arch=arch, dataset=dataset.name, recipe=recipe, adversarial=adversarial, **settings)
        spec._check(dataset)
        return spec

    def _check(self, dataset: Dataset) -> None:
        if self.backbone not in BACKBONES:
            raise RobenchError(f"unknown backbone {self.backbone!r}; expected one of {', '.join(BACKBONES)}")
        if self.views not in VIEWS:
            raise RobenchError(f"unknown views {self.views!r}; expected one of {', '.join(VIEWS)}")
        if dataset.images.shape[1] != 3:
            raise RobenchError(f"{dataset.name} has {dataset.images.shape[1]} channels, the backbones take 3")
        if not 0 <= self.seed < 2**63:
            raise RobenchError(f"`seed={self.seed}`: expected 0 to 2^63 - 1")
        if self.epochs < 1 or self.batch_size < 2:
            raise RobenchError(f"epochs {self.epochs} and batch size {self.batch_size}: at least 1 and 2 are needed")
        if self.batch_size > len(dataset):
            raise RobenchError(f"batch size {self.batch_size} exceeds the {len(dataset)} training images; lower `batch_size`")
        for name in ("lr", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise RobenchError(f"`{name}={getattr(self, name)}`: expected a number above 0")
        for name in ("lambda_main", "lambda_aux"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RobenchError(f"`{name}={getattr(self, name)}`: expected a number of at least 0")
        if self.train_eps is not None and not 0 < parse_eps(self.train_eps) <= 1:
            raise RobenchError(f"`train_eps={self.train_eps}` is not in pixel units of [0, 1]; did you mean {self.train_eps}/255?")
        if self.precision not in ("fp32", "tf32", "bf16", "auto"):
            raise RobenchError(f"unknown precision {self.precision!r}; expected fp32, tf32, bf16 or auto")

    def heads(self, dataset: Dataset) -> Heads:
        """The heads that the model has on a data set.

        Raises:
            RobenchError: the data set lacks what the variant needs.
        """
        return OBJECTIVES[self.arch].heads(dataset, RECIPES[self.recipe])

    @property
    def default_name(self) -> str:
        adversarial = "" if self.adversarial == "none" else f"-{self.adversarial}"
        return f"{self.dataset}-{self.arch}{adversarial}-{self.seed}.safetensors"


def check_names(arch: str, recipe: str, adversarial: str) -> None:
    """Whether the names are known; needs no data.

    Raises:
        RobenchError: one is not.
    """
    named = (("arch", arch, OBJECTIVES), ("recipe", recipe, RECIPES), ("adversarial training", adversarial, ADVERSARIAL))
    for kind, name, known in named:
        if name not in known:
            file, dot, _ = name.partition(".py")
            own = (
                f"; a variant of your own is trained by its file: python {file}.py train --arch NAME, see docs/adding-a-variant.md"
            )
            raise RobenchError(
                f"unknown {kind} {name!r}; expected one of {', '.join(known)}{own if dot and kind == 'arch' else ''}"
            )


def _refuse_options_without_meaning(arch: str, adversarial: str, chosen: dict[str, Any]) -> None:
    for name in sorted(OBJECTIVES[arch].options - set(OPTIONS)):
        raise RobenchError(
            f"variant {arch!r} names the option {name!r}, which is none{did_you_mean(name, OPTIONS)}; options are {', '.join(OPTIONS)}"
        )
    meaningless = set(OPTIONS) - OBJECTIVES[arch].options
    if adversarial == "none":
        meaningless = meaningless | {"train_eps"}
    for name in sorted(meaningless & set(chosen)):
        when = "without `adversarial`" if name == "train_eps" else f"for arch {arch!r}"
        raise RobenchError(f"`{name}` has no meaning {when}; leave it out")
