"""The one training loop. Every random draw follows from (seed, epoch), so a killed training goes on to the same weights."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from robench.data.augment import VIEWS
from robench.models.multihead import MAIN_HEAD, MultiHead
from robench.seeds import derive_seed
from robench.training.adversarial import ADVERSARIAL
from robench.training.captured import CapturedStep, Graph, captured, is_capturable, set_rate
from robench.training.objectives import OBJECTIVES, Outputs, Targets, Terms
from robench.training.ranks import Ranks
from robench.training.recipes import RECIPES
from robench.training.spec import TrainSpec
from robench.types import Dataset, RobenchError, parse_eps

ALONE = Ranks()


class Drawn(NamedTuple):
    """Random views of a batch's images, float32 (n_views * N, C, H, W), and what each head is to say about them, by head."""

    images: Tensor
    targets: dict[str, Tensor]


def adam(model: MultiHead, spec: TrainSpec, device: str) -> torch.optim.Adam:
    """The optimiser of a training.

    On CUDA everything that changes from step to step lies on the device, the rate and the count of steps too: so a CUDA graph can hold it, and a
    training without one computes the same.
    """
    if not is_capturable(device):
        return torch.optim.Adam(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay, fused=device == "cpu" or None)
    rate = torch.tensor(spec.lr, device=device)
    return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=spec.weight_decay, fused=True, capturable=True)


