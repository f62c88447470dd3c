"""The one training loop. Every random draw follows from (seed, epoch), so a state is weights, optimiser and epoch."""

from __future__ import annotations

import io
import json
import platform
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

import robench
from robench.checkpoint import read_description, save_checkpoint
from robench.data.augment import VIEWS, to_unit
from robench.digest import derive_seed
from robench.files import write_atomically
from robench.models.multihead import MAIN, MultiHead
from robench.training.adversarial import ADVERSARIAL
from robench.training.objectives import OBJECTIVES, Terms, make_heads
from robench.training.ranks import Ranks
from robench.training.recipes import RECIPES
from robench.training.spec import TrainSpec
from robench.types import Checkpoint, Dataset, RobenchError, parse_eps

ALONE = Ranks()


def train(
    spec: TrainSpec,
    train_set: Dataset,
    test_set: Dataset,
    *,
    out: Path | None = None,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    show_progress: bool = True,
) -> Path:
    """Trains a model and writes its checkpoint; called again after a kill, it goes on after the last finished epoch.

    In several processes only rank 0 reads and writes files. The last epoch is the model; the test set is only measured, never chosen on.

    Args:
        spec: what to train.
        train_set, test_set: the two splits.
        out: the checkpoint's path, ``checkpoints/<dataset>-<arch>[-<adversarial>]-<seed>.safetensors`` by default.
        device: where to train.
        ranks: this process among those that train the model together, see ``joined``.
        show_progress: a bar per epoch on stderr.

    Returns:
        The checkpoint's path.

    Raises:
        RobenchError: the path holds a model or an unfinished training with other settings; the batch does not divide over the
            processes; the loss is not finite.
    """
    path = Path(out) if out else Path("checkpoints") / spec.default_name
    wanted = asdict(spec) | {"train_set": train_set.digest}
    if path.is_dir():
        raise RobenchError(f"--out {path} is a folder; it takes the checkpoint's file, such as {path / spec.default_name}")
    if spec.batch_size % ranks.world_size:
        raise RobenchError(
            f"batch size {spec.batch_size} does not divide over {ranks.world_size} processes; give --batch-size a multiple of them, "
            "or start another number"
        )
    first = ranks.rank == 0
    if first and path.exists():
        _refuse_difference(path, read_description(path)["recipe"], wanted)
    if ranks.from_first(path.exists()):
        return path
    _check_test_set(train_set, test_set)
    heads = make_heads(spec.arch, train_set, main_width=RECIPES[spec.recipe].main_width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = MultiHead(spec.backbone, heads)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay, fused=device == "cpu" or None)
    state_path = path.with_name(path.name + ".training")
    state = ranks.from_first(state_path.read_bytes() if first and state_path.exists() else b"")
    history = _resume(state, state_path, model, optimizer, wanted)
    if first:
        _save_state(state_path, model, optimizer, wanted, history)  # a folder that cannot be written shows now, not after an epoch
    loop = Loop(spec, model, optimizer, train_set, device, ranks)
    for epoch in range(len(history), spec.epochs):
        history.append(loop.run_epoch(epoch, show_progress and first))
        if first:
            _save_state(state_path, model, optimizer, wanted, history)
    if not first:
        return path
    accuracy = _clean_accuracy(model.eval(), heads, test_set, device)
    save_checkpoint(path, _describe(spec, wanted, model, heads, train_set, accuracy, history))
    state_path.unlink(missing_ok=True)
    return path


def _check_test_set(train_set: Dataset, test_set: Dataset) -> None:
    for what in ("classes", "coarse_classes", "image_shape"):
        there, here = getattr(test_set, what), getattr(train_set, what)
        if there != here:
            raise RobenchError(
                f"the test split of {test_set.name} has other {what.replace('_', ' ')} ({there}) than its train split ({here})"
            )


