"""The one training loop. Every random draw follows from (seed, epoch), so a state is weights, optimiser and epoch."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

import robench
from robench.checkpoint import read_description, save_checkpoint, write_atomically
from robench.data.augment import VIEWS, to_unit
from robench.models.backbones import BACKBONES
from robench.models.multihead import MAIN, MultiHead
from robench.training.adversarial import ADVERSARIAL
from robench.training.objectives import OBJECTIVES, Terms, make_heads
from robench.training.recipes import RECIPES
from robench.types import Checkpoint, Dataset, RobenchError, parse_eps


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
        precision: "fp32" or "bf16" (autocast of the forward pass).
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
            RobenchError: a name is unknown, a number is out of its range, or an option means nothing for this variant.
        """
        for kind, name, known in (
            ("arch", arch, OBJECTIVES), ("recipe", recipe, RECIPES), ("adversarial training", adversarial, ADVERSARIAL),
        ):  # fmt: skip
            if name not in known:
                raise RobenchError(f"unknown {kind} {name!r}; expected one of {', '.join(known)}")
        chosen = {name: value for name, value in chosen.items() if value is not None}
        _refuse_options_without_meaning(arch, adversarial, chosen)
        objective, defaults = OBJECTIVES[arch], RECIPES[recipe]
        lambda_main, lambda_aux = defaults.lambdas[arch]
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
        if self.epochs < 1 or self.batch_size < 2:
            raise RobenchError(f"epochs {self.epochs} and batch size {self.batch_size}: at least 1 and 2 are needed")
        if self.batch_size > len(dataset):
            raise RobenchError(f"batch size {self.batch_size} exceeds the {len(dataset)} training images; lower --batch-size")
        if min(self.lr, self.temperature) <= 0 or min(self.lambda_main, self.lambda_aux) < 0:
            raise RobenchError("--lr and --temperature must be above 0, --lambda-main and --lambda-aux at least 0")
        if self.train_eps is not None and not 0 < parse_eps(self.train_eps) <= 1:
            raise RobenchError(f"--train-eps {self.train_eps} is not in pixel units of [0, 1]; did you mean {self.train_eps}/255?")
        if self.precision not in ("fp32", "bf16"):
            raise RobenchError(f"unknown precision {self.precision!r}; expected fp32 or bf16")

    @property
    def default_name(self) -> str:
        adversarial = "" if self.adversarial == "none" else f"-{self.adversarial}"
        return f"{self.dataset}-{self.arch}{adversarial}-{self.seed}.safetensors"


def _refuse_options_without_meaning(arch: str, adversarial: str, chosen: dict[str, Any]) -> None:
    meaningless = {"single": {"lambda_main", "lambda_aux", "temperature"}, "supervised": {"temperature"}}.get(arch, set())
    if adversarial == "none":
        meaningless = meaningless | {"train_eps"}
    for name in sorted(meaningless & set(chosen)):
        option = "--" + name.replace("_", "-")
        where = "without --adversarial" if name == "train_eps" else f"for arch {arch!r}"
        raise RobenchError(f"{option} has no meaning {where}; leave it out")


def train(
    spec: TrainSpec,
    train_set: Dataset,
    test_set: Dataset,
    *,
    out: Path | None = None,
    device: str = "cpu",
    show_progress: bool = True,
) -> Path:
    """Trains a model and writes its checkpoint; called again after a kill, it goes on after the last finished epoch.

    The last epoch is the model; the test set is only measured, never chosen on.

    Args:
        spec: what to train.
        train_set, test_set: the two splits.
        out: the checkpoint's path, ``checkpoints/<dataset>-<arch>[-<adversarial>]-<seed>.safetensors`` by default.
        device: where to train.
        show_progress: a bar per epoch on stderr.

    Returns:
        The checkpoint's path.

    Raises:
        RobenchError: the path holds a model or an unfinished training with other settings; the loss is not finite.
    """
    path = Path(out) if out else Path("checkpoints") / spec.default_name
    wanted = asdict(spec) | {"train_set": train_set.digest}
    if path.exists():
        _refuse_difference(path, read_description(path)["recipe"], wanted)
        return path
    heads = make_heads(spec.arch, train_set, main_width=RECIPES[spec.recipe].main_width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = MultiHead(spec.backbone, heads)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay, fused=device == "cpu" or None)
    state_path = path.with_name(path.name + ".training")
    history = _resume(state_path, model, optimizer, wanted)
    loop = _Loop(spec, model, optimizer, train_set, device)
    for epoch in range(len(history), spec.epochs):
        history.append(loop.run_epoch(epoch, show_progress))
        _save_state(state_path, model, optimizer, wanted, history)
    accuracy = _clean_accuracy(model.eval(), heads, test_set, device)
    save_checkpoint(path, _describe(spec, wanted, model, heads, train_set, accuracy, history))
    state_path.unlink(missing_ok=True)
    return path