class Loop:
    """Data on the device, and what one epoch does with it; with a graph the update of the weights is captured, where that can be."""

    def __init__(
        self, spec: TrainSpec, model: MultiHead, optimizer: torch.optim.Optimizer, train_set: Dataset, device: str,
        ranks: Ranks = ALONE, graph: Graph | None = None,
    ) -> None:  # fmt: skip
        self.graph = graph
        self.captured: CapturedStep | None = None  # from the first step on, which has its inputs
        self.spec, self.model, self.optimizer, self.device, self.ranks = spec, model, optimizer, device, ranks
        self.replica = ranks.replica(model, device)
        self.images = train_set.pixels(slice(None)).to(device)
        self.mirror = train_set.mirror
        self.objective, self.recipe = OBJECTIVES[spec.arch], RECIPES[spec.recipe]
        self.targets = {head: labels.to(device) for head, labels in self.objective.targets(train_set).items()}
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
            set_rate(self.optimizer, self.spec.lr * share)
            for name, value in self.step(batch, generator).items():
                totals[name] = totals.get(name, 0) + value.detach()
            # A report waits for the device.
            if show_progress and ((watched and step % 20 == 19) or step + 1 == self.steps):
                bar.set_postfix_str(line := self._report(totals, step, epoch, started), refresh=False)
        if show_progress and not watched:
            print(f"epoch {epoch + 1} of {self.spec.epochs}: {line}", file=sys.stderr, flush=True)
        means = {name: float(total) / self.steps for name, total in totals.items()}
        if not all(map(_finite, means.values())):
            raise RobenchError(f"the loss of epoch {epoch + 1} is not finite ({means}); lower `lr`, or use `precision=fp32`")
        self.ranks.average_statistics(self.model)
        seconds = time.perf_counter() - started
        speed = self.steps * self.spec.batch_size / seconds
        return means | {"images_per_second": speed, "seconds": seconds, "processes": self.ranks.world_size}

    def _report(self, totals: dict[str, Tensor], step: int, epoch: int, started: float) -> str:
        per_step = (time.perf_counter() - started) / (step + 1)
        left = per_step * (self.steps * (self.spec.epochs - epoch) - step - 1)
        loss = float(torch.stack(list(totals.values())).sum()) / (step + 1)
        return f"loss {loss:.3f}, {self.spec.batch_size / per_step:,.0f} images/s, {left / 60:.1f} min left in all"

    def step(self, batch: Tensor, generator: Generator) -> Mapping[str, Tensor]:
        """One step on a batch of indices, int64 (N,): the loss's terms, to be read before the next step."""
        images, targets = self._inputs(batch, generator)
        if self.graph is not None:
            self.captured, why_not = captured(self._update, self.graph, self.model, self.optimizer, images, targets)
            self.graph = None
            if why_not:
                print(f"robench: the training step is not captured in a CUDA graph: {why_not}", file=sys.stderr)
        return (self.captured or self._update)(images, targets)

    def _inputs(self, batch: Tensor, generator: Generator) -> Drawn:
        """This process's images, adversarial ones where it is trained on these, and the targets of the whole batch."""
        spec, n_views = self.spec, self.objective.n_views
        images, targets = self._drawn(batch, generator)
        craft = ADVERSARIAL[spec.adversarial].craft
        noise = images if craft is None else torch.empty_like(images).uniform_(-1, 1, generator=generator)
        images, noise = self._part(images), self._part(noise)
        if craft is not None and spec.train_eps is not None:
            own_labels, eps = self.ranks.part(targets[MAIN_HEAD], n_views), parse_eps(spec.train_eps)
            with self._autocast():
                images = craft(lambda x: self.model(x)[MAIN_HEAD], images, own_labels, eps, noise)
        return Drawn(images, targets)

    def _update(self, images: Tensor, targets: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Forward, backward, and one step of the optimiser; nothing in it may wait for the device, or be remembered by the host."""
        with self._autocast():
            outputs = self.replica(images)
        outputs = {name: self.ranks.whole(output.float(), self.objective.n_views) for name, output in outputs.items()}
        losses = losses_of(self.spec.arch, outputs, targets, self.terms)
        self.optimizer.zero_grad(set_to_none=True)
        # Each rank's gradient is its share of a sum, and the replica averages.
        (torch.stack(list(losses.values())).sum() * self.ranks.world_size).backward()
        self.optimizer.step()
        return losses

    def _autocast(self) -> AbstractContextManager[Any]:
        bf16 = self.spec.precision == "bf16"
        return torch.autocast(self.device.split(":")[0], torch.bfloat16) if bf16 else nullcontext()

    def _drawn(self, batch: Tensor, generator: Generator) -> Drawn:
        labels = {head: labels[batch] for head, labels in self.targets.items()}
        return drawn(self.spec, self.images[batch], labels, generator, mirror=self.mirror)

    def _part(self, images: Tensor) -> Tensor:
        return self.ranks.part(images, self.objective.n_views).contiguous(memory_format=torch.channels_last)


def drawn(
    spec: TrainSpec, pixels: Tensor, labels: Mapping[str, Tensor], generator: Generator, *, mirror: bool
) -> Drawn:  # fmt: skip
    """Random views of a batch's images, float32 (n_views * N, C, H, W), and what each head is to say about them.

    Args:
        spec: what is trained.
        pixels: uint8 (N, C, H, W).
        labels: head to int64 (N,), of the data set.
        generator: on the device of the pixels.
        mirror: see ``Dataset``.
    """
    objective, view = OBJECTIVES[spec.arch], VIEWS[spec.views]
    images = torch.cat([view(pixels, generator, mirror=mirror) for _ in range(objective.n_views)])
    targets = {head: each.repeat(objective.n_views) for head, each in labels.items()}
    if objective.pretext is not None:
        images, made = objective.pretext(images, generator)
        targets |= made
    return Drawn(images.contiguous(memory_format=torch.channels_last), targets)


def losses_of(arch: str, outputs: Outputs, targets: Targets, terms: Terms) -> Mapping[str, Tensor]:
    """The terms of a variant's loss.

    Raises:
        RobenchError: it returned something else.
    """
    losses = OBJECTIVES[arch].loss(outputs, targets, terms)
    if not isinstance(losses, Mapping) or not losses:
        raise RobenchError(
            f"the loss of variant {arch!r} returned {type(losses).__name__}, expected a dictionary of terms by head, each a tensor of one number"
        )
    return losses


def _finite(value: float) -> bool:
    return value - value == 0
