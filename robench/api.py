"""What the commands call, and what a notebook calls: from a model and a suite to a run folder and its tables."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench.attacks import AttackOptions, check_names, parse_suites
from robench.checkpoint import read_description
from robench.data import load_dataset
from robench.evaluation.device import usable_cores, use_device
from robench.evaluation.engine import evaluate_suites
from robench.evaluation.environment import describe_environment
from robench.evaluation.results import read_results
from robench.evaluation.store import RunFolder, attack_folder, read_run
from robench.evaluation.verify import check_images
from robench.models.loading import Subject, classifier_of_checkpoint, classifier_of_factory, classifier_of_module
from robench.types import Dataset, RobenchError, RunSpec, Suite, ThreatModel, format_eps, parse_eps

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from robench.types import Labels

DEFAULT_CHUNK = 250


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The tables of one run.

    Attributes:
        summary: a row per attack, as in summary.csv.
        verdicts: a row per sample and attack, as in verdicts.csv.
        path: the run folder, or None where none was asked for.
    """

    summary: pd.DataFrame
    verdicts: pd.DataFrame
    path: Path | None


@dataclass(frozen=True)
class AttackRequest:
    """What a user asked for; None means the default. See ``robench attack --help``.

    Attributes:
        suite: names of attacks and suites, separated by commas.
        norm, eps: the threat model; eps as text, the data set's own by default.
        n: the first n samples, all by default.
        step_size: of PGD, as text.
        restarts: of PGD.
        seed: of the attacks.
        chunk: samples a chunk.
    """

    suite: str
    norm: str = "Linf"
    eps: str | None = None
    n: int | None = None
    step_size: str | None = None
    restarts: int = 1
    seed: int = 0
    chunk: int = DEFAULT_CHUNK

    def threat(self, dataset: Dataset) -> ThreatModel:
        default = dataset.default_eps.get(self.norm, "0")  # a norm that has none is refused by ThreatModel
        return ThreatModel.parse(self.norm, default if self.eps is None else self.eps)

    def options(self) -> AttackOptions:
        return AttackOptions(None if self.step_size is None else parse_eps(self.step_size), self.restarts)

    def folder_name(self, name: str, threat: ThreatModel, dataset: Dataset, trained_on: str | None) -> str:
        """``<checkpoint>-<norm>-<eps>``, and behind it whatever differs from the defaults."""
        parts = [name, threat.norm, threat.eps_text.replace("/", "of")]
        parts += [f"on-{dataset.name}"] if trained_on not in (None, dataset.name) else []
        parts += [f"step{self.step_size.replace('/', 'of')}"] if self.step_size else []
        parts += [f"restarts{self.restarts}"] if self.restarts != 1 else []
        parts += [f"seed{self.seed}"] if self.seed != 0 else []
        parts += [f"chunk{self.chunk}"] if self.chunk != DEFAULT_CHUNK else []
        return "-".join(parts)


def attack(
    request: AttackRequest,
    *,
    ckpt: Path | None = None,
    model: str | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
) -> Path:
    """Attacks a checkpoint, or the module of somebody's factory, and writes the run folder with its report.

    Called again, it computes only the chunks that are missing.

    Args:
        request: the attacks.
        ckpt: a checkpoint of ours; or
        model: ``file.py:factory``, whose module takes [0, 1] images.
        dataset: a name or a folder; the checkpoint's own by default.
        data_dir: see ``robench.data.data_folder``.
        device, threads: see ``use_device``.
        out: the run folder, ``reports/<name>-<norm>-<eps>`` by default.

    Returns:
        The run folder.

    Raises:
        RobenchError: anything the user can mend; what was measured before is kept.
    """
    if (ckpt is None) == (model is None):
        raise RobenchError("name what to attack: either --ckpt FILE or --model FILE.py:FACTORY")
    check_names(request.suite)  # before anything is downloaded
    trained_on = read_description(ckpt)["dataset"] if ckpt is not None else None
    tested_on = dataset or trained_on
    if tested_on is None:
        raise RobenchError("--model needs --dataset, a name of `robench list datasets` or a folder of images per class")
    data = load_dataset(tested_on, "test", data_dir)
    threat = request.threat(data)
    suites = parse_suites(request.suite, threat, len(data.classes), request.options())
    n = _first(request.n, len(data))
    with use_device(device, threads) as chosen:
        subject = classifier_of_checkpoint(ckpt, data, chosen) if ckpt else classifier_of_factory(str(model), data, chosen)
        folder = out or Path("reports") / request.folder_name(subject.name, threat, data, trained_on)
        _run(subject, data, n, suites, threat, request, folder, chosen, threads, command=_command(), show_progress=True)
    return folder


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Labels,
    *,
    suite: str = "pgd20,autoattack",
    norm: str = "Linf",
    eps: str | float = "8/255",
    seed: int = 0,
    batch_size: int = DEFAULT_CHUNK,
    device: str = "auto",
    out: str | Path | None = None,
    classes: Sequence[str] = (),
    show_progress: bool = False,
) -> Evaluation:
    """Attacks any module on any images and returns the tables.

    The module is copied: its mode, gradients and device stay as they are.

    Args:
        model: takes float images (N, C, H, W) in [0, 1], returns logits (N, n_classes).
        images: float in [0, 1] or uint8, (N, C, H, W).
        labels: int64 (N,).
        suite: as ``--suite``.
        norm, eps: the threat model.
        seed: of the attacks.
        batch_size: samples a chunk.
        device: see ``use_device``.
        out: a run folder to keep, with report and resume; by default nothing is kept.
        classes: names of the classes; the model's outputs are counted where not given.
        show_progress: bars on stderr.

    Raises:
        RobenchError: images or labels out of range, outputs of the wrong shape, an unknown attack.
    """
    import torch

    check_images(images, labels, max(int(labels.max()) + 1, len(classes)) if len(labels) else 1)
    request = AttackRequest(suite, norm, format_eps(parse_eps(eps)), seed=seed, chunk=batch_size)
    with use_device(device) as chosen, tempfile.TemporaryDirectory() as scratch:
        if not classes:
            with torch.no_grad():
                probe = images[:1].float() / (255 if images.dtype == torch.uint8 else 1)
                outputs = classifier_of_module(model, 1, chosen).classifier.module(probe.to(chosen))
            classes = [str(label) for label in range(outputs.shape[-1])]
        check_images(images, labels, len(classes))
        data = Dataset("images", "test", images.detach().cpu(), labels.detach().cpu(), tuple(classes))
        subject = classifier_of_module(model, len(classes), chosen, name=type(model).__name__)
        threat = request.threat(data)
        suites = parse_suites(suite, threat, len(classes))
        folder = Path(out) if out else Path(scratch) / "run"
        summary = _run(
            subject, data, len(data), suites, threat, request, folder, chosen, None, command="", show_progress=show_progress
        )
        from robench.report.tables import verdict_rows

        return Evaluation(summary, verdict_rows(read_results(folder).verdicts), Path(out) if out else None)


