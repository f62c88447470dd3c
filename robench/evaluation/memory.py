"""Memory: what was used, and what to do when there is too little."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from robench.models.classifier import Classifier, bound_passes
from robench.models.failures import is_out_of_memory

T = TypeVar("T")


def retry_in_smaller_passes(classifier: Classifier, n: int, attempt: Callable[[], T]) -> T:
    """What ``attempt`` returns; where it runs out of memory, it is called again with smaller passes through the model.

    The chunk stays whole, so that random draws and everything but last bits stay as they are.

    Args:
        classifier: its ``largest_pass`` is halved, and stays so.
        n: samples that went through it at once before.
        attempt: may be called several times.
    """
    while True:
        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            largest = classifier.largest_pass or n
            if not is_out_of_memory(error) or largest <= 1:
                raise
        bound_passes(classifier, (largest + 1) // 2)
        print(f"robench: out of memory; going on with at most {classifier.largest_pass} images a pass", file=sys.stderr)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
