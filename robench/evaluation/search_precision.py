"""A search in TF32: the passes of the attack are, and all that has a word in the verdict is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from robench.models.arithmetic import arithmetic
from robench.models.batches import BatchRule
from robench.models.classifier import Classifier, computed_by

if TYPE_CHECKING:
    from robench.types import Images, Logits

Watcher = Callable[["Images", "Logits"], None]


class _InFloat32:
    """A classifier's own passes in float32, whatever is allowed around them. A copy of the classifier has a copy of this."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def __call__(self, inputs: Tensor, takes: BatchRule) -> Tensor:
        with arithmetic("fp32", str(self._classifier.device)):
            return Classifier._pass(self._classifier, inputs, takes)


@contextmanager
def searched_in(precision: str, victim: Classifier, watcher: Watcher) -> Iterator[None]:
    """Inside the block a twin is watched, and where the precision is "tf32" its passes and their gradients are computed in TF32: those of
    the classifier whose twin it is, and whatever the watcher computes, are not.

    A random model has no twin, and is searched by its own passes.
    """
    exact, device = victim.exact, str(victim.device)
    if precision != "tf32" or exact is victim:
        with victim.watched_by(watcher):
            yield
        return

    def in_float32(queries: Images, logits: Logits) -> None:
        with arithmetic("fp32", device):
            watcher(queries, logits)

    with arithmetic("tf32", device), computed_by(exact, _InFloat32(exact)), victim.watched_by(in_float32):
        yield