def failures(run: Path) -> list[str]:
    """What attacks of a run failed with, one line each; empty where every verdict stands."""
    ledger = read_results(run).ledger
    said = ledger[ledger["message"] != ""]
    return [f"{row.attack}, chunk {row.chunk}: {row.message}" for row in said.itertuples()]


def _run(
    subject: Subject, data: Dataset, n: int, suites: list[Suite], threat: ThreatModel, request: AttackRequest, path: Path,
    device: str, threads: int | None, *, command: str, show_progress: bool,
) -> pd.DataFrame:  # fmt: skip
    """Describes the run, computes what is missing, and writes the tables."""
    from robench.report import write_report

    spec = RunSpec(
        model=subject.digest, data=data.digest, norm=threat.norm, eps=threat.eps, seed=request.seed, chunk=request.chunk,
        device_type=device.split(":")[0],
    )  # fmt: skip
    folder = RunFolder(path, spec)
    description = {
        "model": {"name": subject.name, "origin": subject.origin},
        "data": {"name": data.name, "split": data.split, "n": len(data), "classes": list(data.classes)},
        "threat": {"norm": threat.norm, "eps": threat.eps, "eps_text": threat.eps_text},
        "n": n,
        "suites": _columns_with_earlier(path, suites),
        "commands": _commands_with_earlier(path, command),
        "environment": describe_environment(device, threads or usable_cores()),
    }
    folder.describe(description)
    evaluate_suites(
        subject.classifier, data.images[:n], data.labels[:n], suites, threat=threat, folder=folder, show_progress=show_progress
    )
    summary = write_report(path)
    folder.describe(description | {"results": _plain(summary)})
    return summary


def _columns_with_earlier(path: Path, suites: list[Suite]) -> list[dict[str, Any]]:
    """The columns of this call, and those that the folder has from earlier ones: an attack once measured is not forgotten."""
    asked = [
        {
            "name": suite.name,
            "cascade": suite.cascade,
            "members": [
                {
                    "name": member.name,
                    "folder": attack_folder(suite, member),
                    "params": dict(member.params),
                    "library": member.library,
                    "source": member.source,
                }
                for member in suite.members
            ],
        }
        for suite in suites
    ]
    earlier = read_run(path)["suites"] if (path / "run.json").exists() else []
    names = {column["name"] for column in asked}
    return asked + [column for column in earlier if column["name"] not in names]


def _commands_with_earlier(path: Path, command: str) -> list[str]:
    """Every command that filled the folder, in order, each once."""
    earlier = read_run(path)["commands"] if (path / "run.json").exists() else []
    return list(dict.fromkeys([*earlier, *([command] if command else [])]))


def _plain(summary: pd.DataFrame) -> list[dict[str, Any]]:
    return [{key: value if value == value else None for key, value in row.items()} for row in summary.to_dict("records")]


def _first(n: int | None, total: int) -> int:
    if n is None:
        return total
    if not 1 <= n <= total:
        raise RobenchError(f"--n {n}: expected 1 to {total}, the samples of the test split")
    return n


def _command() -> str:
    return shlex.join(["robench", *sys.argv[1:]])
