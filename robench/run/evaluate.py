"""What a notebook calls: any module, any images."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench.attacks import Asked, called, check_suite
from robench.data import load_dataset
from robench.data.augment import in_unit
from robench.data.in_memory import Held, gather
from robench.evaluation.device import use_device
from robench.evaluation.judge import check_images
from robench.evaluation.results import Results, announced, failures
from robench.models.adapting import uncompiled
from robench.models.arithmetic import refuse_unknown_to
from robench.models.chosen_outputs import NUMBERS, Data, selection_of
from robench.models.failures import is_out_of_memory
from robench.models.multihead import MAIN_HEAD
from robench.models.subject import TRIAL_IMAGES, classifier_of_module, raised
from robench.report import write_report
from robench.report.accuracy import summarise, verdict_rows
from robench.report.markdown import terminal_table
from robench.run.execute import Place, execute
from robench.run.inputs import few_classes, remarks_on
from robench.run.plan import plan, samples
from robench.run.request import DEFAULT_CHUNK, AttackRequest, default_suite, parse_chunk
from robench.types import Dataset, ExternalData, RobenchError, check_normalisation, format_eps, parse_eps, pixels_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import nn

    from robench.types import Images


SHOWN = ("attack", "n", "robust_accuracy", "ci_low", "ci_high", "broken", "undecided", "seconds")


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

    def _repr_html_(self) -> str:
        """The table, as a notebook shows it."""
        shown = [name for name in SHOWN if name in self.summary]
        return str(self.summary[shown].to_html(index=False, float_format="{:.4g}".format, na_rep=""))

    def to_frame(self) -> pd.DataFrame:
        """A row per attack: a copy of ``summary``."""
        return self.summary.copy()

    def plot(self) -> Figure:
        """Robust accuracy per attack with its 95 % interval; a notebook draws it."""
        from robench.report.figures import draw_accuracies

        return draw_accuracies(self.summary, f"{int(self.summary['n'].iloc[0]):,} samples")


def evaluate(
    model: nn.Module | Callable[[Images], Any],
    images: Any = None,
    labels: Any = None,
    *,
    dataset: Any = None,
    n: int | None = None,
    suite: Asked | None = None,
    norm: str = "Linf",
    eps: str | float | None = None,
    seed: int = 0,
    batch_size: int | str = DEFAULT_CHUNK,
    device: str = "auto",
    out: str | Path | None = None,
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    head: int | str = MAIN_HEAD,
    outputs: str | Sequence[int] = "",
    step_size: str | float | None = None,
    restarts: int = 1,
    budget: float | None = None,
    passes: str = "own",
    precision: str = "fp32",
    weights_dtype: str = "float32",
    save_adv: bool = False,
    show_progress: bool = False,
) -> Evaluation:
    """Attacks any module on any images and returns the tables.

    The module is copied: its mode, gradients and device stay as they are. So are the images.

    Args:
        model: takes float images (N, C, H, W) in [0, 1], or normalised by ``mean`` and ``std``, and returns logits (N, n_classes); a
            module or a function. One output is read as that of a binary classifier, where it is clear whether it is a logit or a probability.
        images: float in [0, 1] or uint8, (N, C, H, W) or (N, H, W, C): a tensor, a NumPy array, a list of either or of PIL images; or a
            DataLoader, a torch or a Hugging Face data set, which brings its own labels. See ``robench.data.in_memory.gather``.
        labels: integers (N,) or (N, 1), or one-hot (N, n_classes).
        dataset: in place of both: a name of ``robench list datasets`` or a path, as ``--dataset``, an ``ExternalData`` that says how its
            pictures are read, a ``Dataset``, or whatever of ``images`` brings its own labels.
        n: the first n samples, all by default.
        suite: as ``--suite``, or one or a list of names, of functions ``fn(model, images, labels, threat, seed) -> adv_images`` and of
            ``Attack.of(fn, steps=20)``; by default pgd20 (not in L1) and autoattack.
        norm, eps: the threat model, a norm in any case; by default the data set's own radius, else 8/255 in Linf, 0.5 in L2 and 12 in L1.
        seed: of the attacks.
        batch_size: samples a chunk, or "auto": 250, and on a GPU as many as fit, up to 4,000; what a run folder has stays.
        device: auto, cpu, cuda, cuda:1 or mps.
        out: a run folder to keep, with report and resume; by default nothing is kept.
        classes: names of the classes; the model's outputs are counted where not given.
        mean, std: of a normalisation in front of the model, per channel.
        head: which output of a model that returns several holds the logits: its place or its name.
        outputs: which of the model's outputs stand for the classes: their numbers; "imagenet", where ``classes`` are some of its synsets; or a
            file with the name of a class a line. By default all.
        step_size, restarts, budget, passes, precision: as ``--step-size`` and so on; see ``robench.run.request.AttackRequest``.
        weights_dtype: "float32" computes in it whatever the weights are; "as-is" leaves half and bfloat16 as they are.
        save_adv: keep the adversarial images in ``out``, for ``robench verify``.
        show_progress: bars on stderr.

    Raises:
        RobenchError: images or labels out of range, outputs of the wrong shape, an unknown attack.
    """
    asked = _call(locals())
    if save_adv and out is None:
        raise RobenchError("`save_adv` keeps images in a run folder: name one with `out`")
    suite = default_suite(norm) if suite is None else suite if isinstance(suite, str) else tuple(check_suite(suite))
    request = AttackRequest(
        suite, norm, None if eps is None else format_eps(parse_eps(eps)), n=n, seed=seed, chunk=parse_chunk(str(batch_size)), restarts=restarts, budget=budget,
        step_size=None if step_size is None else str(step_size), passes=passes, precision=precision, save_adv=save_adv,
        auto_chunk=batch_size == "auto",
    )  # fmt: skip
    with _in_one_message(), use_device(device) as chosen, tempfile.TemporaryDirectory() as scratch:
        refuse_unknown_to(chosen, precision)
        brought = _brought(images, labels, dataset, tell=show_progress)
        check_normalisation(mean, std, brought.images.shape[1] if len(brought.images.shape) == 4 else None)
        names = tuple(classes) or brought.classes
        subject = classifier_of_module(
            model, None, chosen, name=getattr(model, "__name__", type(uncompiled(model)).__name__), mean=tuple(map(float, mean)),
            std=tuple(map(float, std)), head=str(head), images=in_unit(pixels_of(brought.images, slice(0, TRIAL_IMAGES))),
            weights_dtype=weights_dtype, columns=_columns(outputs, names),
        )  # fmt: skip
        data = _dataset(brought, tuple(classes), subject.classifier.n_classes)
        for remark in [*remarks_on(subject, data, samples(n, len(data))), *few_classes(data, samples(n, len(data)))]:
            warnings.warn(remark, stacklevel=2)
        run = plan(request, subject, data, Path(out) if out else Path(scratch) / "run", device=chosen)
        results = execute(run, Place.on(chosen), command=asked, show_progress=show_progress)
        assert results is not None  # one process computes all
        if out:
            write_report(run.path)
        return _evaluation(results, Path(out) if out else None)


@contextmanager
def _in_one_message() -> Iterator[None]:
    """Whatever somebody's model raises becomes one sentence; the traceback stays behind it."""
    try:
        yield
    except RobenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise RobenchError(f"memory ran out ({raised(error)}): give a smaller `batch_size`") from error
        raise RobenchError(
            f"the evaluation was stopped by {raised(error)}: where it is the model or the data that raise it, mend them"
        ) from error


