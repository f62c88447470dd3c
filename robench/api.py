"""What the commands call, and what a notebook calls: from a model and a suite to a run folder and its tables."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robench.attacks import AttackOptions, check_names, parse_suites, source_paths
from robench.attacks.elsewhere import make_heads_target, on_heads
from robench.checkpoint import read_description
from robench.data import DATASETS, load_dataset
from robench.data.augment import to_unit
from robench.evaluation.cluster import connect, evaluate_on_ray
from robench.evaluation.device import own_device, own_threads, use_device
from robench.evaluation.engine import evaluate_suites
from robench.evaluation.first_look import first_look
from robench.evaluation.replay import Replay, replay_run
from robench.evaluation.results import failures
from robench.evaluation.store import read_run
from robench.evaluation.stored import stored_suite
from robench.evaluation.verify import check_images
from robench.interchange.bundle import opened, refuse_other_table
from robench.models.loading import Subject, classifier_of_checkpoint, classifier_of_model, classifier_of_module, of_head
from robench.models.multihead import MAIN
from robench.models.output import describe
from robench.models.rewrite import quicker_precision
from robench.models.sources import SOURCES, source_of
from robench.processes import Processes
from robench.report import write_report
from robench.report.markdown import terminal_table
from robench.report.tables import summarise, verdict_rows
from robench.runs import DEFAULT_CHUNK, Place, Run, run_suites
from robench.types import Dataset, OwnModel, RobenchError, Search, Suite, ThreatModel, format_eps, parse_eps

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from robench.types import Images, Labels

DEFAULT_SUITE = {"Linf": "pgd20,autoattack", "L2": "pgd20,autoattack", "L1": "autoattack"}
QUICK_LOOK = 64  # images by which fp32 and bf16 are timed


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


@dataclass(frozen=True)
class AttackRequest:
    """What a user asked for; None means the default. See ``robench attack --help``.

    Attributes:
        suite: names of attacks and suites, separated by commas; by default pgd20 (not in L1) and autoattack, or none where ``adv``
            is given.
        norm, eps: the threat model; eps as text, the data set's own by default.
        n: the first n samples, all by default.
        step_size: of PGD, as text.
        restarts: of PGD.
        seed: of the attacks.
        chunk: samples a chunk.
        attack_heads: the head that images are crafted on, or "joint" for all; None for ``head``, whose the verdict is.
        head: the task that is judged.
        save_adv: keep the adversarial images.
        adv: stored images to evaluate too, see ``stored_suite``.
        share: let one trajectory serve pgd7, pgd20 and pgd50.
        budget: of the fast suite, in multiples of AutoAttack's cost; None for its own.
        passes: "own", or "folded": while attacks search, see ``Search``.
        precision: "fp32", "bf16", or "auto" for what the processor does faster; while attacks search.
        compiled: let torch.compile have the passes of the search.
    """

    suite: str | None = None
    norm: str = "Linf"
    eps: str | None = None
    n: int | None = None
    step_size: str | None = None
    restarts: int = 1
    seed: int = 0
    chunk: int = DEFAULT_CHUNK
    attack_heads: str | None = None
    head: str = MAIN
    save_adv: bool = False
    adv: tuple[str, ...] = ()
    share: bool = True
    budget: float | None = None
    passes: str = "own"
    precision: str = "fp32"
    compiled: bool = False

    def __post_init__(self) -> None:
        for option, given, known in (
            ("passes", self.passes, ("own", "folded")), ("precision", self.precision, ("fp32", "bf16", "auto")),
        ):  # fmt: skip
            if given not in known:
                raise RobenchError(f"--{option} {given}: expected {' or '.join(known)}")

    @property
    def names(self) -> str | None:
        """The suite, or its default."""
        return self.suite if self.suite is not None else None if self.adv else default_suite(self.norm)

    def threat(self, dataset: Dataset) -> ThreatModel:
        default = dataset.default_eps.get(self.norm, "0")  # a norm that has none is refused by ThreatModel
        return ThreatModel.parse(self.norm, default if self.eps is None else self.eps)

    def options(self, precision: str = "fp32") -> AttackOptions:
        """The attacks' options, where ``precision`` is settled."""
        step_size = None if self.step_size is None else parse_eps(self.step_size, "--step-size")
        return AttackOptions(step_size, self.restarts, self.budget, Search(self.passes == "folded", precision, self.compiled))

    def folder_name(self, name: str, threat: ThreatModel, dataset: Dataset, trained_on: str | None) -> str:
        """``<checkpoint>-<norm>-<eps>``, and behind it whatever differs from the defaults."""
        parts = [name, threat.norm, threat.eps_text.replace("/", "of")]
        parts += [f"on-{dataset.name}"] if trained_on not in (None, dataset.name) else []
        parts += [f"head-{self.head}"] if self.head != MAIN else []
        parts += [f"step{self.step_size.replace('/', 'of')}"] if self.step_size else []
        parts += [f"restarts{self.restarts}"] if self.restarts != 1 else []
        parts += [f"seed{self.seed}"] if self.seed != 0 else []
        parts += [f"chunk{self.chunk}"] if self.chunk != DEFAULT_CHUNK else []
        return "-".join(parts)


