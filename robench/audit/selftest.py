"""The audit on its own controls: which check fires on which model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from robench.audit import Audit, AuditRequest, audit_subject
from robench.audit.checks import CHECKS
from robench.audit.controls import CONTROLS, WRAPPERS, Bench, StoredImages, subject_of_control
from robench.audit.verdict import OPEN, REFUTED, WEAKENED
from robench.checkpoint import read_description
from robench.data import load_dataset
from robench.files import write_atomically
from robench.report.markdown import table
from robench.types import Level

MARKS = {Level.FAIL: "F", Level.WARN: "w", Level.UNKNOWN: "?", Level.PASS: "."}
SAMPLES = 100
FALSE_BY = 0.10  # a plain number is false where it is this much above what survives


@dataclass(frozen=True, eq=False)
class ControlResult:
    """What the audit said about a control, and whether that is right.

    Attributes:
        name: of the control.
        audit: what it said.
        complaint: what is wrong with it, or "".
    """

    name: str
    audit: Audit
    complaint: str


def audit_control(name: str, bench: Bench, folder: Path, *, n: int = SAMPLES, seed: int = 0, quick: bool = False) -> ControlResult:
    """Audits one control without a claim: judged is what its plain suite, or its stored images, would have reported."""
    control = CONTROLS[name]
    eps = control.eps or bench.test_set.default_eps["Linf"]
    subject = subject_of_control(name, bench)
    stored = control.external(bench, n, eps) if control.external else StoredImages("")
    request = AuditRequest(
        eps=eps, n=n, seed=seed, adv=(stored.adv,) if stored.adv else (), source=stored.source, quick=quick, minutes=math.inf
    )  # fmt: skip
    audit = audit_subject(
        subject, bench.test_set, request, folder, bench.device, learn_from=bench.train_set, command="robench audit --self-test",
        show_progress=False,
    )  # fmt: skip
    return ControlResult(name, audit, complaint_of(name, audit))


def complaint_of(name: str, audit: Audit) -> str:
    """What the audit should have said about a control and did not, or said and should not have; "" where all is well.

    A cheat whose plain number is false must fail one of its checks and lose its number; one whose number is true must be noticed.
    """
    control, levels = CONTROLS[name], {finding.check: finding.level for finding in audit.findings}
    failed = [check for check, level in levels.items() if level == Level.FAIL]
    if control.honest:
        if failed:
            return f"honest, but accused by {', '.join(failed)}"
        silent = [check for check in control.must if levels[check] not in (Level.WARN, Level.FAIL)]
        return f"not said: {', '.join(silent)}" if silent else ""
    verdict = audit.verdict
    left = verdict.most / verdict.n
    false = verdict.claim is not None and verdict.claim - left > FALSE_BY
    enough = (Level.FAIL,) if false else (Level.FAIL, Level.WARN)
    if control.must and not any(levels[check] in enough for check in control.must):
        return f"not noticed by {' or '.join(control.must)}"
    if false and verdict.word not in (REFUTED, WEAKENED):
        return f"its number {verdict.claim:.3f} is false ({left:.3f} is left), but the verdict is {verdict.word}"
    return ""


class SelfTest(NamedTuple):
    """The table's path, and what is wrong, a line a control."""

    page: Path
    complaints: list[str]


def self_test(
    out: Path,
    *,
    n: int = SAMPLES,
    seed: int = 0,
    ckpt: Path | None = None,
    data_dir: Path | None = None,
    only: tuple[str, ...] = (),
) -> SelfTest:
    """Audits every control and writes the confusion table.

    Args:
        out: a folder for the audits and the table.
        n: test samples.
        seed: of the attacks.
        ckpt: wrap controls around this undefended checkpoint, on its data; by default everything is trained here, on digits.
        data_dir: see ``robench.data.data_folder``.
        only: names of controls; all by default.
    """
    dataset = read_description(ckpt)["dataset"] if ckpt else "digits"
    bench = Bench(load_dataset(dataset, "train", data_dir), load_dataset(dataset, "test", data_dir), out / "models", wrapped=ckpt)
    only = only or (WRAPPERS if ckpt else tuple(CONTROLS))
    outcomes = []
    for name in only:
        outcomes.append(audit_control(name, bench, out / name, n=n, seed=seed))
        print(
            f"{name:<18}{outcomes[-1].audit.verdict.word:<16}{outcomes[-1].audit.seconds:5.0f} s  {outcomes[-1].complaint}",
            flush=True,
        )
    page = out / "confusion.md"
    write_atomically(page, confusion(outcomes, n, seed).encode())
    frame = pd.DataFrame([_row(outcome) for outcome in outcomes])
    write_atomically(out / "confusion.csv", frame.to_csv(index=False, lineterminator="\n").encode())
    return SelfTest(page, [f"{outcome.name}: {outcome.complaint}" for outcome in outcomes if outcome.complaint])


def confusion(outcomes: list[ControlResult], n: int, seed: int) -> str:
    """Controls in rows, checks in columns."""
    header = ["control", "kind", "right", "judged", "left", "verdict", *CHECKS]
    rows = []
    for outcome in outcomes:
        row = _row(outcome)
        rows.append([str(row[key]) for key in header])
    return (
        f"# The audit on its controls\n\nn = {n}, attack seed {seed}. F fails, w warns, ? was not measured, . passes. *judged*: what FGSM and PGD-20, or "
        f"the stored images, report, in percent; *left*: what survives every attack of the audit.\n\n{table(header, rows)}\n\n"
        "## Statistics\n\nWhere a check's statistic lies on the worst honest model, and on the mildest of those of its own cheats on which it fails.\n\n"
        f"{calibration(outcomes)}\n"
    )


def calibration(outcomes: list[ControlResult]) -> str:
    """Each check's threshold between the worst honest model and the mildest cheat that it must notice."""
    rows = []
    for check in CHECKS:
        findings = {
            outcome.name: finding
            for outcome in outcomes
            for finding in outcome.audit.findings
            if finding.check == check and finding.statistic is not None
        }
        honest = {name: finding.statistic for name, finding in findings.items() if CONTROLS[name].honest}
        cheats = {name: f.statistic for name, f in findings.items() if check in CONTROLS[name].must and f.level == Level.FAIL}
        if honest or cheats:
            rows.append([check, *_extreme(honest, max), *_extreme(cheats, min)])
    return table(["check", "worst honest", "model", "mildest cheat on which it fails", "model"], rows)


def _extreme(values: dict[str, float | None], which: Callable[..., Any]) -> list[str]:
    if not values:
        return ["", ""]
    name = which(values, key=lambda key: values[key])
    return [f"{values[name]:.3g}", name]


def _row(outcome: ControlResult) -> dict[str, str]:
    verdict, levels = outcome.audit.verdict, {finding.check: finding.level for finding in outcome.audit.findings}
    return {
        "control": outcome.name,
        "kind": "honest" if CONTROLS[outcome.name].honest else "cheat",
        "right": "no" if outcome.complaint else "yes",
        "judged": "-" if verdict.claim is None else f"{100 * verdict.claim:.1f}",
        "left": f"{100 * verdict.most / verdict.n:.1f}",
        "verdict": verdict.word if verdict.word != OPEN else "open",
    } | {check: MARKS[levels[check]] for check in CHECKS}
