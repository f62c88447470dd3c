"""The audit: is a robustness number real?"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robench.api import command, subject_of
from robench.audit.checks import run_checks
from robench.audit.evidence import MAIN, Evidence, Stored
from robench.audit.page import write_audit
from robench.audit.panel import CONSEQUENCES, called_for, consequences, grid, panel, rest
from robench.audit.probes import PROBES, Subjects, run_probe
from robench.audit.probes import N as PROBED
from robench.audit.surrogate import surrogate_attack
from robench.audit.verdict import Verdict, judge_number
from robench.checkpoint import read_description
from robench.data import DATASETS, load_dataset
from robench.data.augment import to_unit
from robench.evaluation.device import use_device
from robench.evaluation.environment import describe_environment
from robench.evaluation.results import Results
from robench.evaluation.store import read_run
from robench.evaluation.stored import stored_suite
from robench.files import write_atomically
from robench.models.loading import Subject, classifier_of_checkpoint, of_head
from robench.models.multihead import MAIN as MAIN_HEAD
from robench.runs import DEFAULT_CHUNK, Place, Run, run_suites
from robench.types import Attack, Dataset, Finding, Outcome, RobenchError, Suite, ThreatModel

PROTOCOLS = ("white-box", "transfer", "unknown")
SAMPLES, QUICK_SAMPLES, GRID_SAMPLES = 1000, 200, 250


@dataclass(frozen=True)
class AuditRequest:
    """What a user asked for. See ``robench audit --help``.

    Attributes:
        claim: robust accuracy as a fraction; None judges what the plain suite reports.
        protocol: what the claim says about itself, one of ``PROTOCOLS``.
        norm, eps: the threat model; eps as text, the data set's own by default.
        n: the first n samples; 1,000 (200 with ``quick``), or all where there are fewer.
        seed: of the attacks.
        adv: stored images, see ``stored_suite``.
        source: the checkpoint that files of stored images were crafted on.
        budget: of the stronger attacks that findings call for, in multiples of AutoAttack's cost a surviving sample.
        quick: a first answer from few samples and attacks; it supports nothing, but it can refute.
        head: the task that is judged.
    """

    claim: float | None = None
    protocol: str = "unknown"
    norm: str = "Linf"
    eps: str | None = None
    n: int | None = None
    seed: int = 0
    adv: tuple[str, ...] = ()
    source: Path | None = None
    budget: float = 3.0
    quick: bool = False
    head: str = MAIN_HEAD

    def __post_init__(self) -> None:
        if self.claim is not None and not 0 <= self.claim <= 1:
            raise RobenchError(
                f"--claim {self.claim:g}: expected a robust accuracy as a fraction of all samples, 0 to 1, such as 0.606"
            )
        if self.protocol not in PROTOCOLS:
            raise RobenchError(f"--claim-protocol {self.protocol!r}: expected one of {', '.join(PROTOCOLS)}")
        if self.budget < 0:
            raise RobenchError(f"--budget {self.budget:g}: expected a multiple of AutoAttack's cost, 0 or more")

    def samples(self, data: Dataset) -> int:
        """How many samples are looked at."""
        if self.n is None:
            return min(len(data), QUICK_SAMPLES if self.quick else SAMPLES)
        if not 1 <= self.n <= len(data):
            raise RobenchError(f"--n {self.n}: expected 1 to {len(data)}, the samples of the test split")
        return self.n


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Attributes:
        verdict: on the number.
        findings: of every check, the gravest first.
        path: the page, or None where nothing was kept.
        seconds: that it took; what was there before is not counted.
    """

    verdict: Verdict
    findings: list[Finding]
    path: Path | None
    seconds: float