def attack(
    request: AttackRequest,
    *,
    ckpt: Path | None = None,
    model: str | OwnModel | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
    ray: str | None = None,
    show_progress: bool = True,
) -> Path | None:
    """Attacks a checkpoint, or a model of somebody else's, and writes the run folder with its report.

    Called again, it computes only the chunks that are missing. Under torchrun or SLURM it computes this process's share of them, and
    whoever finds them complete writes the report.

    Args:
        request: the attacks.
        ckpt: a checkpoint of ours; or
        model: one of the ways of ``robench list models``, such as ``file.py:factory``.
        dataset: a name or a folder; the checkpoint's own by default.
        data_dir: see ``robench.data.data_folder``.
        device, threads: see ``use_device``.
        out: the run folder, ``reports/<name>-<norm>-<eps>`` by default.
        ray: hand chunks to Ray: the address of a cluster, or "local".
        show_progress: bars on stderr.

    Returns:
        The run folder, or None where other processes have not finished their share yet.

    Raises:
        RobenchError: anything the user can mend; what was measured before is kept.
    """
    here = Processes.here()
    own = OwnModel(model) if isinstance(model, str) else model
    _refuse(request, ckpt, own, ray, here)
    whole, data, trained_on = _data_of(request, ckpt, dataset, data_dir)
    threat, n = request.threat(data), _first(request.n, len(data))
    with ExitStack() as stack:
        place = _place(stack, here, device, threads, ray)
        subject = subject_of(ckpt, own, data, place.device, request.head)
        warn_of_guessing(subject, data, n, say=here.rank == 0)
        if data.path and show_progress and here.rank == 0:
            print(f"robench: {data.path}: {data}", file=sys.stderr)
        task = MAIN if ckpt is None else request.head
        sources = {
            path: classifier_of_checkpoint(Path(path), data, place.device, task) for path in source_paths(request.names or "")
        }
        folder = out or Path("reports") / request.folder_name(subject.name, threat, data, trained_on)
        request = replace(request, precision=_settled_precision(request, subject, data, folder))
        suites = _suites(request, subject, whole, data, threat, n, sources)
        run = Run(
            subject, data, n, suites, threat, folder, seed=request.seed, chunk=request.chunk, save=request.save_adv, share=request.share
        )  # fmt: skip
        results = run_suites(run, place, command=command(), show_progress=show_progress and here.rank == 0)
    if results is None:
        return None
    write_report(folder)
    return folder


