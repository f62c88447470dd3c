"""The training step as one CUDA graph: its launches are recorded once, and then done again by a single one.

What changes from step to step lies in tensors that stay where they are: inputs, weights, the optimiser's moments, its count and its rate.
Draws, augmentation and the images of adversarial training are made outside, as without a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from robench.models.recording import recorded_into

Update = Callable[[Tensor, Mapping[str, Tensor]], Mapping[str, Tensor]]  # images and targets to the loss's terms, after one step

IN_ONE_GRAPH = "captured in one CUDA graph"  # as a checkpoint says it
WARM_UP = 2  # updates before a capture, in which libraries allocate what they keep
# Where cuDNN may sum in any order: relative to a term, and to how far the weights moved. Adam turns noise in a small gradient into a whole step.
LOSSES_ALIKE, WEIGHTS_ALIKE = 1e-3, 0.1


class Graph(Protocol):
    """Records what a function launches, and launches it again on whatever then lies in the same tensors."""

    def record(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Calls the function any number of times; the tensors that it returned, which every replay fills.

        Raises:
            RuntimeError: what it does cannot be recorded.
        """
        ...

    def replay(self) -> None:
        """Does what was recorded."""
        ...


class CudaGraph:
    """``torch.cuda.CUDAGraph``, with the warm-up that it needs.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: str) -> None:
        self.device, self.graph = torch.device(device), torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        with torch.cuda.device(self.device):
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    work()
            current.wait_stream(side)
            with recorded_into(self.graph, self.device):
                return work()

    def replay(self) -> None:
        self.graph.replay()


def is_capturable(device: str) -> bool:
    """Whether a device has graphs."""
    return device.startswith("cuda")


def graph_for(device: str) -> Graph | None:
    """What records on a device; None where nothing does."""
    return CudaGraph(device) if is_capturable(device) else None


class CapturedStep:
    """An update whose launches are recorded; called like it, it returns terms that the next call overwrites.

    Args:
        update: what is recorded.
        graph: what records it.
        images, targets: shapes, and what the recording may compute with.
    """

    def __init__(self, update: Update, graph: Graph, images: Tensor, targets: Mapping[str, Tensor]) -> None:
        self.images, self.targets, self.graph = images.clone(), {head: each.clone() for head, each in targets.items()}, graph
        self.losses = graph.record(lambda: {name: loss.detach() for name, loss in update(self.images, self.targets).items()})

    def __call__(self, images: Tensor, targets: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self.images.copy_(images)
        for head, each in self.targets.items():
            each.copy_(targets[head])
        self.graph.replay()
        return self.losses


class Attempt(NamedTuple):
    """A captured step, or why there is none."""

    step: CapturedStep | None
    why_not: str


def captured(
    update: Update, graph: Graph, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Mapping[str, Tensor]
) -> Attempt:  # fmt: skip
    """The update captured, if one step of it ends as one that is not captured; weights and optimiser are left as they were.

    Recorded are other inputs and another rate than those of the comparison, so whatever a graph would not read anew shows as a difference.
    Where cuDNN is deterministic both steps must be equal bit for bit, else alike. An optimiser that has not stepped gets its moments, of zeros.

    Args:
        update: calls the optimiser once.
        graph: what records.
        model, optimizer: all that the update changes.
        images: float32 (n_views * N, C, H, W).
        targets: head to int64 (n_views * N,).
    """
    before = _snapshot(model, optimizer)
    rate = float(optimizer.param_groups[0]["lr"])
    expected = _taken(update, model, optimizer, images, targets)
    before += [torch.zeros_like(each) for each in expected.state[len(before) :]]
    try:
        _restore(before, model, optimizer)
        set_rate(optimizer, 0.0)
        step = CapturedStep(update, graph, images.flip(0), {head: each.roll(1) for head, each in targets.items()})
        _restore(before, model, optimizer)
        set_rate(optimizer, rate)
        difference = _difference(before, expected, _taken(step, model, optimizer, images, targets), len(list(model.parameters())))
    except RuntimeError as error:
        difference = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    set_rate(optimizer, rate)
    _restore(before, model, optimizer)
    return Attempt(None if difference else step, difference)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate, in place where it is a tensor, as a graph needs it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class _Taken(NamedTuple):
    """What a step ended with."""

    losses: dict[str, Tensor]
    state: list[Tensor]


def _taken(
    update: Update, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Mapping[str, Tensor]
) -> _Taken:  # fmt: skip
    losses = {name: loss.detach().clone() for name, loss in update(images, targets).items()}
    return _Taken(losses, _snapshot(model, optimizer))


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that a step changes, parameters first, and last what the optimiser has from its first step on."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    kept = [value for each in parameters for value in optimizer.state.get(each, {}).values() if isinstance(value, Tensor)]
    return [*model.parameters(), *model.buffers(), *kept]


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [each.detach().clone() for each in _tensors(model, optimizer)]


@torch.no_grad()
def _restore(values: list[Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for tensor, value in zip(_tensors(model, optimizer), values, strict=True):
        tensor.copy_(value)


def _difference(before: list[Tensor], expected: _Taken, got: _Taken, n_parameters: int) -> str:
    """In what a captured step differs from another too much, "" where it does not."""
    losses = [(got.losses[name] - loss).abs() for name, loss in expected.losses.items()]
    weights = slice(n_parameters)
    apart, moved = _distance(got.state[weights], expected.state[weights]), _distance(expected.state[weights], before[weights])
    found = f"losses by {float(torch.stack(losses).max()):.1e}, weights by {float(apart / moved):.1e} of their step"
    if torch.backends.cudnn.deterministic:
        pairs = [
            *zip(expected.state, got.state, strict=True),
            *((loss, got.losses[name]) for name, loss in expected.losses.items()),
        ]
        same = all(torch.equal(one, other) for one, other in pairs)
    else:
        close = [each <= LOSSES_ALIKE * loss.abs() for each, loss in zip(losses, expected.losses.values(), strict=True)]
        same = bool(torch.stack(close).all() and apart <= WEIGHTS_ALIKE * moved)
    return "" if same else f"a captured step differs from another: {found}"


def _distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    return torch.stack([(one - other).float().norm() for one, other in zip(first, second, strict=True)]).norm()
