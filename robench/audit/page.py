"""audit.md, audit.html and findings.json: what a reviewer reads in a minute, and what a program reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robench.audit.checks import CHECKS
from robench.audit.evidence import AUDITED_RADIUS, Evidence
from robench.audit.verdict import Verdict, verdict_line
from robench.files import write_atomically
from robench.report.accuracy import percent, summarise
from robench.report.html.run import render_audit
from robench.report.markdown import layout_table, table
from robench.report.metadata import preprocessing_text
from robench.report.trained import trained_and_evaluated
from robench.types import Finding, Level

MARKS = {Level.FAIL: "FAIL", Level.WARN: "warn", Level.UNKNOWN: "unknown", Level.PASS: "pass"}


def write_audit(folder: Path, evidence: Evidence, findings: list[Finding], verdict: Verdict, about: dict[str, Any]) -> Path:
    """Writes the three files into the audit's folder, and returns audit.md.

    Args:
        folder: of the audit.
        evidence, findings, verdict: what it found.
        about: commands, versions, costs.
    """
    content = _plain({
        "verdict": asdict(verdict),
        "line": verdict_line(verdict).replace("**", ""),
        "honest": {name: entry.about for name, entry in CHECKS.items()},
        "findings": [asdict(finding) for finding in findings],
        "probes": evidence.probes,
        "about": about,
    })  # fmt: skip
    write_atomically(folder / "findings.json", (json.dumps(content, indent=2) + "\n").encode())
    write_atomically(folder / "audit.html", render_audit(evidence.runs[AUDITED_RADIUS], content).encode())
    page = folder / "audit.md"
    write_atomically(page, render(evidence, findings, verdict, about).encode())
    return page


def render(evidence: Evidence, findings: list[Finding], verdict: Verdict, about: dict[str, Any]) -> str:
    """The whole page."""
    run = evidence.runs[AUDITED_RADIUS].description
    grave = [finding for finding in findings if finding.level in (Level.FAIL, Level.WARN)]
    rest = [finding for finding in findings if finding.level not in (Level.FAIL, Level.WARN)]
    name = run["model"]["name"]
    votes = (
        f" The model is random: each verdict is the majority of {run['model']['votes']} draws." if "votes" in run["model"] else ""
    )
    everything = f"first {run['n']:,} of {run['data']['n']:,} samples"
    sections = [
        f"# Audit of {name}",
        verdict_line(verdict),
        "\n".join(f"- {reason}." for reason in verdict.why),
        f"Threat model {run['threat']['norm']}, eps {run['threat']['eps_text']}; {run['data']['name']}, {run['data']['split']} split, "
        f"{about.get('samples', everything)}.{votes}",
        f"Images are preprocessed: {preprocessing_text(run)}." if preprocessing_text(run) else "",
        "## What each step took away\n\n" + _took_away(verdict),
        "## Findings that matter\n\n" + ("\n\n".join(map(_long, grave)) if grave else "None: no check fails or warns."),
        "## The other checks\n\n" + _short(rest),
        "## Every attack\n\n" + layout_table({name: summarise(evidence.runs[AUDITED_RADIUS])}) + "\n\nPercent of all samples."
        if evidence.runs[AUDITED_RADIUS].columns
        else "",
        "## How it was obtained\n\n" + _obtained(run, about),
        "```\n" + "\n".join(about["commands"]) + "\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _obtained(run: dict[str, Any], about: dict[str, Any]) -> str:
    origin = run["model"]["origin"]
    model = [f"- model: {trained_and_evaluated(origin, run['spec']['device_type'])}"] if "recipe" in origin else []
    return "\n".join([*model, *(f"- {key}: {value}" for key, value in about.items() if key != "commands")])


def _took_away(verdict: Verdict) -> str:
    claimed = [] if verdict.claim is None else [[f"({verdict.claimed})", percent(verdict.claim), ""]]
    rows, before = [], None
    for step, accuracy in verdict.took_away:
        rows.append([step, percent(accuracy), "" if before is None or "stored" in step else f"{100 * (accuracy - before):+.2f}"])
        before = before if "stored" in step else accuracy
    return table(["after", "% robust", "change"], claimed + rows)


def _long(finding: Finding) -> str:
    about = CHECKS[finding.check].about
    calls = f" Calls for: {', '.join(finding.calls_for)}." if finding.calls_for else ""
    return f"**{MARKS[finding.level]}: {finding.check}.** {_sentence(finding.says)} {_sentence(finding.evidence)} Honest: {about}. Source: {finding.source}.{calls}"


def _short(findings: list[Finding]) -> str:
    rows = [[finding.check, MARKS[finding.level], finding.says, finding.evidence, finding.source] for finding in findings]
    return table(["check", "level", "says", "evidence", "source"], rows)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _plain(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and value != value else value
