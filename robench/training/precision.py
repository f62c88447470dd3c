"""What a training computes in, and what "auto" means: what it began with, else what this processor does faster."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator

from robench.checkpoint import read_description
from robench.models.arithmetic import arithmetic as arithmetic
from robench.models.arithmetic import refuse_unknown_to as refuse_unknown_to
from robench.models.multihead import MultiHead
from robench.training.captured import graph_for
from robench.training.loop import Loop, adam
from robench.training.ranks import Ranks
from robench.training.spec import TrainSpec
from robench.types import Dataset

LEAST_SPEEDUP = 1.1  # times as fast as float32 that bf16 must be
TIMED = 3  # steps, of which the fastest counts
LARGEST_BATCH = 64  # images a timed step: a processor that emulates bf16 takes seconds for them


def settled(spec: TrainSpec, train_set: Dataset, path: Path, state: Path, *, device: str, ranks: Ranks) -> TrainSpec:
    """The spec with its precision named.

    Args:
        spec: what to train; one that names its precision is returned as it is.
        train_set: images to time steps on.
        path: the checkpoint that it makes, or that is there already.
        state: of the unfinished training, if there is one.
        device: where to train.
        ranks: this process among those that train the model together; the first one decides for all.
    """
    if spec.precision != "auto":
        return spec
    chosen = ranks.from_first(_begun_with(path, state) or _quicker(spec, train_set, device) if ranks.rank == 0 else "")
    return replace(spec, precision=chosen)


def _begun_with(path: Path, state: Path) -> str:
    """The precision of the checkpoint, or of the unfinished training, that is there; or ""."""
    if path.exists():
        return str(read_description(path)["recipe"]["precision"])
    if not state.exists():
        return ""
    try:
        return str(
            json.loads(torch.load(io.BytesIO(state.read_bytes()), map_location="cpu", weights_only=True)["spec"])["precision"]
        )
    except Exception:  # a damaged state is refused, with its reason, where it is resumed
        return "fp32"


def _quicker(spec: TrainSpec, train_set: Dataset, device: str) -> str:
    found = quicker(spec, train_set, device)
    said = f"since bf16 takes steps {found.gain:.2f} times as fast as fp32 here"
    print(f"robench: precision auto: {found.precision}, {said}", file=sys.stderr)
    return found.precision


class Quicker(NamedTuple):
    """The precision to train in here, and how many times as fast as fp32 bf16 takes steps."""

    precision: str
    gain: float


def quicker(spec: TrainSpec, train_set: Dataset, device: str) -> Quicker:
    """Times steps in both precisions."""
    images = min(spec.batch_size, LARGEST_BATCH)
    seconds = {
        precision: min(step_times(replace(spec, precision=precision), train_set, device, images=images, steps=TIMED))
        for precision in ("fp32", "bf16")
    }
    gain = seconds["fp32"] / seconds["bf16"]
    return Quicker("bf16" if gain >= LEAST_SPEEDUP else "fp32", gain)


def step_times(
    spec: TrainSpec, train_set: Dataset, device: str, *, images: int, steps: int, seconds: float = math.inf
) -> list[float]:  # fmt: skip
    """Seconds of some training steps on a model that is thrown away; changes no random state.

    Args:
        spec: what would be trained.
        train_set: its images.
        device: where.
        images: a step.
        steps: that are timed, after one that warms up.
        seconds: after which no further step is begun; the first one counts only where it alone took that long.
    """
    with torch.random.fork_rng(devices=[]):
        model = MultiHead(spec.backbone, spec.heads(train_set))
    model = model.to(device).to(memory_format=torch.channels_last)
    loop = Loop(spec, model, adam(model, spec, device), train_set, device, graph=graph_for(device))
    batch, generator = torch.arange(images, device=device), Generator(device).manual_seed(0)
    spent: list[float] = []
    with arithmetic(spec.precision, device):
        while len(spent) <= steps and sum(spent) < seconds:
            started = time.perf_counter()
            float(torch.stack(list(loop.step(batch, generator).values())).sum().detach())  # waits for the device
            spent.append(time.perf_counter() - started)
    return spent[1:] or spent
