"""Whether a recording may be trusted: it is tried on the images at hand, with two fillings, against the model's own passes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robench.models.batches import own_copy
from robench.models.hidden import changeable
from robench.models.recorded_parts import is_plain
from robench.models.recording import Kind, RecordedPass

if TYPE_CHECKING:
    from robench.types import Logits

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
    if any(not is_plain(tensor) for tensor in weights):
        raise Unrecorded("some of the model's weights are of a kind of their own")
    if any(tensor.device != device for tensor in weights if tensor.ndim):
        raise Unrecorded("some of the model's weights lie on another device")


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
