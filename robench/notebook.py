"""What a notebook calls: any module, any images."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robench.api import settled_precision
from robench.attacks import parse_suites, source_paths
from robench.data.augment import to_unit
from robench.evaluation.device import use_device
from robench.evaluation.results import Results, failures
from robench.evaluation.verify import check_images
from robench.models.loading import Subject, classifier_of_checkpoint, classifier_of_module
from robench.models.multihead import MAIN
from robench.models.output import describe
from robench.report import write_report
from robench.report.markdown import terminal_table
from robench.report.tables import summarise, verdict_rows
from robench.request import AttackRequest, default_suite, parse_chunk
from robench.runs import DEFAULT_CHUNK, Place, Run, run_suites
from robench.types import Dataset, RobenchError, format_eps, parse_eps

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from robench.types import Images, Labels


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The tables of one run.

    Attributes:
        summary: a row per attack, as in summary.csv.
        verdicts: a row per sample and attack, as in verdicts.csv.
        failures: what attacks failed with, one line each; empty where every verdict stands.
        path: the run folder, or None where none was asked for.
    """

    summary: pd.DataFrame
    verdicts: pd.DataFrame
    failures: list[str]
    path: Path | None

    def __str__(self) -> str:
        return terminal_table(self.summary)


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Labels,
    *,
    suite: str | Sequence[str] | None = None,
    norm: str = "Linf",
    eps: str | float | None = None,
    seed: int = 0,
    batch_size: int | str = DEFAULT_CHUNK,
    device: str = "auto",
    out: str | Path | None = None,
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    head: int | str = MAIN,
    step_size: str | float | None = None,
    restarts: int = 1,
    budget: float | None = None,
    passes: str = "own",
    precision: str = "fp32",
    save_adv: bool = False,
    show_progress: bool = False,
) -> Evaluation:
    """Attacks any module on any images and returns the tables.

    The module is copied: its mode, gradients and device stay as they are.

    Args:
        model: takes float images (N, C, H, W) in [0, 1], or normalised by ``mean`` and ``std``, and returns logits (N, n_classes).
        images: float in [0, 1] or uint8, (N, C, H, W).
        labels: int64 (N,).
        suite: as ``--suite``, or a list of names; by default pgd20 (not in L1) and autoattack.
        norm, eps: the threat model; by default 8/255 in Linf, 0.5 in L2 and 12 in L1.
        seed: of the attacks.
        batch_size: samples a chunk, or "auto".
        device: auto, cpu, cuda, cuda:1 or mps.
        out: a run folder to keep, with report and resume; by default nothing is kept.
        classes: names of the classes; the model's outputs are counted where not given.
        mean, std: of a normalisation in front of the model, per channel.
        head: which output of a model that returns several holds the logits: its place or its name.
        step_size, restarts, budget, passes, precision: as ``--step-size`` and so on; see ``robench.request.AttackRequest``.
        save_adv: keep the adversarial images in ``out``, for ``robench verify``.
        show_progress: bars on stderr.

    Raises:
        RobenchError: images or labels out of range, outputs of the wrong shape, an unknown attack.
    """
    asked = _call(locals())
    _refuse(images, labels, save_adv, out)
    suite = default_suite(norm) if suite is None else suite if isinstance(suite, str) else ",".join(suite)
    request = AttackRequest(
        suite, norm, None if eps is None else format_eps(parse_eps(eps)), seed=seed, chunk=parse_chunk(str(batch_size)), restarts=restarts, budget=budget,
        step_size=None if step_size is None else str(step_size), passes=passes, precision=precision, save_adv=save_adv,
    )  # fmt: skip
    with use_device(device) as chosen, tempfile.TemporaryDirectory() as scratch:
        own: dict[str, Any] = {"mean": tuple(map(float, mean)), "std": tuple(map(float, std)), "head": str(head)}
        data = _dataset(model, images, labels, tuple(classes), chosen, own)
        subject = classifier_of_module(model, len(data.classes), chosen, name=type(model).__name__, **own)
        run = _planned(request, subject, data, Path(out) if out else Path(scratch) / "run", chosen)
        results = run_suites(run, Place(chosen, chosen.split(":")[0]), command=asked, show_progress=show_progress)
        assert results is not None  # one process computes all
        if out:
            write_report(run.path)
        return _evaluation(results, Path(out) if out else None)


def _refuse(images: Tensor, labels: Labels, save_adv: bool, out: str | Path | None) -> None:
    """What cannot be attacked, or kept, whatever the model is."""
    if not isinstance(images, torch.Tensor) or not isinstance(labels, torch.Tensor):
        raise RobenchError(f"images are a {type(images).__name__} and labels a {type(labels).__name__}; expected torch tensors")
    check_images(images, labels, None)
    if save_adv and out is None:
        raise RobenchError("save_adv keeps images in a run folder: name one with out")


def _dataset(
    model: nn.Module, images: Tensor, labels: Labels, classes: tuple[str, ...], device: str, own: dict[str, Any]
) -> Dataset:
    """The images as a split; the model's outputs are counted where classes have no names."""
    classes = classes or tuple(str(label) for label in range(_count_outputs(model, images[:1], device, own)))
    check_images(images, labels, len(classes))
    return Dataset("images", "test", images.detach().cpu(), labels.detach().cpu(), classes)


def _evaluation(results: Results, path: Path | None) -> Evaluation:
    """The tables, with a warning for each attack that failed."""
    failed = failures(results)
    for line in failed:
        warnings.warn(f"attack failed: {line}", stacklevel=3)
    return Evaluation(summarise(results), verdict_rows(results.verdicts), failed, path)


def _planned(request: AttackRequest, subject: Subject, data: Dataset, folder: Path, device: str) -> Run:
    """The run that was asked for."""
    threat, suite = request.threat(data), str(request.suite)
    sources = {path: classifier_of_checkpoint(Path(path), None, device) for path in source_paths(suite)}
    options = request.options(settled_precision(request, subject, data, folder))
    suites = parse_suites(suite, threat, len(data.classes), options, sources)
    return Run(subject, data, len(data), suites, threat, folder, seed=request.seed, chunk=request.chunk, save=request.save_adv)


def _call(given: dict[str, Any]) -> str:
    """The call as it is recorded: what differs from the defaults, but for names of classes, which run.json has anyway."""
    defaults = {name: each.default for name, each in inspect.signature(evaluate).parameters.items()}
    settings = [
        f"{name}={value!r}"
        for name, value in given.items()
        if name not in ("model", "images", "labels", "classes", "out", "show_progress") and repr(value) != repr(defaults[name])
    ]
    return f"robench.evaluate({', '.join(['model', 'images', 'labels', *settings])})"


def _count_outputs(model: nn.Module, images: Images, device: str, own: dict[str, Any]) -> int:
    """How many logits a model returns, asked with one image."""
    classifier = classifier_of_module(model, 1, device, **own).classifier
    try:
        with torch.no_grad():
            outputs = classifier.module(
                classifier.normalised((to_unit(images) if images.dtype == torch.uint8 else images.float()).to(device))
            )
    except RobenchError:
        raise
    except Exception as error:  # somebody else's model may raise anything
        raise RobenchError(
            f"the model cannot classify an image of shape {tuple(images.shape)}: {type(error).__name__}: {error}"
        ) from error
    if isinstance(outputs, dict) and MAIN in outputs:
        outputs = outputs[MAIN]
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise RobenchError(
            f"the model returned {describe(outputs)} for one image, expected one tensor of logits (1, n_classes); of several outputs, "
            "name one with head="
        )
    return outputs.shape[1]
