"""Memory: what was used, and what to do when there is too little."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeVar

import torch

from robench.models.classifier import Classifier, bound_passes
from robench.models.failures import is_out_of_memory

T = TypeVar("T")


class Try:
    """One try of something that may run out of memory, as a block; where it did, the block is left and the passes are halved."""

    def __init__(self, classifier: Classifier, n: int, *, again: bool = False) -> None:
        self._classifier, self._n, self._again = classifier, n, again
        self.ran_out = False

    def __enter__(self) -> None:
        if self._again and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        largest = self._classifier.largest_pass or self._n
        if not isinstance(error, RuntimeError | MemoryError) or not is_out_of_memory(error) or largest <= 1:
            return False
        self.ran_out = True
        bound_passes(self._classifier, (largest + 1) // 2)
        print(f"robench: out of memory; going on with at most {self._classifier.largest_pass} images a pass", file=sys.stderr)
        return True


def smaller_passes(classifier: Classifier, n: int) -> Iterator[Try]:
    """Tries, each with passes through the model half as large as the one before, until one does not run out of memory.

    The chunk stays whole, so that random draws and everything but last bits stay as they are. ::

        for trial in smaller_passes(classifier, len(images)):
            with trial:
                logits = classifier(images)

    Args:
        classifier: its ``largest_pass`` is halved, and stays so.
        n: samples that went through it at once before.
    """
    trial = Try(classifier, n)
    yield trial
    while trial.ran_out:
        trial = Try(classifier, n, again=True)
        yield trial


def retry_in_smaller_passes(classifier: Classifier, n: int, attempt: Callable[[], T]) -> T:
    """What ``attempt`` returns, which may be called several times; see ``smaller_passes``."""
    for trial in smaller_passes(classifier, n):
        with trial:
            result = attempt()
    return result


def peak_bytes(device: torch.device) -> int:
    """The most memory used so far: by torch on a CUDA device, else by the process; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