def _refuse(request: AttackRequest, ckpt: Path | None, own: OwnModel | None, ray: str | None, here: Processes) -> None:
    """What cannot be done, said before anything is downloaded."""
    if (ckpt is None) == (own is None):
        raise RobenchError(
            "name what to attack: either --ckpt FILE or --model (`robench list models`), such as --model FILE.py:FACTORY"
        )
    if request.names is not None:
        check_names(request.names)
    if not 0 <= request.seed < 2**63:
        raise RobenchError(f"--seed {request.seed}: expected 0 to 2^63 - 1")
    if ray is not None and here.world_size > 1:
        raise RobenchError("--ray under torchrun: both hand out chunks; use one of them")
    if request.precision == "auto" and (ray is not None or here.world_size > 1):
        raise RobenchError("--precision auto: several processes may not agree; name fp32 or bf16")
    if ray is not None and own is not None and source_of(own.where) is SOURCES["FILE.pt"]:
        raise RobenchError(
            f"--ray cannot send the program {own.where} to its workers; use torchrun, whose processes load it themselves"
        )


def _data_of(
    request: AttackRequest, ckpt: Path | None, dataset: str | None, data_dir: Path | None
) -> tuple[Dataset, Dataset, str | None]:
    """The test split with the labels of the main task, the same with those of the judged head, and what a checkpoint was trained on."""
    trained_on = read_description(ckpt)["dataset"] if ckpt is not None else None
    tested_on = dataset or trained_on
    if tested_on is None:
        raise RobenchError("--model needs --dataset: one of `robench list datasets`, or your own folder or .npz file")
    if dataset is None and tested_on not in DATASETS:
        raise RobenchError(f"{ckpt} was trained on the folder {tested_on!r}; say where it lies: --dataset PATH")
    whole = load_dataset(tested_on, "test", data_dir)
    # The heads of other people's models have no labels of their own.
    return whole, of_head(whole, MAIN if ckpt is None else request.head), trained_on


def _place(stack: ExitStack, here: Processes, device: str, threads: int | None, ray: str | None) -> Place:
    """Where chunks are computed, for as long as the stack is open."""
    if ray is not None:
        cluster = stack.enter_context(connect(ray, device, threads))
        chosen = stack.enter_context(use_device("cpu", 1))
        return Place(chosen, cluster.device, here, partial(evaluate_on_ray, cluster=cluster))
    chosen = stack.enter_context(use_device(own_device(device, here), threads or own_threads(here)))
    return Place(chosen, chosen.split(":")[0], here, partial(evaluate_suites, processes=here))


def subject_of(ckpt: Path | None, model: str | OwnModel | None, data: Dataset, device: str, head: str) -> Subject:
    """The model that ``--ckpt`` or ``--model`` names, as a classifier of the data.

    Raises:
        RobenchError: see ``classifier_of_checkpoint`` and ``classifier_of_model``.
    """
    if model is None:
        return classifier_of_checkpoint(Path(str(ckpt)), data, device, head)
    return classifier_of_model(OwnModel(model) if isinstance(model, str) else model, data, device, head)


def warn_of_guessing(subject: Subject, data: Dataset, n: int, *, say: bool = True) -> None:
    """Says on stderr, before hours of attacks, that a model of somebody else's is no better than a guess.

    Raises:
        RobenchError: see ``first_look``.
    """
    found = first_look(subject.classifier, data, n) if subject.model is None else ""
    if found and say:
        print(f"robench: warning: {found}", file=sys.stderr)


def _settled_precision(request: AttackRequest, subject: Subject, data: Dataset, folder: Path) -> str:
    """What "auto" means here: what the run began with, else what this processor does faster."""
    if request.precision != "auto":
        return request.precision
    if (folder / "run.json").exists():
        members = [member for suite in read_run(folder)["suites"] for member in suite["members"]]
        begun = [member["params"]["passes"] for member in members if "passes" in member["params"]]
        if begun:
            return "bf16" if "bf16" in begun[-1] else "fp32"
    images = data.images[:QUICK_LOOK].to(subject.classifier.device)
    return quicker_precision(subject.classifier, to_unit(images) if images.dtype == torch.uint8 else images.float())


