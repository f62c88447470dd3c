"""Passes of a search recorded once and replayed, on a device where launching their operations takes longer than computing them."""

from __future__ import annotations

import random
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_of_all
from torch.utils._python_dispatch import TorchDispatchMode

from robench.models.batches import ANY, BatchRule, own_copy
from robench.models.classifier import Classifier, computed_by
from robench.models.failures import first_line, is_device_failure, is_out_of_memory
from robench.models.hidden import changeable
from robench.models.seeded import seeded

if TYPE_CHECKING:
    from robench.types import Logits

LADDER = (32, 64, 128, 192, 256, 384, 512, 768, 1024)  # images of a recorded pass; a batch is filled up to the next of them
MOST = 24  # recorded passes of one classifier: a recording costs 0.1 s, in bf16 1.2 s (H100)
ASKED = 2  # times that a size is asked for before it is recorded: many attacks ask for a size once
WARM_UPS = 2  # passes by which libraries settle their plans before a recording
ROUND_UP = 2  # a size that is not recorded is served by one of up to so many times as many images
CHANGES = 3  # of the module's parts, after which it is no longer recorded
CHECK_SEED = 0x67726170
EXACT, SWITCHED = (
    1e-5,
    1e-3,
)  # of the largest logit and of the gradient's length, where the same operations are computed on the same batch
# As in ``rewrite``, where the batch has another size, so that libraries may add up in another order.
LOGIT_TOLERANCE, COARSE_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 2e-2, 0.05
WAITING = frozenset(
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "nonzero",
        "equal",
        "masked_select",
        "is_nonzero",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
    )
)
INDEXING = frozenset(f"aten::{name}" for name in ("index", "index_put", "index_put_", "_index_put_impl_"))


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
        graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # The outer stream is left behind even where the end of the recording raises, which leaves the inner one current.
            with (
                torch.cuda.device(self._device),
                torch.cuda.stream(outside),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream),
            ):
                result = work()
        except BaseException:
            self._renew_generator()
            raise
        self._pool = self._pool or graph.pool()
        return Recording(graph.replay, result)

    def forget(self) -> None:
        """See ``Recorder``."""
        self._pool = None

    def _renew_generator(self) -> None:
        """A recording that failed may leave the device's generator as if it were still recorded, and then every later draw raises."""
        generator, fresh = torch.cuda.default_generators[self._device.index or 0], torch.Generator(self._device)
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
                memory.logits = compute(self._inputs)
            return memory.logits.detach()

        def backward() -> Tensor:
            logits, memory.logits = memory.logits, None
            assert logits is not None, "a backward pass follows its forward pass"
            return torch.autograd.grad(logits, self._inputs, self._gradient)[0]

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
        memory.logits = None  # its memory is the next recording's
        memory.version += 1

    def forward(self, inputs: Tensor) -> Logits:
        """Logits (n, n_classes) of n inputs, in memory of their own."""
        self._replay_forward(inputs)
        self.memory.version += 1
        return self._forward.result[: len(inputs)].clone()

    def backward(self, inputs: Tensor, gradient: Tensor, version: int) -> Tensor:
        """The gradient of the inputs, by that of the logits.

        Args:
            inputs: of the forward pass.
            gradient: of its logits, (n, n_classes).
            version: of the memory after it.
        """
        assert self._backward is not None
        if self.memory.version != version:
            self.memory.recomputed += 1
            self._replay_forward(inputs)
        self.memory.version += 1  # what the gradient needs is used up
        n = len(inputs)
        self._gradient[n:].zero_()
        self._gradient[:n].copy_(gradient)
        self._backward.replay()
        return self._backward.result[:n].clone()

    def _replay_forward(self, inputs: Tensor) -> None:
        self._inputs.detach()[: len(inputs)].copy_(inputs)
        self._forward.replay()


class _Replay(torch.autograd.Function):
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


