"""report.html: a run on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from robench.evaluation.results import Results
from robench.report.accuracy import UNION, accuracy_text, percent, summarise
from robench.report.curves import audit_folder
from robench.report.html import render_page
from robench.report.html.audit import findings_context
from robench.report.html.classes import class_table, many_classes_context, superclass_table
from robench.report.html.gallery import gallery_context
from robench.report.html.method import UNIT, ledger_table, run_threat, settings_table
from robench.report.html.parts import Bar
from robench.report.html.result_sections import (
    alone_table,
    attack_table,
    chart_context,
    cost_context,
)
from robench.report.metadata import READING, commands, notes, provenance, samples_text, threat_text


def render_run(results: Results, summary: pd.DataFrame) -> str:
    """The whole page."""
    run = results.description
    return render_page(
        "run.html",
        title=f"Robustness of {run['model']['name']}",
        run=run,
        samples=samples_text(run),
        verdict=verdict_context(results, summary),
        notes=notes(results, summary),
        audit=_audit(results),
        **measurement_context(results, summary),
    )


def measurement_context(results: Results, summary: pd.DataFrame) -> dict[str, Any]:
    """The sections that a run and an audit have in common."""
    return {
        "attacks": attack_table(results, summary),
        "charts": chart_context(results, summary),
        "costs": cost_context(results),
        "classes": class_table(results),
        "many_classes": many_classes_context(results),
        "superclasses": superclass_table(results),
        "alone": alone_table(results),
        "gallery": gallery_context(results),
        "ledger": ledger_table(summary),
        "unit": UNIT,
        "settings": settings_table(results),
        "threat": run_threat(results),
        "provenance": provenance(results),
        "commands": commands(results),
        "again": f"robench report {results.path}",
        "reading": READING,
    }


def verdict_context(results: Results, summary: pd.DataFrame) -> dict[str, Any]:
    """What is said on top: the number, its interval, and what it means."""
    clean, last = summary.iloc[0], summary.iloc[-1]
    measured = last["attack"] == UNION
    return {
        "number": accuracy_text(last if measured else clean),
        "measured": measured,
        "row": last,
        "low": percent(last["ci_low"]),
        "high": percent(last["ci_high"]),
        "sure": 100 * float(last["robust_low"]),
        "bar": Bar(100 * last["robust_high"], 100 * last["ci_low"], 100 * last["ci_high"]),
        "clean": percent(clean["robust_low"]),
        "clean_at": 100 * float(clean["robust_low"]),
        "sentences": _meaning(results, clean, last) if measured else ["Nothing was attacked yet: this is the clean accuracy."],
    }


def _meaning(results: Results, clean: pd.Series, union: pd.Series) -> list[str]:
    n, right = int(union["n"]), int(clean["n"] - clean["misclassified"] - clean["undecided"])
    survivors, silent = round(union["robust_low"] * n), int(clean["undecided"])
    open_ = int(union["undecided"]) - silent
    attacks = len(results.columns)
    sentences = [
        f"Of {n:,} test images the model gets {right:,} right. After {'the one attack' if attacks == 1 else f'all {attacks} attacks'}, in "
        f"which {threat_text(results.description['threat'])}, it still gets {'at least ' if open_ or silent else ''}{survivors:,} of them right."
    ]
    if silent:
        sentences.append(
            f"On {silent:,} more it says no class even without attack: they count neither as robust nor as broken, and the number lies between "
            "two bounds."
        )
    if open_:
        sentences.append(
            f"On {open_:,} more an attack failed, which says nothing about the model: the number lies between two bounds until the attack is "
            "mended and the same command is run again."
        )
    sentences.append("A stronger attack can only lower this number; the interval covers the choice of test images alone.")
    return sentences + (_doubt(results) if survivors or open_ or silent else [])


def _doubt(results: Results) -> list[str]:
    """What is missing before the number can be called robust accuracy."""
    white_box = [name for name in results.columns if "@" not in name]
    if not white_box:
        return [
            "Every image was crafted on another model: this is transfer, and says little about what an attacker of this model can do."
        ]
    if not any(name.startswith(("autoattack", "fast")) for name in white_box):
        return ["Neither AutoAttack nor fast is among the attacks; single attacks alone often leave robust what it breaks."]
    return []


def _audit(results: Results) -> dict[str, Any] | None:
    """The findings of the audit that the run belongs to, if there is one that can be read."""
    folder: Path | None = audit_folder(results.path)
    if folder is None:
        return None
    try:
        return findings_context(json.loads((folder / "findings.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def render_audit(results: Results, content: dict[str, Any]) -> str:
    """The page of an audit.

    Args:
        results: its run at the audited radius.
        content: of findings.json.
    """
    summary = summarise(results)
    context = measurement_context(results, summary) | {"again": f"robench report {results.path}"}
    return render_page(
        "audit.html", title=f"Audit of {results.description['model']['name']}", run=results.description, notes=notes(results, summary),
        audit=findings_context(content), **context,
    )  # fmt: skip