def _suites(
    request: AttackRequest,
    subject: Subject,
    whole: Dataset,
    data: Dataset,
    threat: ThreatModel,
    n: int,
    sources: dict[str, Subject],
) -> list[Suite]:
    """The columns that were asked for: crafted here, on other heads, on other models, or stored.

    Args:
        whole: with the labels of the main task.
        data: with those of the judged head.
    """
    n_classes, crafted = len(data.classes), []
    heads = None if request.attack_heads == request.head else request.attack_heads
    if request.names is not None:
        if heads is not None:
            target = make_heads_target(heads, subject, whole)
            n_classes = target.n_classes(min(request.chunk, n % request.chunk or request.chunk, n))
        crafted = parse_suites(request.names, threat, n_classes, request.options(request.precision), sources)
        if heads is not None:
            crafted = on_heads(crafted, heads, target)
    return crafted + [stored_suite(where, data, n) for where in request.adv]


def verify(
    run: Path, *, ckpt: Path | None = None, model: str | OwnModel | None = None, dataset: str | None = None, data_dir: Path | None = None,
    device: str = "auto", threads: int | None = None,
) -> tuple[list[Replay], str]:  # fmt: skip
    """Replays a run's stored adversarial images against the model.

    Args:
        run: a folder of ``robench attack --save-adv``, or a file of ``robench bundle``, whose every part is compared with its digest.
        ckpt, model: the model, where it no longer lies where the run found it; a model without ``where`` is the run's own, as
            ``OwnModel.trust`` allows.
        dataset, data_dir: the data, likewise.
        device, threads: see ``use_device``.

    Returns:
        What still holds of every attack, and how the model differs from the one that was attacked, or "".

    Raises:
        RobenchError: the run, the model or the data are not there or do not fit; a bundle is not as it was made; or the run's table
            does not follow from its verdicts.
    """
    with opened(run) as folder:
        refuse_other_table(folder)
        return _replay(folder, run, ckpt, model, dataset, data_dir, device, threads)


def _replay(
    folder: Path, run: Path, ckpt: Path | None, model: str | OwnModel | None, dataset: str | None, data_dir: Path | None, device: str,
    threads: int | None,
) -> tuple[list[Replay], str]:  # fmt: skip
    """As ``verify``, of the folder that ``run`` is or was unpacked into."""
    described = read_run(folder)
    origin, head = described["model"]["origin"], described["model"]["origin"].get("head", MAIN)
    if ckpt is None and (model is None or (isinstance(model, OwnModel) and not model.where)):
        ckpt, model = _named_by(run, origin, model)
    data = load_dataset(dataset or described["data"].get("path") or described["data"]["name"], "test", data_dir)
    data = of_head(data, head) if model is None else data
    with use_device(device, threads) as chosen:
        subject = subject_of(ckpt, model, data, chosen, head)
        subject.classifier.draws = described["model"].get("votes", 1)
        replays = replay_run(folder, subject.classifier, data)
    attacked = described["spec"]["model"]
    changed = "" if subject.digest == attacked else f"its digest is {subject.digest[:12]}, the run attacked {attacked[:12]}"
    return replays, changed