def _brought(images: Any, labels: Any, dataset: Any, *, tell: bool) -> Held | Dataset:
    """What a call evaluates on.

    Raises:
        RobenchError: it names nothing, or images and a data set; see ``gather`` and ``load_dataset``.
    """
    if (images is None) == (dataset is None):
        raise RobenchError("give `images` with `labels`, or `dataset`" + ("" if images is None else ", not both"))
    if dataset is None:
        return gather(images, labels)
    if labels is not None:
        raise RobenchError("`dataset` brings its own labels: leave `labels` out, or give `images`")
    if isinstance(dataset, str | Path | ExternalData):
        return load_dataset(dataset if isinstance(dataset, ExternalData) else str(dataset), tell=tell)
    return dataset if isinstance(dataset, Dataset) else gather(dataset)


def _columns(outputs: str | Sequence[int], names: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of the outputs that stand for the classes; none where all do."""
    asked = outputs if isinstance(outputs, str) else ",".join(map(str, outputs))
    if asked and not names:
        if not NUMBERS.fullmatch(asked):
            raise RobenchError(f"`outputs={asked}` looks up names of classes: give them as `classes`, or give the outputs' numbers")
        names = tuple(map(str, range(asked.count(",") + 1)))
    selection = selection_of(asked, Data("the data", names, "outputs"))
    return selection.columns if selection else ()


def _dataset(brought: Held | Dataset, given: tuple[str, ...], n_classes: int) -> Dataset:
    """The images as a split; classes are numbers where they have no names."""
    if isinstance(brought, Dataset):
        if len(brought.classes) != n_classes:
            raise RobenchError(f"{brought.name} has {len(brought.classes)} classes, but the model has {n_classes} outputs")
        return replace(brought, classes=given) if given else brought
    held, classes = brought, given or brought.classes
    if classes and len(classes) != n_classes:
        raise RobenchError(
            f"{len(classes)} names of classes, but the model has {n_classes} outputs; where it knows more classes than the data has, `outputs` says "
            "which of its outputs stand for them"
        )
    check_images(held.images, held.labels, n_classes)
    return Dataset("images", "test", held.images, held.labels, classes or tuple(map(str, range(n_classes))))


def _evaluation(results: Results, path: Path | None) -> Evaluation:
    """The tables, with a warning for each attack that failed."""
    failed = failures(results)
    for line in failed:
        warnings.warn(announced(line), stacklevel=3)
    return Evaluation(summarise(results), verdict_rows(results.verdicts), failed, path)


def _call(given: dict[str, Any]) -> str:
    """The call as it is recorded: what differs from the defaults, but for names of classes, which run.json has anyway."""
    defaults = {name: each.default for name, each in inspect.signature(evaluate).parameters.items()}
    settings = [
        f"{name}={called(value)}" if name == "suite" else f"{name}={value!r}"
        for name, value in given.items()
        if name not in ("model", "images", "labels", "dataset", "classes", "out", "show_progress")
        and repr(value) != repr(defaults[name])
    ]
    data = given["dataset"]
    named = f"dataset={data!r}" if isinstance(data, str | Path | ExternalData) else "dataset=dataset"
    return f"robench.evaluate({', '.join(['model', *(['images', 'labels'] if data is None else [named]), *settings])})"
