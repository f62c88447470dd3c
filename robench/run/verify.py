"""A finished run, rechecked: do its stored images still fool the model?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from robench.data import load_dataset
from robench.data.recorded import as_recorded
from robench.evaluation.device import use_device
from robench.evaluation.replay import Replay, replay_run
from robench.evaluation.run_folder import read_run
from robench.interchange.bundle import opened, refuse_other_table
from robench.models.classifier import judge_by_votes
from robench.models.multihead import MAIN_HEAD
from robench.models.sources import source_of
from robench.models.subject import of_head, subject_of
from robench.types import ExternalData, ExternalModel, RobenchError


class Verified(NamedTuple):
    """What still holds of every attack, and how the model differs from the one that was attacked, or ""."""

    replays: list[Replay]
    difference: str


def verify(
    run: Path, *, ckpt: Path | None = None, model: str | ExternalModel | None = None, dataset: str | ExternalData | None = None, data_dir: Path | None = None,
    device: str = "auto", threads: int | None = None,
) -> Verified:  # fmt: skip
    """Replays a run's stored adversarial images against the model.

    Args:
        run: a folder of ``robench attack --save-adv``, or a file of ``robench bundle``, whose every part is compared with its digest.
        ckpt, model: the model, where it no longer lies where the run found it; a model without ``where`` is the run's own, as
            ``ExternalModel.trust`` allows.
        dataset, data_dir: the data, likewise.
        device, threads: see ``use_device``.

    Raises:
        RobenchError: the run, the model or the data are not there or do not fit; a bundle is not as it was made; or the run's table
            does not follow from its verdicts.
    """
    with opened(run) as folder:
        refuse_other_table(folder)
        return _replay(folder, run, ckpt=ckpt, model=model, dataset=dataset, data_dir=data_dir, device=device, threads=threads)


def _replay(
    folder: Path, run: Path, *, ckpt: Path | None, model: str | ExternalModel | None, dataset: str | ExternalData | None, data_dir: Path | None,
    device: str, threads: int | None,
) -> Verified:  # fmt: skip
    """As ``verify``, of the folder that ``run`` is or was unpacked into."""
    described = read_run(folder)
    origin, head = described["model"]["origin"], described["model"]["origin"].get("head", MAIN_HEAD)
    if ckpt is None and (model is None or (isinstance(model, ExternalModel) and not model.reference)):
        ckpt, model = _named_by(run, origin, model)
    data = load_dataset(as_recorded(described["data"], dataset), "test", data_dir)
    data = of_head(data, head) if model is None else data
    with use_device(device, threads) as chosen:
        subject = subject_of(ckpt, model, data, chosen, head)
        judge_by_votes(subject.classifier, described["model"].get("votes", 1))
        replays = replay_run(folder, subject.classifier, data)
    attacked = described["spec"]["model"]
    same = subject.digest == attacked
    return Verified(replays, "" if same else f"its digest is {subject.digest[:12]}, the run attacked {attacked[:12]}")


class NamedModel(NamedTuple):
    """A model by its checkpoint, or as ``--model`` names it; the other one is None."""

    ckpt: Path | None
    model: ExternalModel | None


def _named_by(run: Path, origin: dict[str, Any], given: ExternalModel | None) -> NamedModel:
    """The checkpoint or the model that a run says it attacked.

    Raises:
        RobenchError: it says nothing, or names code: run.json may come from anybody, and verifying must not run what it names.
    """
    if "checkpoint" in origin:
        return NamedModel(Path(origin["checkpoint"]), None)
    if "model" not in origin:
        raise RobenchError(f"{run} does not say where its model lies; name it with `ckpt` or `model`")
    reference, trust = str(origin["model"]), given is not None and given.trust
    if source_of(reference).runs_code and not trust:
        raise RobenchError(
            f"{run} says that its model is {reference}, which is code that would be run: add `trust` where you trust it, or name the model "
            "yourself with `model`"
        )
    external = given or ExternalModel("")
    weights = Path(origin["weights file"]) if source_of(reference).takes_weights and "weights file" in origin else None
    mean, std = (getattr(external, name) or tuple(origin.get(name, ())) for name in ("mean", "std"))
    classes = external.classes or str(origin.get("classes", ""))
    named = replace(external, reference=reference, weights=external.weights or weights, mean=mean, std=std, classes=classes)
    return NamedModel(None, named)