def _named_by(run: Path, origin: dict[str, Any], given: OwnModel | None) -> tuple[Path | None, OwnModel | None]:
    """The checkpoint or the model that a run says it attacked.

    Raises:
        RobenchError: it says nothing, or names code: run.json may come from anybody, and verifying must not run what it names.
    """
    if "checkpoint" in origin:
        return Path(origin["checkpoint"]), None
    if "model" not in origin:
        raise RobenchError(f"{run} does not say where its model lies; name it with --ckpt or --model")
    where, trust = str(origin["model"]), given is not None and given.trust
    if source_of(where).runs_code and not trust:
        raise RobenchError(
            f"{run} says that its model is {where}, which is code that would be run: add --trust where you trust it, or name the model "
            "yourself with --model"
        )
    own = given or OwnModel("")
    weights = Path(origin["weights file"]) if source_of(where).takes_weights and "weights file" in origin else None
    mean, std = (getattr(own, name) or tuple(origin.get(name, ())) for name in ("mean", "std"))
    return None, replace(own, where=where, weights=own.weights or weights, mean=mean, std=std)


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Labels,
    *,
    suite: str | Sequence[str] | None = None,
    norm: str = "Linf",
    eps: str | float | None = None,
    seed: int = 0,
    batch_size: int = DEFAULT_CHUNK,
    device: str = "auto",
    out: str | Path | None = None,
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    head: int | str = MAIN,
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
        batch_size: samples a chunk.
        device: see ``use_device``.
        out: a run folder to keep, with report and resume; by default nothing is kept.
        classes: names of the classes; the model's outputs are counted where not given.
        mean, std: of a normalisation in front of the model, per channel.
        head: which output of a model that returns several holds the logits: its place or its name.
        show_progress: bars on stderr.

    Raises:
        RobenchError: images or labels out of range, outputs of the wrong shape, an unknown attack.
    """
    if not isinstance(images, torch.Tensor) or not isinstance(labels, torch.Tensor):
        raise RobenchError(f"images are a {type(images).__name__} and labels a {type(labels).__name__}; expected torch tensors")
    check_images(images, labels, None)
    suite = default_suite(norm) if suite is None else suite if isinstance(suite, str) else ",".join(suite)
    request = AttackRequest(suite, norm, None if eps is None else format_eps(parse_eps(eps)), seed=seed, chunk=batch_size)
    with use_device(device) as chosen, tempfile.TemporaryDirectory() as scratch:
        own: dict[str, Any] = {"mean": mean, "std": std, "head": str(head)}
        classes = tuple(classes) or tuple(str(label) for label in range(_count_outputs(model, images[:1], chosen, own)))
        check_images(images, labels, len(classes))
        data = Dataset("images", "test", images.detach().cpu(), labels.detach().cpu(), classes)
        subject = classifier_of_module(model, len(classes), chosen, name=type(model).__name__, **own)
        threat = request.threat(data)
        sources = {path: classifier_of_checkpoint(Path(path), None, chosen) for path in source_paths(suite)}
        suites = parse_suites(suite, threat, len(classes), sources=sources)
        folder = Path(out) if out else Path(scratch) / "run"
        run = Run(subject, data, len(data), suites, threat, folder, seed=seed, chunk=batch_size)
        results = run_suites(run, Place(chosen, chosen.split(":")[0]), show_progress=show_progress)
        assert results is not None  # one process computes all
        if out:
            write_report(folder)
        failed = failures(results)
        for line in failed:
            warnings.warn(f"attack failed: {line}", stacklevel=2)
        return Evaluation(summarise(results), verdict_rows(results.verdicts), failed, Path(out) if out else None)


def default_suite(norm: str) -> str:
    """What is run where no suite is named.

    Raises:
        RobenchError: there is no such norm.
    """
    return DEFAULT_SUITE[ThreatModel(norm, 0).norm]


def parse_chunk(text: str) -> int:
    """What ``--batch-size`` means: a number of samples, or "auto".

    Raises:
        RobenchError: it is neither.
    """
    if text == "auto":
        return DEFAULT_CHUNK
    if not text.isdecimal() or int(text) < 1:
        raise RobenchError(f"--batch-size {text!r}: expected auto, or a number of samples of at least 1")
    return int(text)


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


def _first(n: int | None, total: int) -> int:
    if n is None:
        return total
    if not 1 <= n <= total:
        raise RobenchError(f"--n {n}: expected 1 to {total}, the samples of the test split")
    return n


def command() -> str:
    """The command line of this process, as it is recorded, with the options that came from the environment in front."""
    prefix = f"ROBENCH_{sys.argv[1].upper()}_" if len(sys.argv) > 1 else "ROBENCH_"
    chosen = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(prefix)]
    return shlex.join([*chosen, "robench", *sys.argv[1:]])