class GraphedPasses:
    """In the place of a classifier's passes: those that are asked for again and again are recorded, filled up to a size of ``LADDER``,
    and replayed. All others are the classifier's own.

    A recording is checked against the classifier's own passes on the images that were just asked about. Where it differs, where it cannot
    be made, or where it would not hold for other images or another filling, nothing is recorded for good, and one line on stderr says why.

    Attributes:
        recorded: what is.
        refused: why nothing is, or "".
        device: of the recordings.
        replays: passes that were served by a recording.
    """

    def __init__(self, classifier: Classifier, recorder: Recorder) -> None:
        self._classifier, self._recorder = weakref.ref(classifier), recorder  # it is kept for as long as the classifier
        self.device = classifier.device
        self.recorded: dict[Kind, RecordedPass] = {}
        self.memory = Memory()
        self.refused = ""
        self.replays = 0
        self._asked: Counter[Kind] = Counter()
        self._parts: Parts | None = None
        self._changes = 0

    def __call__(self, inputs: Tensor, takes: BatchRule) -> Logits:
        """See ``Classifier._pass``."""
        recorded = self._find(inputs) if takes == ANY and self._may_replay(inputs) else None
        if recorded is None:
            return self._own_unless_memory_runs_out(inputs, takes)
        self.replays += 1
        if torch.is_grad_enabled() and inputs.requires_grad:
            return _Replay.apply(inputs.clone(), recorded)  # cloned: the caller may write into its own
        with torch.no_grad():
            return recorded.forward(inputs)

    def __reduce__(self) -> Any:
        """A copy of the classifier computes its passes itself."""
        return _own_passes, (self._classifier(),)

    def forget(self) -> None:
        """Gives the memory of all recordings back."""
        self.recorded.clear()
        self._asked.clear()
        self.memory.logits = None
        self._recorder.forget()  # versions go on: a backward pass may still come whose forward pass was recorded before

    def _compute(self, inputs: Tensor) -> Logits:
        return self._own(inputs, ANY)

    def _own(self, inputs: Tensor, takes: BatchRule) -> Logits:
        classifier = self._classifier()
        assert classifier is not None
        return Classifier._pass(classifier, inputs, takes)

    def _own_unless_memory_runs_out(self, inputs: Tensor, takes: BatchRule) -> Logits:
        try:
            return self._own(inputs, takes)
        except Exception as error:
            if not self.recorded or not is_out_of_memory(error):
                raise
        self._refuse("memory ran out")
        return self._own(inputs, takes)

    def _refuse(self, why: str) -> None:
        self.refused = why
        self.forget()
        print(f"robench: passes are not recorded as CUDA graphs, but computed as ever: {why}", file=sys.stderr)

    def _may_replay(self, inputs: Tensor) -> bool:
        """Whether this pass is one that a recording could serve."""
        plain = type(inputs) is Tensor and inputs.dtype == torch.float32 and 0 < len(inputs) <= LADDER[-1]
        if self.refused or not plain or _is_watched(inputs.device):
            return False
        classifier = self._classifier()
        assert classifier is not None
        if inputs.device != classifier.device:
            return False
        return self._has_its_parts(classifier.module)

    def _has_its_parts(self, module: nn.Module) -> bool:
        if self._parts is not None and not self._parts.are_what_they_were():
            self._parts = None
            self._changes += 1
            self.forget()
        if self._changes > CHANGES:
            self._refuse("parts of the model change from call to call")
        elif self._parts is None and any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
            self._refuse("the model is a TorchScript program")
        if self.refused:
            return False
        self._parts = self._parts or Parts(module)
        return self._parts.are_their_own()

    def _find(self, inputs: Tensor) -> RecordedPass | None:
        """The recording that serves a pass, made where it is time; None for none."""
        gradient, n = torch.is_grad_enabled() and inputs.requires_grad, len(inputs)
        kind = Kind(next(size for size in LADDER if size >= n), tuple(inputs.shape[1:]), gradient)
        if kind in self.recorded:
            return self.recorded[kind]
        self._asked[kind] += 1
        in_backward = torch._C._current_graph_task_id() != -1
        if self._asked[kind] >= ASKED and len(self.recorded) < MOST and not in_backward:
            return self._record(inputs.detach(), kind)
        larger = [
            other for other in self.recorded if other[1:] == kind[1:] and kind.size < other.size <= ROUND_UP * kind.size
        ]  # fmt: skip
        return self.recorded[min(larger)] if larger else None

    def _record(self, inputs: Tensor, kind: Kind) -> RecordedPass | None:
        """A recording of a kind, checked; None where there is none."""
        try:
            with seeded(CHECK_SEED, inputs.device):
                self.recorded[kind] = self._checked(inputs, kind)
            return self.recorded[kind]
        except Exception as error:  # somebody else's model, and what cannot be recorded, may raise anything
            if is_device_failure(error):
                raise
            why = "memory ran out" if is_out_of_memory(error) else first_line(error)
        self._refuse(why)  # here, where the error no longer keeps what was computed
        return None

    def _checked(self, inputs: Tensor, kind: Kind) -> RecordedPass:
        """A recording of a kind.

        Raises:
            Unrecorded: it cannot be made, or is no good.
        """
        classifier = self._classifier()
        assert classifier is not None
        refuse_unfit(classifier.module, inputs.device)
        trial = Trial(self._compute, inputs, kind)
        trial.ask(classifier.module, first=not self.recorded)
        recorded = RecordedPass(self._compute, trial.padded, kind, self._recorder, self.memory)
        trial.compare(recorded)
        return recorded