def audit(
    request: AuditRequest, *, ckpt: Path | None = None, model: str | None = None, dataset: str | None = None,
    data_dir: Path | None = None, device: str = "auto", threads: int | None = None, out: Path | None = None,
) -> Audit:  # fmt: skip
    """Judges a robustness number of a checkpoint or of somebody's model; called again, it computes only what is missing.

    Args:
        request: what is to be judged, and how.
        ckpt, model, dataset, data_dir, device, threads: as in ``robench.api.attack``.
        out: the audit's folder, ``reports/audit-<name>`` by default.

    Raises:
        RobenchError: anything the user can mend; what was measured before is kept.
    """
    if (ckpt is None) == (model is None):
        raise RobenchError("name what to audit: either --ckpt FILE or --model FILE.py:FACTORY")
    description = read_description(ckpt) if ckpt is not None else {}
    name = dataset or description.get("dataset")
    if name is None:
        raise RobenchError("--model needs --dataset, a name of `robench list datasets` or a folder of images per class")
    data = of_head(load_dataset(name, "test", data_dir), request.head)
    learn_from = load_dataset(name, "train", data_dir) if name in DATASETS else data
    with use_device(device, threads) as chosen:
        subject = subject_of(ckpt, model, data, chosen, request.head)
        folder = out or Path("reports") / f"audit-{subject.name}{'-quick' if request.quick else ''}"
        return audit_subject(subject, data, request, folder, chosen, learn_from=learn_from, command=command())


def audit_subject(
    subject: Subject, data: Dataset, request: AuditRequest, folder: Path, device: str, *, learn_from: Dataset | None = None,
    command: str = "", show_progress: bool = True,
) -> Audit:  # fmt: skip
    """As ``audit``, of a model and data that are loaded already.

    Args:
        subject: the model.
        data: its test split.
        request: what is to be judged.
        folder: of the audit.
        device: that the model lies on.
        learn_from: images for a surrogate; the test split by default.
        command: to be recorded.
        show_progress: bars on stderr.
    """
    started, place = time.perf_counter(), Place(device, device.split(":")[0])
    threat = ThreatModel.parse(request.norm, request.eps or data.default_eps.get(request.norm, "0"))
    n, n_classes = request.samples(data), subject.classifier.n_classes

    def measure(suites: list[Suite], at: str = MAIN, radius: ThreatModel = threat, first: int = n) -> Results:
        where = folder / ("run" if at == MAIN else f"run-{at}")
        run = Run(subject, data, first, suites, radius, where, seed=request.seed, chunk=min(DEFAULT_CHUNK, first))
        found = run_suites(run, place, command=command, show_progress=show_progress)
        assert found is not None  # one process computes all
        return found

    stored_suites = [stored_suite(where, data, n) for where in request.adv]
    stored = tuple(
        _provenance(where, suite, request, data, device) for where, suite in zip(request.adv, stored_suites, strict=True)
    )
    suites = [*panel(threat, n_classes, quick=request.quick), *stored_suites]
    runs = {MAIN: measure(suites)}
    if not request.quick:
        suites.append(rest(threat, n_classes, decided(runs[MAIN], stored)))
        runs[MAIN] = measure(suites)
    for at, (radius, there) in grid(threat, data.image_shape, quick=request.quick).items():
        runs[at] = measure(_columns(there, radius, n_classes), at, radius, min(n, GRID_SAMPLES))
    evidence = Evidence(
        runs, _probe(subject, data, runs[MAIN], threat, stored_suites, folder, request.seed), subject.digest, n_classes, data.name,
        threat.norm, threat.eps_text, _defended(subject), request.protocol, stored,
    )  # fmt: skip
    names, not_run = called_for(run_checks(evidence), _done(evidence, n_classes), request.budget)
    if names:
        broken = decided(runs[MAIN], stored)
        elsewhere: dict[str, Attack] = {}
        if "pgd50@surrogate" in names and not broken.all():
            attack = surrogate_attack(subject, learn_from or data, threat, folder / "surrogate.safetensors", request.seed)
            elsewhere["pgd50@surrogate"] = attack
        if not broken.all():
            runs[MAIN] = measure([*suites, consequences(names, threat, n_classes, broken, elsewhere)])
            evidence = replace(evidence, runs=dict(runs), _frames={})
    findings = run_checks(evidence)
    verdict = judge_number(evidence, findings, request.claim, not_run)
    seconds = time.perf_counter() - started
    page = write_audit(folder, evidence, findings, verdict, _about(runs, subject, request, device, seconds, not_run))
    return Audit(verdict, findings, page, seconds)


def _columns(names: tuple[str, ...], radius: ThreatModel, n_classes: int) -> list[Suite]:
    from robench.attacks import parse_suites

    return parse_suites(",".join(names), radius, n_classes)


