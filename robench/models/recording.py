"""What records operations of a device, and one pass of a classifier recorded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from robench.types import Logits

WARM_UPS = 2  # passes by which libraries settle their plans before a recording


class Recording(NamedTuple):
    """What runs the recorded operations again, on the memory on which they were recorded, and the tensor in which their result lies then."""

    replay: Callable[[], None]
    result: Tensor


class Recorder(Protocol):
    """Records operations of a device. All recordings of one recorder share their memory for what lies between input and result."""

    def rehearse(self, work: Callable[[], Tensor]) -> None:
        """Runs ``work`` as often as it takes to settle, and raises where it could not be recorded."""
        ...

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """Records ``work``, whose inputs keep their place in memory."""
        ...

    def forget(self) -> None:
        """Lets the shared memory go with the recordings that it has; what is recorded from now on shares another one."""
        ...


class CudaGraphs:
    """Records CUDA graphs, all in one pool of memory.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream = torch.cuda.Stream(device)  # of forward and backward alike, or autograd would leave the recorded stream

    def rehearse(self, work: Callable[[], Tensor]) -> None:
        """See ``Recorder``. An operation that waits for the device raises, which it would while it is recorded, with worse consequences."""
        strict = torch.cuda.get_sync_debug_mode()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with warnings.catch_warnings(), torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            warnings.simplefilter("ignore")  # that this mode does not notice every such operation
            try:
                torch.cuda.set_sync_debug_mode("error")
                for _ in range(WARM_UPS):
                    work()
            finally:
                torch.cuda.set_sync_debug_mode(strict)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """See ``Recorder``."""
        graph = torch.cuda.CUDAGraph()
        with recorded_into(graph, self._device, pool=self._pool, stream=self._stream):
            result = work()
        self._pool = self._pool or graph.pool()
        return Recording(graph.replay, result)

    def forget(self) -> None:
        """See ``Recorder``."""
        self._pool = None


@contextmanager
def recorded_into(graph: torch.cuda.CUDAGraph, device: torch.device, *, pool: Any = None, stream: Any = None) -> Iterator[None]:
    """What is launched inside is recorded; where that fails, the current stream and the device's generator are as they were.

    Args:
        graph: that records it.
        device: a CUDA device.
        pool: of memory that recordings share, None for one of its own.
        stream: on which it is recorded, None for one of torch's own.
    """
    outside = torch.cuda.current_stream(device)
    try:
        # The outer stream is left behind even where the end of the recording raises, which leaves the inner one current.
        with torch.cuda.device(device), torch.cuda.stream(outside), torch.cuda.graph(graph, pool=pool, stream=stream):
            yield
    except BaseException:
        _renew_generator(device)
        raise


def _renew_generator(device: torch.device) -> None:
    """A recording that failed may leave the device's generator as if it were still recorded, and then every later draw raises."""
    generator, fresh = torch.cuda.default_generators[device.index or 0], torch.Generator(device)
    fresh.set_state(generator.get_state())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())


def recorder_for(device: torch.device) -> Recorder | None:
    """What records passes on a device; None where they are computed operation by operation."""
    return CudaGraphs(device) if device.type == "cuda" else None


@dataclass
class Memory:
    """What the recordings of a classifier share.

    Attributes:
        version: counts replays; what lies between input and result is that of the last one alone.
        logits: of the last forward pass that was computed, with what its gradient needs, while something is recorded.
        recomputed: forward passes that were replayed once more, since another replay came between them and their backward pass.
    """

    version: int = 0
    logits: Tensor | None = None
    recomputed: int = 0

    def keep(self, logits: Tensor) -> Tensor:
        """Notes logits whose gradient may be asked for next."""
        self.logits = logits
        return logits

    def take(self) -> Tensor:
        """The noted logits, once."""
        logits, self.logits = self.logits, None
        assert logits is not None, "a backward pass follows its forward pass"
        return logits

    def forget(self) -> None:
        """Lets the noted logits go."""
        self.logits = None

    def use(self) -> int:
        """Says that something was replayed, and returns the version after it."""
        self.version += 1
        return self.version

    def is_stale(self, version: int) -> bool:
        """Whether a replay has come since; then the forward pass is replayed once more, which is counted."""
        self.recomputed += self.version != version
        return self.version != version


class Kind(NamedTuple):
    """What a recording is of: the images of a pass, their shape (C, H, W), and whether their gradient is asked for."""

    size: int
    shape: tuple[int, ...]
    gradient: bool


class RecordedPass:
    """One kind of pass, recorded.

    Args:
        compute: inputs -> logits, what is recorded.
        padded: inputs (kind.size, C, H, W) of the right device.
        kind: its kind.
        recorder: of the device.
        memory: of all recordings of this recorder.
    """

    def __init__(self, compute: Callable[[Tensor], Logits], padded: Tensor, kind: Kind, recorder: Recorder, memory: Memory) -> None:
        self.compute, self.memory = compute, memory
        self._inputs = padded.clone().requires_grad_(kind.gradient)

        def forward() -> Tensor:
            with torch.set_grad_enabled(kind.gradient):
                return memory.keep(compute(self._inputs)).detach()

        def backward() -> Tensor:
            return torch.autograd.grad(memory.take(), self._inputs, self._gradient)[0]

        def both() -> Tensor:
            logits = forward()
            if not kind.gradient:
                return logits
            self._gradient = torch.ones_like(logits)
            return backward()

        recorder.rehearse(both)
        if kind.gradient:
            self._gradient = self._gradient.clone()  # not of the rehearsal's stream
        self._forward = recorder.record(forward)
        self._backward = recorder.record(backward) if kind.gradient else None
        memory.forget()  # what it lies in is the next recording's
        memory.use()

    def forward(self, inputs: Tensor) -> Logits:
        """Logits (n, n_classes) of n inputs, in memory of their own."""
        self._replay_forward(inputs)
        self.memory.use()
        return self._forward.result[: len(inputs)].clone()

    def backward(self, inputs: Tensor, gradient: Tensor, version: int) -> Tensor:
        """The gradient of the inputs, by that of the logits.

        Args:
            inputs: of the forward pass.
            gradient: of its logits, (n, n_classes).
            version: of the memory after it.
        """
        assert self._backward is not None
        if self.memory.is_stale(version):
            self._replay_forward(inputs)
        self.memory.use()  # what the gradient needs is used up
        n = len(inputs)
        self._gradient[n:].zero_()
        self._gradient[:n].copy_(gradient)
        self._backward.replay()
        return self._backward.result[:n].clone()

    def _replay_forward(self, inputs: Tensor) -> None:
        self._inputs.detach()[: len(inputs)].copy_(inputs)
        self._forward.replay()


class Replay(torch.autograd.Function):
    """A recorded pass as an operation with a gradient; derivatives that no recording has are computed."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, recorded: RecordedPass) -> Tensor:
        ctx.save_for_backward(inputs)
        logits = recorded.forward(inputs)
        ctx.recorded, ctx.version = recorded, recorded.memory.version
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (inputs,), recorded = ctx.saved_tensors, ctx.recorded
        twice = torch.is_grad_enabled()  # it is to be differentiated once more
        functorch = torch._C._functorch
        batched = functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient)  # several at once
        if not twice and not batched:
            return recorded.backward(inputs, gradient, ctx.version), None
        with torch.enable_grad():
            own = inputs if twice else inputs.detach().requires_grad_()
            return torch.autograd.grad(recorded.compute(own), own, gradient, create_graph=twice)[0], None
