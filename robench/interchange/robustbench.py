"""RobustBench's ``model_info`` entry of a run: what was measured, and null for what a run cannot know."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from robench import __version__
from robench.evaluation.results import read_results
from robench.report.accuracy import UNION, summarise

AUTOATTACK = "autoattack"  # the standard version, which is what their field means


def model_info(run: Path) -> dict[str, Any]:
    """Their fields in their order, accuracies as percentages in text; and below ``robench`` what their schema has no place for.

    Raises:
        RobenchError: it is no run folder.

    Source: the entries below model_info/ of https://github.com/RobustBench/robustbench.
    """
    results = read_results(run)
    described, rows = results.description, summarise(results).set_index("attack")
    origin = described["model"]["origin"]
    return {
        "link": None,
        "name": described["model"]["name"],
        "authors": None,
        "additional_data": None,
        "number_forward_passes": None if "votes" in described["model"] else 1,  # what a random model needs, its authors say
        "dataset": described["data"]["name"],
        "venue": None,
        "architecture": origin.get("backbone"),
        "eps": described["threat"]["eps_text"],
        "clean_acc": _percent(rows, "clean"),
        "reported": None,
        "autoattack_acc": _percent(rows, AUTOATTACK),
        "footnote": _footnote(described, rows),
        "robench": {
            "version": __version__,
            "eval_date": _date(run),
            "threat_model": described["threat"]["norm"],
            "n": described["n"],
            "n_test": described["data"]["n"],
            "union_acc": _percent(rows, UNION),
            "union_of": results.columns,
            "weights_and_code": described["spec"]["model"],
        },
    }


class Entry(NamedTuple):
    """Where an entry belongs in their repository, and its text."""

    path: str
    text: str


def render(run: Path) -> Entry:
    """The entry of a run."""
    content = model_info(run)
    norm = content["robench"]["threat_model"]
    return Entry(f"model_info/{content['dataset']}/{norm}/{content['name']}.json", json.dumps(content, indent=2) + "\n")


def _percent(rows: pd.DataFrame, name: str) -> str | None:
    """None where it was not run, or failed on samples."""
    if name not in rows.index or rows.loc[name, "undecided"]:
        return None
    return f"{100 * rows.loc[name, 'robust_accuracy']:.2f}"


def _footnote(described: dict[str, Any], rows: pd.DataFrame) -> str:
    notes = ["Fields that are null are not known to robench."]
    if described["n"] < described["data"]["n"]:
        notes.append(f"Measured on the first {described['n']} of {described['data']['n']} test samples only.")
    if AUTOATTACK not in rows.index:
        notes.append("Standard AutoAttack was not run.")
    elif rows.loc[AUTOATTACK, "undecided"]:
        notes.append("AutoAttack failed on samples.")
    return " ".join(notes)


def _date(run: Path) -> str:
    """The day, in UTC, of the newest verdict."""
    newest = max(path.stat().st_mtime for path in (run / "chunks").rglob("*.npz"))
    return datetime.fromtimestamp(newest, UTC).date().isoformat()