def _done(evidence: Evidence, n_classes: int) -> list[str]:
    """Columns that need not be run again; and those that make no sense on these outputs."""
    probabilities = float(evidence.probes.get("outputs", {}).get("probabilities", 0.0))
    return [*evidence.columns(), *(["pgd50-log"] if probabilities < 0.99 else [])]


def decided(results: Results, stored: tuple[Stored, ...]) -> np.ndarray:
    """Which samples are wrong without attack or were broken by any column so far but stored images and consequences, bool (n,)."""
    left_out = {CONSEQUENCES, *(each.column for each in stored)}
    rows = results.verdicts[
        ~results.verdicts["attack"].isin(left_out) & ~results.verdicts["attack"].str.startswith(f"{CONSEQUENCES}/")
    ]
    settled = rows["best"].isin((Outcome.MISCLASSIFIED, Outcome.BROKEN))
    return settled.groupby(rows["index"]).any().sort_index().to_numpy()


def _probe(
    subject: Subject, data: Dataset, main: Results, threat: ThreatModel, stored: list[Suite], folder: Path, seed: int
) -> dict[str, dict[str, Any]]:
    """What every probe measured; those of an interrupted audit are kept."""
    file = folder / "probes.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    clean = main.verdicts[main.verdicts["attack"] == "clean"].sort_values("index")
    index = torch.from_numpy(clean["index"][clean["outcome"] == "robust"].to_numpy()[:PROBED].copy())
    if not len(index):
        return {}
    images, labels = data.images[index], data.labels[index]
    images = (to_unit(images) if images.dtype == torch.uint8 else images.float()).to(subject.classifier.device)
    given = {suite.name: each[index].to(images.device) for suite in stored if (each := suite.members[0].stored) is not None}
    subjects = Subjects(subject.classifier, images, labels.to(images.device), threat, given)
    key = f"{subject.digest[:16]} {threat} {seed} {len(index)} {','.join(given)}"
    known = known if known.get("key") == key else {"key": key}
    for name in PROBES:
        if name not in known:
            known[name] = run_probe(name, subjects, seed)
            write_atomically(file, (json.dumps(known, indent=2) + "\n").encode())
    return {name: value for name, value in known.items() if name != "key"}


def _provenance(where: str, suite: Suite, request: AuditRequest, data: Dataset, device: str) -> Stored:
    """What is known about where stored images come from: a run folder says it, and ``--source`` does."""
    run, _, attack = where.rpartition(":")
    if run and (Path(run) / "run.json").is_file():
        described = read_run(Path(run))
        params = next(column for column in described["suites"] if column["name"] == attack)["members"][-1]["params"]
        heads = tuple(params.get("heads", ()))
        weights = params.get("transfer from", described["spec"]["model"])
        return Stored(suite.name, weights, described["model"]["name"], () if heads == (request.head,) else heads)
    if request.source is not None:
        source = classifier_of_checkpoint(request.source, data, device, request.head)
        return Stored(suite.name, source.digest, source.name)
    return Stored(suite.name)


def _defended(subject: Subject) -> bool | None:
    recipe = subject.origin.get("recipe")
    return None if not recipe else recipe.get("adversarial", "none") != "none"


def _about(
    runs: dict[str, Results], subject: Subject, request: AuditRequest, device: str, seconds: float, not_run: list[str]
) -> dict[str, Any]:
    ledgers = [results.ledger for results in runs.values()]
    environment = describe_environment(device, torch.get_num_threads())
    packages = environment["packages"]
    assert isinstance(packages, dict)
    return {
        "passes": f"{sum(int(each['forwards'].sum()) for each in ledgers):,} forward, "
        f"{sum(int(each['backwards'].sum()) for each in ledgers):,} backward, in samples",
        "seconds of attacks": round(sum(float(each["seconds"].sum()) for each in ledgers)),
        "seconds of this call": round(seconds),
        "attack seed": request.seed,
        "radii other than the audited one": f"on the first {min(GRID_SAMPLES, runs[MAIN].description['n'])} samples",
        "weights and code": subject.digest,
        "machine": "; ".join(sorted(set(runs[MAIN].ledger["machine"]))),
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "not run for lack of budget": ", ".join(not_run) or "nothing",
        "commands": runs[MAIN].description["commands"] or ["called from Python"],
    }
