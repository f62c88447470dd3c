"""How many samples a chunk has where nobody says: on a GPU as many as its memory allows, up to thousands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from robench.models.classifier import Classifier
from robench.models.failures import is_device_failure
from robench.models.seeded import seeded

if TYPE_CHECKING:
    from robench.types import Images

FEW = 50  # samples a chunk of large images on a CPU
SMALL_IMAGE = 3 * 96 * 96  # values of an image that is not large
SIZES = (250, 500, 1000, 2000, 4000)
SHARE = (
    3  # a gradient step on a chunk may take one part in so many of what is free: attacks keep images of their own, and recordings
)
PROBED = (32, 128)  # images of the two gradient steps by which the model is asked
PROBE_SEED = 0x6368756E


class Need(NamedTuple):
    """Bytes: free on the device, taken by a gradient step whatever its size, and by each of its images."""

    free: int
    fixed: float
    per_image: float


def largest_chunk(n: int, need: Need | None) -> int:
    """The largest of ``SIZES`` at which a gradient step fits, and no larger than the first that holds n samples; the first of them where
    none does, or where nothing is known."""
    if need is None:
        return SIZES[0]
    useful = [size for place, size in enumerate(SIZES) if place == 0 or SIZES[place - 1] < n]
    return max((size for size in useful if SHARE * (need.fixed + need.per_image * size) <= need.free), default=SIZES[0])


def chunk_on_cpu(image_shape: tuple[int, int, int]) -> int:
    """Samples a chunk on a CPU: fewer of large images, of which 250 would take gigabytes in a gradient step, and hours until they are stored.

    Args:
        image_shape: (C, H, W).
    """
    return SIZES[0] if math.prod(image_shape) <= SMALL_IMAGE else FEW


def ask_device(classifier: Classifier, images: Images) -> Need | None:
    """What a CUDA device has and a model takes there, by a gradient step at two sizes; None where the model raises on them.

    Args:
        classifier: on the device; its passes are not counted.
        images: (N, C, H, W) there; repeated where they are too few.
    """
    device = classifier.device
    try:
        _step(classifier, images, PROBED[0])  # libraries allocate what they keep
        few, many = (_peak_of_step(classifier, images, n) for n in PROBED)
    except Exception as error:  # somebody else's model may raise anything, and memory may run out
        if is_device_failure(error):
            raise
        return None
    per_image = max(0.0, (many - few) / (PROBED[1] - PROBED[0]))
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Need(torch.cuda.mem_get_info(device)[0] + kept, max(0.0, few - per_image * PROBED[0]), per_image)


def _peak_of_step(classifier: Classifier, images: Images, n: int) -> int:
    device = classifier.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _step(classifier, images, n)
    return torch.cuda.max_memory_allocated(device) - before


def _step(classifier: Classifier, images: Images, n: int) -> None:
    queries = images[torch.arange(n, device=images.device) % len(images)].requires_grad_()
    with seeded(PROBE_SEED, images.device), classifier.counting(), classifier.watched_by(None), torch.enable_grad():
        logits = classifier(queries)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), queries)