class Loop:
    """Data on the device, and what one epoch does with it."""

    def __init__(
        self, spec: TrainSpec, model: MultiHead, optimizer: torch.optim.Optimizer, train_set: Dataset, device: str,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.spec, self.model, self.optimizer, self.device, self.ranks = spec, model, optimizer, device, ranks
        self.replica = ranks.replica(model, device)
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

        generator = Generator(self.device).manual_seed(derive_seed("train", self.spec.seed, epoch))
        order = torch.randperm(len(self.images), device=self.device, generator=generator)
        self.model.train()
        totals: dict[str, Tensor] = {}
        started = time.perf_counter()
        watched = sys.stderr.isatty()  # by a person; into a file or a pipe goes a line an epoch
        bar = tqdm(
            range(self.steps), desc=f"epoch {epoch + 1}/{self.spec.epochs}", unit="batch", disable=not (show_progress and watched),
            file=sys.stderr, mininterval=1,
        )  # fmt: skip
        for step in bar:
            batch = order[step * self.spec.batch_size : (step + 1) * self.spec.batch_size]
            share = self.recipe.rate(epoch * self.steps + step, self.steps, self.spec.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = self.spec.lr * share
            for name, value in self.step(batch, generator).items():
                totals[name] = totals.get(name, 0) + value.detach()
            if show_progress and (step % 20 == 19 or step + 1 == self.steps):
                bar.set_postfix_str(said := self._report(totals, step, epoch, started), refresh=False)
        if show_progress and not watched:
            print(f"epoch {epoch + 1} of {self.spec.epochs}: {said}", file=sys.stderr, flush=True)
        means = {name: float(total) / self.steps for name, total in totals.items()}
        if not all(map(_finite, means.values())):
            raise RobenchError(f"the loss of epoch {epoch + 1} is not finite ({means}); lower --lr, or use --precision fp32")
        self.ranks.average_statistics(self.model)
        seconds = time.perf_counter() - started
        speed = self.steps * self.spec.batch_size / seconds
        return means | {"images_per_second": speed, "seconds": seconds, "processes": self.ranks.world_size}

    def _report(self, totals: dict[str, Tensor], step: int, epoch: int, started: float) -> str:
        per_step = (time.perf_counter() - started) / (step + 1)
        left = per_step * (self.steps * (self.spec.epochs - epoch) - step - 1)
        loss = sum(float(total) for total in totals.values()) / (step + 1)
        return f"loss {loss:.3f}, {self.spec.batch_size / per_step:,.0f} images/s, {left / 60:.1f} min left in all"

    def step(self, batch: Tensor, generator: Generator) -> dict[str, Tensor]:
        spec, view = self.spec, VIEWS[self.spec.views]
        pixels, n_views = self.images[batch], self.objective.n_views
        images = torch.cat([view(pixels, generator, mirror=self.mirror) for _ in range(n_views)])
        images = images.contiguous(memory_format=torch.channels_last)
        labels = self.labels[batch].repeat(n_views)
        coarse = None if self.coarse is None else self.coarse[batch].repeat(n_views)
        craft = ADVERSARIAL[spec.adversarial].craft
        noise = images if craft is None else torch.empty_like(images).uniform_(-1, 1, generator=generator)
        images, noise = self._part(images), self._part(noise)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16) if spec.precision == "bf16" else nullcontext():
            if craft is not None and spec.train_eps is not None:
                own_labels, eps = self.ranks.part(labels, n_views), parse_eps(spec.train_eps)
                images = craft(lambda x: self.model(x)[MAIN], images, own_labels, eps, noise)
            outputs = self.replica(images)
        outputs = {name: self.ranks.whole(output.float(), n_views) for name, output in outputs.items()}
        losses = self.objective.loss(outputs, labels, coarse, self.terms)
        self.optimizer.zero_grad(set_to_none=True)
        # Each rank's gradient is its share of a sum, and the replica averages.
        (torch.stack(list(losses.values())).sum() * self.ranks.world_size).backward()
        self.optimizer.step()
        return losses

    def _part(self, images: Tensor) -> Tensor:
        return self.ranks.part(images, self.objective.n_views).contiguous(memory_format=torch.channels_last)


def _finite(value: float) -> bool:
    return value - value == 0


def _save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, wanted: dict, history: list) -> None:
    state = {"spec": json.dumps(wanted), "model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def _resume(saved: bytes, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, wanted: dict) -> list[dict[str, float]]:
    """Loads the state of an unfinished training into model and optimiser; returns its history, empty where there is none."""
    if not saved:
        return []
    try:
        state = torch.load(io.BytesIO(saved), map_location=next(model.parameters()).device, weights_only=True)
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
    targets = {MAIN: test_set.labels}
    if test_set.coarse_labels is not None:
        targets["coarse"] = test_set.coarse_labels
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
        image_shape=train_set.image_shape,
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