def _own_passes(classifier: Classifier) -> Callable[[Tensor, BatchRule], Logits]:
    return Classifier._pass.__get__(classifier)


_OF: weakref.WeakKeyDictionary[Classifier, GraphedPasses] = weakref.WeakKeyDictionary()


@contextmanager
def graphed(classifier: Classifier) -> Iterator[GraphedPasses | None]:
    """Inside the block a classifier's passes are recorded and replayed, where its device has that; what is recorded stays for the next block.

    A replay computes what the classifier's own pass does on the filled batch, bit for bit where cuDNN is deterministic. Counting and
    watching are the classifier's own: filling is not counted, nor is a forward pass that is replayed once more for its gradient.
    Not where the classifier is random, nor where memory has run out before. Not for several threads.
    """
    recorder = None if classifier.draws > 1 or classifier.largest_pass else recorder_for(classifier.device)
    if recorder is None:
        _OF.pop(classifier, None)
        yield None
        return
    if classifier not in _OF or _OF[classifier].device != classifier.device:
        _OF[classifier] = GraphedPasses(classifier, recorder)
    with computed_by(classifier, _OF[classifier]):
        yield _OF[classifier]


class Parts:
    """What a recording relies on, of a module and its parts: looked at before every replay, so by identity and in few steps.

    Args:
        module: as it is to stay.
    """

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        self._tables = [table for part in parts for table in (vars(part), *(getattr(part, name) for name in TABLES))]
        self._held = list(chain.from_iterable(map(dict.values, self._tables)))
        self._hooks = [vars(part)[name] for part in parts for name in HOOKS if name in vars(part)]
        self._tensors = [each for each in self._held if isinstance(each, Tensor) and _is_plain(each)]
        self._places = [each.data_ptr() for each in self._tensors]
        self._trains = any(vars(part).get("training") for part in parts)

    def are_their_own(self) -> bool:
        """Whether nobody has a hook on one of them, wants a gradient of its weights, or has it in training mode."""
        return not (self._trains or any(self._hooks) or any(each.requires_grad for each in self._tensors))

    def are_what_they_were(self) -> bool:
        """Whether each has the same attributes, and its tensors lie where they did; what these hold may have changed."""
        now = list(chain.from_iterable(map(dict.values, self._tables)))
        same = len(now) == len(self._held) and all(map(is_, now, self._held))
        return same and [each.data_ptr() for each in self._tensors] == self._places


TABLES = ("_parameters", "_buffers", "_modules")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_transformed() -> bool:
    """Whether torch.func is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _is_watched(device: torch.device) -> bool:
    """Whether something follows or changes each operation that is computed now, which a replay would hide from it."""
    saving = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # as ``checkpoint`` does
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    forward = forward_ad._current_level >= 0 or torch.is_inference_mode_enabled()
    other = torch.is_autocast_enabled(device.type) or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return bool(saving or modes or forward or other or _is_transformed() or hooks_of_all._has_any_global_hook())


class Unrecorded(Exception):
    """Why passes are not recorded."""


class _NoWaits(TorchDispatchMode):
    """Raises at operations that a recording cannot hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        masked = name in INDEXING and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if name in WAITING or masked:
            raise Unrecorded(f"the model looks at values on the host ({func})")
        result = func(*args, **(kwargs or {}))
        devices = {each.device for each in (*args, result) if isinstance(each, Tensor) and each.ndim}
        if len(devices) > 1:
            raise Unrecorded(f"the model moves values between devices ({func})")
        return result


class Look(NamedTuple):
    """Logits (N, n_classes) and, where it was asked for, the gradient of a weighted sum of them."""

    logits: Tensor
    gradient: Tensor | None

    def rows(self, n: int) -> Look:
        """Of the first n images."""
        return Look(self.logits[:n], None if self.gradient is None else self.gradient[:n])

    def is_near(self, other: Look, logits: float, gradient: float) -> bool:
        """Whether another look shows the same, up to a share of its largest logit and of its gradient's length."""
        mine, its = (each.logits.nan_to_num() for each in (self, other))
        if not bool((mine - its).abs().amax() <= logits * its.abs().amax().clamp(min=1)):
            return False
        if self.gradient is None or other.gradient is None:
            return self.gradient is other.gradient
        mine, its = (each.nan_to_num() for each in (self.gradient, other.gradient))
        return bool((mine - its).norm() <= gradient * its.norm())


