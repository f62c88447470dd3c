"""The audit: is a robustness number real?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robench.audit.checks import run_checks
from robench.audit.evidence import AUDITED_RADIUS, Evidence
from robench.audit.experiments import Experiments
from robench.audit.feeds import PANEL_UNITS, VERDICTS
from robench.audit.follow_up import PART, FollowUp
from robench.audit.forecast import (
    STEP,
    allowed_seconds,
    fitting_samples,
    images_to_time,
    random_order,
    random_part,
    step_seconds,
)
from robench.audit.measurements import Measurements
from robench.audit.page import write_audit
from robench.audit.panel import called_for, needless
from robench.audit.request import GRID_SAMPLES, AuditRequest
from robench.audit.schedule import Clock, Deadline, Schedule
from robench.audit.verdict import Verdict, judge_number
from robench.data import DATASETS, load_dataset
from robench.evaluation.device import use_device
from robench.evaluation.environment import command_line, describe_environment
from robench.evaluation.external_images import external_column
from robench.evaluation.sanity_check import settle_randomness
from robench.models.subject import Subject, subject_of
from robench.run.inputs import load_inputs, refuse_unnamed, tell_remarks, warn_on_stderr
from robench.types import Column, Dataset, ExternalData, ExternalModel, Finding

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
    began = time.perf_counter()
    external = ExternalModel(model) if isinstance(model, str) else model
    inputs = load_inputs(ckpt, dataset, data_dir, request.head, model=external, tell=True)
    data = inputs.data
    learn_from = load_dataset(inputs.name, "train", data_dir) if _can_train(inputs.name) else data
    with use_device(device, threads) as chosen:
        subject = subject_of(ckpt, external, data, chosen, request.head)
        tell_remarks(subject, data, request.samples(data), warn)
        folder = out or Path("reports") / request.folder_name(subject.name, data)
        return audit_subject(
            subject, data, request, folder, chosen, learn_from=learn_from, command=command_line(), began=began
        )  # fmt: skip


def _can_train(name: str) -> bool:
    """Whether a data set of this name brings images to learn from."""
    return name in DATASETS and "train" in DATASETS[name].splits


def audit_subject(
    subject: Subject, data: Dataset, request: AuditRequest, folder: Path, device: str, *, learn_from: Dataset | None = None,
    command: str = "", show_progress: bool = True, clock: Clock = time.perf_counter, began: float | None = None,
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
        clock: seconds since some time, by which the audit ends.
        began: what the clock said when the audit began; now by default.
    """
    began = clock() if began is None else began
    n, classifier, learn_from = request.samples(data), subject.classifier, learn_from or data
    settle_randomness(classifier, data.images, n)
    step = step_seconds(classifier, images_to_time(data, n, classifier.device), clock)
    deadline = Deadline(allowed_seconds(request.minutes, step, n, quick=request.quick), clock, began)
    votes = VERDICTS * (classifier.draws - 1)
    needs = step / STEP * n * (PANEL_UNITS[request.quick] + votes)
    fitting = fitting_samples(deadline.left, needs, n)
    given = [external_column(source, data, n) for source in request.adv]
    part = None
    if fitting < n and not (folder / "run" / "run.json").exists():  # what was begun on all samples goes on with all
        part = (fitting, n)
        given = [_of_part(column, n, fitting, request.seed) for column in given]
        data, request = random_part(data, n, fitting, request.seed), replace(request, n=fitting)
    schedule = Schedule(deadline, step / STEP, show_progress, whole=needs if part else 0.0)
    measured = Measurements(
        subject=subject, data=data, request=request, folder=folder, device=device, command=command, show_progress=show_progress,
        schedule=schedule, part=part,
    )  # fmt: skip
    experiments = Experiments(measured, FollowUp(measured, learn_from))
    evidence = experiments.gather(given)
    stronger = called_for(run_checks(evidence), needless(evidence), request.budget)
    if stronger.names:
        experiments.follow(stronger.names)
    evidence = experiments.catch_up(stronger.names)
    findings = run_checks(evidence)
    verdict = judge_number(evidence, findings, request.claim, stronger.not_run)
    about = _about(evidence, subject, request, device, deadline=deadline, not_run=stronger.not_run, part=part)
    page = write_audit(folder, evidence, findings, verdict, about)
    return Audit(verdict, findings, page, deadline.spent)


def _of_part(column: Column, n: int, part: int, seed: int) -> Column:
    """A column of stored images, of a random part of the samples alone."""
    (stage,) = column.stages
    assert stage.external_images is not None
    return replace(column, stages=(replace(stage, external_images=stage.external_images[random_order(n, seed)[:part]]),))


def _about(
    evidence: Evidence, subject: Subject, request: AuditRequest, device: str, *, deadline: Deadline, not_run: list[str],
    part: tuple[int, int] | None,
) -> dict[str, Any]:  # fmt: skip
    runs = evidence.runs
    ledgers = [results.ledger for results in runs.values()]
    environment = describe_environment(device, torch.get_num_threads())
    packages = environment["packages"]
    assert isinstance(packages, dict)
    chosen = (
        {"samples": f"a random {part[0]:,} of the first {part[1]:,}, for want of time; {evidence.remedy} takes all"} if part else {}
    )
    parts = [name for name in evidence.columns() if name.startswith(PART)]
    allowed = "no limit" if math.isinf(deadline.seconds) else f"{deadline.seconds:.0f}"
    missed = "; ".join(f"{each.name}: {each.why}" for each in evidence.missed)
    return {
        "passes": f"{sum(int(each['forwards'].sum()) for each in ledgers):,} forward, "
        f"{sum(int(each['backwards'].sum()) for each in ledgers):,} backward, in samples",
        "seconds of attacks": round(sum(float(each["seconds"].sum()) for each in ledgers)),
        "seconds of this call": round(deadline.spent),
        "seconds allowed": allowed,
        **chosen,
        "attack seed": request.seed,
        "radii other than the audited one": f"on the first {min(GRID_SAMPLES, runs[AUDITED_RADIUS].description['n'])} samples",
        "weights and code": subject.digest,
        "machine": "; ".join(sorted(set(runs[AUDITED_RADIUS].ledger["machine"]))),
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "not run for lack of budget": ", ".join(not_run) or "nothing",
        **({"gave nothing": f"{missed}; {evidence.remedy}"} if missed else {}),
        **({"attacked a part of what was left, so that their own numbers count nothing else": ", ".join(parts)} if parts else {}),
        "commands": runs[AUDITED_RADIUS].description["commands"] or ["called from Python"],
    }
