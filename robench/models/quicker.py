"""In which precision a search takes its steps faster here: timed, by passes as the search will compute them."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from robench.models.arithmetic import arithmetic, has_tf32
from robench.models.classifier import Classifier
from robench.models.graphed import graphed
from robench.models.rewrite import LEAST_SPEEDUP, cheaper_twin
from robench.types import PassOptions

if TYPE_CHECKING:
    from robench.types import Images

ROUNDS = 5  # gradient steps, of which the fastest counts; on a GPU passes are recorded at the second


def quicker_precision(classifier: Classifier, images: Images, record: bool = True) -> str:
    """The precision in which gradient steps are fastest on this device, where they are at least ``LEAST_SPEEDUP`` times as fast as in
    float32; else "fp32". TF32 is tried where the device has it.

    Args:
        classifier: stays as it is.
        images: of a step.
        record: passes are recorded as CUDA graphs where the device has that.
    """
    device = str(classifier.device)
    others = ("bf16", *(("tf32",) if has_tf32(device) else ()))
    seconds = {each: _fastest_step(classifier, images, each, record) for each in ("fp32", *others)}
    fastest = min(others, key=lambda each: seconds[each])
    return fastest if seconds["fp32"] >= LEAST_SPEEDUP * seconds[fastest] else "fp32"


def _fastest_step(classifier: Classifier, images: Images, precision: str, record: bool) -> float:
    passing = classifier.twin(classifier.module)  # what is made for it goes with it
    twin = cheaper_twin(passing, PassOptions(folded=True, precision=precision), images)
    with (
        twin.counting(), twin.forgiving(), arithmetic(precision, str(classifier.device)), graphed(twin) if record else nullcontext(),
    ):  # fmt: skip
        return min([_step_seconds(twin, images) for _ in range(ROUNDS)][1:])


def _step_seconds(twin: Classifier, images: Images) -> float:
    started = time.perf_counter()
    with torch.enable_grad():
        queries = images.clone().requires_grad_()
        torch.autograd.grad(twin(queries).sum(), queries)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - started
