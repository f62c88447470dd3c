"""A training from its spec to its checkpoint, resumable."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import robench
from robench.checkpoint import read_description, save_checkpoint
from robench.data.augment import to_unit
from robench.models.multihead import MultiHead
from robench.training.captured import IN_ONE_GRAPH, graph_for
from robench.training.loop import ALONE, Loop, adam
from robench.training.objectives import OBJECTIVES
from robench.training.precision import arithmetic, refuse_unknown_to, settled
from robench.training.ranks import Ranks
from robench.training.rehearsal import rehearse
from robench.training.spec import TrainSpec
from robench.training.state import StateFile, refuse_difference, resume, sigterm_as_interrupt
from robench.types import Checkpoint, Dataset, RobenchError

CONVOLUTIONS = {"fp32": "float32", "tf32": "TF32", "bf16": "bf16"}  # as a checkpoint says it, by precision


@sigterm_as_interrupt()
def train(
    spec: TrainSpec,
    train_set: Dataset,
    test_set: Dataset,
    *,
    out: Path | None = None,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    show_progress: bool = True,
    captured: bool = True,
) -> Path:
    """Trains a model and writes its checkpoint; called again after a kill, it goes on after the last epoch that was kept.

    Ctrl-C, SIGTERM and errors keep every finished epoch; a SIGKILL loses the epoch that runs, and what finished in half a minute before
    it. In several processes only rank 0 writes files. The last epoch is the model; the test set is only measured, never chosen on.

    Args:
        spec: what to train; ``precision`` "auto" is settled first, see ``settled``.
        train_set, test_set: the two splits.
        out: the checkpoint's path, ``checkpoints/<dataset>-<arch>[-<adversarial>]-<seed>.safetensors`` by default.
        device: where to train.
        ranks: this process among those that train the model together, see ``joined``.
        show_progress: a bar per epoch on stderr.
        captured: on CUDA the step is one CUDA graph, where that is found to end alike, and there is one process.

    Returns:
        The checkpoint's path.

    Raises:
        KeyboardInterrupt: by Ctrl-C; in the main thread also by SIGTERM, unless the caller handles that.
        RobenchError: the path holds a model or an unfinished training with other settings; the device has not the precision; the
            batch does not divide over the processes; the variant does not fit itself, see ``rehearse``; the loss is not finite.
    """
    path = Path(out) if out else Path("checkpoints") / spec.default_name
    _refuse(spec, path, ranks)
    state_path = path.with_name(path.name + ".training")
    if not path.exists() and not state_path.exists():
        rehearse(spec, train_set, device)
    spec = settled(spec, train_set, path, state_path, device=device, ranks=ranks)
    if not path.exists():
        refuse_unknown_to(device, spec.precision)
    wanted = asdict(spec) | {"train_set": train_set.digest}
    first = ranks.rank == 0
    if first and path.exists():
        refuse_difference(path, read_description(path)["recipe"], wanted)
    if ranks.from_first(path.exists()):
        return path
    _check_test_set(train_set, test_set)
    heads = spec.heads(train_set)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = MultiHead(spec.backbone, heads)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = adam(model, spec, device)
    state = ranks.from_first(state_path.read_bytes() if first and state_path.exists() else b"")
    history = resume(state, state_path, model, optimizer, wanted)
    states = StateFile(state_path, wanted)
    if first:
        states.begin(model, optimizer, history)
    graph = graph_for(device) if captured and ranks.world_size == 1 else None
    loop = Loop(spec, model, optimizer, train_set, device, ranks=ranks, graph=graph)
    with states.kept(), arithmetic(spec.precision, device):
        for epoch in range(len(history), spec.epochs):
            history.append(loop.run_epoch(epoch, show_progress and first))
            if first:
                states.finished(model, optimizer, history)
    if not first:
        return path
    with arithmetic("fp32", device):
        accuracy = _clean_accuracy(model.eval(), heads, OBJECTIVES[spec.arch].targets(test_set), test_set, device)
    computed_on = _computed_on(device, spec.precision) | ({"step": IN_ONE_GRAPH} if loop.captured else {})
    described = _describe(
        spec, model, train_set, wanted=wanted, heads=heads, accuracy=accuracy, history=history, computed_on=computed_on
    )
    save_checkpoint(path, described)
    state_path.unlink(missing_ok=True)
    return path


def _refuse(spec: TrainSpec, path: Path, ranks: Ranks) -> None:
    if path.is_dir():
        raise RobenchError(f"`out={path}` is a folder; it takes the checkpoint's file, such as {path / spec.default_name}")
    if spec.batch_size % ranks.world_size:
        raise RobenchError(
            f"batch size {spec.batch_size} does not divide over {ranks.world_size} processes; give `batch_size` a multiple of them, "
            "or start another number"
        )


def _check_test_set(train_set: Dataset, test_set: Dataset) -> None:
    for what in ("classes", "coarse_classes", "image_shape"):
        tested, trained = getattr(test_set, what), getattr(train_set, what)
        if tested != trained:
            raise RobenchError(
                f"the test split of {test_set.name} has other {what.replace('_', ' ')} ({tested}) than its train split ({trained})"
            )


@torch.inference_mode()
def _clean_accuracy(
    model: MultiHead, heads: dict[str, Any], targets: dict[str, Tensor], test_set: Dataset, device: str
) -> dict[str, float]:  # fmt: skip
    """Accuracy on the test split of every head that has labels there."""
    correct = {name: 0 for name in heads if name in targets}
    for start in range(0, len(test_set), 500):
        outputs = model(to_unit(test_set.pixels(slice(start, start + 500)).to(device)))
        for name in correct:
            predicted = outputs[name][:, : heads[name]["classes"]].argmax(1).cpu()
            correct[name] += int((predicted == targets[name][start : start + 500]).sum())
    return {name: count / len(test_set) for name, count in correct.items()}


def _describe(
    spec: TrainSpec,
    model: MultiHead,
    train_set: Dataset,
    *,
    wanted: dict[str, Any],
    heads: dict[str, Any],
    accuracy: dict[str, Any],
    history: list[Any],
    computed_on: dict[str, str],
) -> Checkpoint:
    import torchvision

    return Checkpoint(
        arch=spec.arch,
        backbone=spec.backbone,
        dataset=spec.dataset,
        classes=train_set.classes,
        image_shape=train_set.image_shape,
        heads=heads,
        preprocessing={},
        recipe=wanted,
        seed=spec.seed,
        epochs=spec.epochs,
        clean_accuracy=accuracy,
        history=tuple(history),
        versions={
            "robench": robench.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        }
        | computed_on,
        weights=model.state_dict(),
    )


def _computed_on(device: str, precision: str) -> dict[str, str]:
    """The device by name and, on CUDA, what its convolutions were computed in."""
    if not device.startswith("cuda"):
        return {"device": device}
    return {"device": torch.cuda.get_device_name(device), "convolutions": CONVOLUTIONS[precision]}
