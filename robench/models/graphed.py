"""Passes of a search recorded once and replayed, on a device where launching their operations takes longer than computing them."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robench.models.batches import ANY, BatchRule
from robench.models.classifier import Classifier, computed_by
from robench.models.failures import first_line, is_device_failure, is_out_of_memory
from robench.models.recorded_parts import Parts, is_watched
from robench.models.recording import Kind, Memory, RecordedPass, Recorder, Replay, recorder_for
from robench.models.recording_check import Trial, refuse_unfit
from robench.models.seeded import seeded

if TYPE_CHECKING:
    from robench.types import Logits

LADDER = (32, 64, 128, 192, 256, 384, 512, 768, 1024)  # images of a recorded pass; a batch is filled up to the next of them
MOST = 24  # recorded passes of one classifier: a recording costs 0.1 s, in bf16 1.2 s (H100)
ASKED = 2  # times that a size is asked for before it is recorded: many attacks ask for a size once
ROUND_UP = 2  # a size that is not recorded is served by one of up to so many times as many images
CHANGES = 3  # of the module's parts, after which it is no longer recorded
CHECK_SEED = 0x67726170


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
            return Replay.apply(inputs.clone(), recorded)  # cloned: the caller may write into its own
        with torch.no_grad():
            return recorded.forward(inputs)

    def __reduce__(self) -> Any:
        """A copy of the classifier computes its passes itself."""
        return _own_passes, (self._classifier(),)

    def forget(self) -> None:
        """Gives the memory of all recordings back."""
        self.recorded.clear()
        self._asked.clear()
        self.memory.forget()
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
        if self.refused or not plain or is_watched(inputs.device):
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