class _Loop:
    """Data on the device, and what one epoch does with it."""

    def __init__(
        self, spec: TrainSpec, model: MultiHead, optimizer: torch.optim.Optimizer, train_set: Dataset, device: str
    ) -> None:
        self.spec, self.model, self.optimizer, self.device = spec, model, optimizer, device
        self.images = train_set.images.to(device)
        self.labels = train_set.labels.to(device)
        self.coarse = None if train_set.coarse_labels is None else train_set.coarse_labels.to(device)
        self.mirror = train_set.mirror
        self.objective, self.recipe = OBJECTIVES[spec.arch], RECIPES[spec.recipe]
        self.terms = Terms(spec.lambda_main, spec.lambda_aux, spec.temperature, self.recipe.sum_views)
        self.steps = len(train_set) // spec.batch_size  # an incomplete last batch is dropped; the order is new every epoch

    def run_epoch(self, epoch: int, show_progress: bool) -> dict[str, float]:
        """One pass over the data: mean of every loss term, and images per second."""
        from tqdm import tqdm

        generator = Generator(self.device).manual_seed(_epoch_seed(self.spec.seed, epoch))
        order = torch.randperm(len(self.images), device=self.device, generator=generator)
        self.model.train()
        totals: dict[str, Tensor] = {}
        started = time.perf_counter()
        bar = tqdm(
            range(self.steps), desc=f"epoch {epoch + 1}/{self.spec.epochs}", unit="batch", disable=not show_progress,
            file=sys.stderr, mininterval=1 if sys.stderr.isatty() else 60,
        )  # fmt: skip
        for step in bar:
            batch = order[step * self.spec.batch_size : (step + 1) * self.spec.batch_size]
            share = self.recipe.rate(epoch * self.steps + step, self.steps, self.spec.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = self.spec.lr * share
            for name, value in self._step(batch, generator).items():
                totals[name] = totals.get(name, 0) + value.detach()
            if show_progress and (step % 20 == 19 or step + 1 == self.steps):
                self._report(bar, totals, step, epoch, started)
        means = {name: float(total) / self.steps for name, total in totals.items()}
        if not all(map(_finite, means.values())):
            raise RobenchError(f"the loss of epoch {epoch + 1} is not finite ({means}); lower --lr, or use --precision fp32")
        seconds = time.perf_counter() - started
        return means | {"images_per_second": self.steps * self.spec.batch_size / seconds, "seconds": seconds}

    def _report(self, bar, totals: dict[str, Tensor], step: int, epoch: int, started: float) -> None:
        per_step = (time.perf_counter() - started) / (step + 1)
        left = per_step * (self.steps * (self.spec.epochs - epoch) - step - 1)
        loss = sum(float(total) for total in totals.values()) / (step + 1)
        bar.set_postfix_str(
            f"loss {loss:.3f}, {self.spec.batch_size / per_step:,.0f} images/s, {left / 60:.1f} min left in all", refresh=False
        )

    def _step(self, batch: Tensor, generator: Generator) -> dict[str, Tensor]:
        spec, view = self.spec, VIEWS[self.spec.views]
        pixels, n_views = self.images[batch], self.objective.n_views
        images = torch.cat([view(pixels, generator, mirror=self.mirror) for _ in range(n_views)])
        images = images.contiguous(memory_format=torch.channels_last)
        labels = self.labels[batch].repeat(n_views)
        coarse = None if self.coarse is None else self.coarse[batch].repeat(n_views)
        craft = ADVERSARIAL[spec.adversarial].craft
        with torch.autocast(self.device.split(":")[0], torch.bfloat16) if spec.precision == "bf16" else nullcontext():
            if craft is not None:
                images = craft(lambda x: self.model(x)[MAIN], images, labels, parse_eps(spec.train_eps), generator)
            outputs = self.model(images)
        outputs = {name: output.float() for name, output in outputs.items()}
        losses = self.objective.loss(outputs, labels, coarse, self.terms)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        self.optimizer.step()
        return losses


def _finite(value: float) -> bool:
    return value - value == 0


def _epoch_seed(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"train {seed} {epoch}".encode()).digest()[:8], "big") >> 1


def _save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, wanted: dict, history: list) -> None:
    state = {"spec": json.dumps(wanted), "model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, wanted: dict) -> list[dict[str, float]]:
    """Loads the state of an unfinished training into model and optimiser; returns its history, empty where there is none."""
    if not path.exists():
        return []
    try:
        state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
        found = json.loads(state["spec"])
    except Exception as error:  # torch.load raises half a dozen unrelated types on a damaged file
        raise RobenchError(f"the unfinished training in {path} cannot be read ({error}); delete it to start anew") from None
    _refuse_difference(path, found, wanted)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return list(state["history"])


def _refuse_difference(path: Path, found: dict, wanted: dict) -> None:
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        named = "; ".join(f"{name} is {found.get(name)!r} there and {wanted[name]!r} here" for name in different)
        raise RobenchError(f"{path} is from a training with other settings: {named}. Choose another --out, or delete it")


@torch.inference_mode()
def _clean_accuracy(model: MultiHead, heads: dict, test_set: Dataset, device: str) -> dict[str, float]:
    """Accuracy of every classification head on the test split."""
    targets = {MAIN: test_set.labels, "coarse": test_set.coarse_labels}
    correct = {name: 0 for name, head in heads.items() if head["classes"]}
    for start in range(0, len(test_set), 500):
        outputs = model(to_unit(test_set.images[start : start + 500].to(device)))
        for name in correct:
            predicted = outputs[name][:, : heads[name]["classes"]].argmax(1).cpu()
            correct[name] += int((predicted == targets[name][start : start + 500]).sum())
    return {name: count / len(test_set) for name, count in correct.items()}


def _describe(spec, wanted, model: MultiHead, heads: dict, train_set: Dataset, accuracy: dict, history: list) -> Checkpoint:
    import torchvision

    return Checkpoint(
        arch=spec.arch,
        backbone=spec.backbone,
        dataset=spec.dataset,
        classes=train_set.classes,
        image_shape=tuple(train_set.images.shape[1:]),
        heads=heads,
        preprocessing={},
        recipe=wanted,
        seed=spec.seed,
        epochs=spec.epochs,
        clean_accuracy=accuracy,
        history=tuple(history),
        versions={
            "robench": robench.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        weights=model.state_dict(),
    )