def refuse_unfit(module: nn.Module, device: torch.device) -> None:
    """Refuses a module that is not even tried.

    Raises:
        Unrecorded: it is one.
    """
    if any(isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel) for part in module.modules()):
        raise Unrecorded("the model computes on several devices")
    weights = [*module.parameters(), *module.buffers()]
    if any(not _is_plain(tensor) for tensor in weights):
        raise Unrecorded("some of the model's weights are of a kind of their own")
    if any(tensor.device != device for tensor in weights if tensor.ndim):
        raise Unrecorded("some of the model's weights lie on another device")


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided


class Trial:
    """What a classifier's own passes say of the images that a recording is to be tried with.

    Args:
        compute: the classifier's own pass.
        inputs: that it was just asked about, (n, C, H, W).
        kind: of the recording.
    """

    def __init__(self, compute: Callable[[Tensor], Logits], inputs: Tensor, kind: Kind) -> None:
        self._compute, self._inputs, self._kind = compute, inputs, kind
        n = len(inputs)
        self.padded = own_copy(inputs, kind.size)
        self._few = n if n < kind.size else max(1, n // 2)  # rows that are asked about with another filling
        self._refilled = torch.cat([self.padded[: self._few], 1 - self.padded[self._few :].flip(0, 3)])

    def ask(self, module: nn.Module, *, first: bool) -> None:
        """Asks the module itself.

        Args:
            first: nothing of it is recorded yet, so that what a pass changes in it is looked for, all its attributes over.

        Raises:
            Unrecorded: a recording would not hold for other images.
        """
        self._said = self._look(self.padded)  # after it everything is there that the module keeps for this size
        before, drawn = changeable(module) if first else {}, _generators(self._inputs.device)
        with _NoWaits():
            again = self._look(self.padded)
        if _generators(self._inputs.device) != drawn:
            raise Unrecorded("the model draws at random")
        changed = [name for name, value in (changeable(module) if first else {}).items() if before.get(name) != value]
        if changed:
            raise Unrecorded(f"the model keeps something from pass to pass (in {changed[0]})")
        if not again.is_near(self._said, EXACT, SWITCHED):
            raise Unrecorded("the model answers otherwise when it is asked again")
        self._said_refilled = self._look(self._refilled, self._few)
        if not self._is_of_its_row(COARSE_TOLERANCE if _is_coarse(module, self._inputs.device) else LOGIT_TOLERANCE):
            raise Unrecorded("the model's answer for an image depends on the others of its batch")

    def _is_of_its_row(self, tolerance: float) -> bool:
        few = self._few
        alone, among, refilled = self._look(self._inputs[:few]), self._said.rows(few), self._said_refilled
        beyond = None if refilled.gradient is None else refilled.gradient[few:].nan_to_num()
        return (
            refilled.rows(few).is_near(among, EXACT, SWITCHED)
            and among.is_near(alone, tolerance, GRADIENT_TOLERANCE)
            and (beyond is None or not bool(beyond.any()))
        )

    def compare(self, recorded: RecordedPass) -> None:
        """Asks a recording the same.

        Raises:
            Unrecorded: it says otherwise.
        """
        for inputs, rows, said in (
            (self.padded, self._kind.size, self._said), (self._refilled, self._few, self._said_refilled),
            (self._inputs[: self._few], self._few, self._said.rows(self._few)),
        ):  # fmt: skip
            logits, gradient = recorded.forward(inputs), None
            if self._kind.gradient:
                gradient = recorded.backward(inputs, _weights(logits, rows), recorded.memory.version)
            if not Look(logits, gradient).is_near(said, EXACT, SWITCHED):
                raise Unrecorded("recorded passes differ from the model's own")

    def _look(self, inputs: Tensor, rows: int | None = None) -> Look:
        """One pass; the gradient is of the first ``rows``, all by default."""
        with torch.set_grad_enabled(self._kind.gradient):
            queries = inputs.clone().requires_grad_(self._kind.gradient)
            logits = self._compute(queries)
            if not self._kind.gradient:
                return Look(logits, None)
            (gradient,) = torch.autograd.grad(logits, queries, _weights(logits, len(inputs) if rows is None else rows))
        return Look(logits.detach(), gradient)


def _is_coarse(module: nn.Module, device: torch.device) -> bool:
    """Whether the last bits of what is computed are large: in half the bits, or in TF32."""
    tf32 = device.type == "cuda" and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    return tf32 or any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in module.parameters())


def _weights(logits: Logits, rows: int) -> Tensor:
    """Of the logits in the sum whose gradient is looked at, nothing beyond the first rows."""
    weights = torch.linspace(1, -1, logits.shape[1], device=logits.device).repeat(len(logits), 1)
    weights[rows:] = 0
    return weights


def _generators(device: torch.device) -> tuple[Any, ...]:
    """The state of every global generator."""
    numpy_state = np.random.get_state(legacy=False)
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return random.getstate(), str(numpy_state), *(state.numpy().tobytes() for state in states)
