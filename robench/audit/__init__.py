"""The audit: is a robustness number real?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robench.audit.checks import run_checks
from robench.audit.evidence import AUDITED_RADIUS, Evidence
from robench.audit.experiments import Experiments
from robench.audit.page import write_audit
from robench.audit.panel import called_for
from robench.audit.request import GRID_SAMPLES, AuditRequest
from robench.audit.verdict import Verdict, judge_number
from robench.data import DATASETS, load_dataset
from robench.evaluation.device import use_device
from robench.evaluation.environment import command_line, describe_environment
from robench.evaluation.results import Results
from robench.models.subject import Subject, subject_of
from robench.run.inputs import load_inputs, refuse_unnamed, tell_remarks, warn_on_stderr
from robench.types import Dataset, ExternalData, ExternalModel, Finding

__all__ = ["Audit", "AuditRequest", "audit", "audit_subject"]


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
    request: AuditRequest, *, ckpt: Path | None = None, model: str | ExternalModel | None = None,
    dataset: str | ExternalData | None = None,
    data_dir: Path | None = None, device: str = "auto", threads: int | None = None, out: Path | None = None,
    warn: Callable[[str], None] = warn_on_stderr,
) -> Audit:  # fmt: skip
    """Judges a robustness number of a checkpoint or of somebody's model; called again, it computes only what is missing.

    Args:
        request: what is to be judged, and how.
        ckpt, model, dataset, data_dir, device, threads, warn: as in ``robench.run.attack.attack``.
        out: the audit's folder, ``reports/audit-<name>`` by default.

    Raises:
        RobenchError: anything the user can mend; what was measured before is kept.
    """
    refuse_unnamed(ckpt, model, "audit")
    external = ExternalModel(model) if isinstance(model, str) else model
    inputs = load_inputs(ckpt, dataset, data_dir, request.head, model=external, tell=True)
    data = inputs.data
    learn_from = load_dataset(inputs.name, "train", data_dir) if _can_train(inputs.name) else data
    with use_device(device, threads) as chosen:
        subject = subject_of(ckpt, external, data, chosen, request.head)
        tell_remarks(subject, data, request.samples(data), warn)
        folder = out or Path("reports") / request.folder_name(subject.name, data)
        return audit_subject(subject, data, request, folder, chosen, learn_from=learn_from, command=command_line())


def _can_train(name: str) -> bool:
    """Whether a data set of this name brings images to learn from."""
    return name in DATASETS and "train" in DATASETS[name].splits


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
    started = time.perf_counter()
    experiments = Experiments(
        subject=subject, data=data, request=request, folder=folder, device=device, learn_from=learn_from or data, command=command,
        show_progress=show_progress,
    )  # fmt: skip
    evidence = experiments.gather()
    stronger = called_for(run_checks(evidence), _needless(evidence), request.budget)
    if stronger.names:
        evidence = experiments.follow(evidence, stronger.names)
    findings = run_checks(evidence)
    verdict = judge_number(evidence, findings, request.claim, stronger.not_run)
    seconds = time.perf_counter() - started
    about = _about(evidence.runs, subject, request, device, seconds=seconds, not_run=stronger.not_run)
    page = write_audit(folder, evidence, findings, verdict, about)
    return Audit(verdict, findings, page, seconds)


def _needless(evidence: Evidence) -> list[str]:
    """Stronger attacks that were run already, or make no sense on these outputs."""
    probabilities = float(evidence.probes.get("outputs", {}).get("probabilities", 0.0))
    return [*evidence.columns(), *(["pgd50-log"] if probabilities < 0.99 else [])]


def _about(
    runs: Mapping[str, Results], subject: Subject, request: AuditRequest, device: str, *, seconds: float, not_run: list[str]
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
        "radii other than the audited one": f"on the first {min(GRID_SAMPLES, runs[AUDITED_RADIUS].description['n'])} samples",
        "weights and code": subject.digest,
        "machine": "; ".join(sorted(set(runs[AUDITED_RADIUS].ledger["machine"]))),
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "not run for lack of budget": ", ".join(not_run) or "nothing",
        "commands": runs[AUDITED_RADIUS].description["commands"] or ["called from Python"],
    }
