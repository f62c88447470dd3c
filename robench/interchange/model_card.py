"""A Hugging Face model card's evaluation: the ``model-index`` of its YAML header, and the same as a table to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from robench import __version__
from robench.evaluation.results import read_results
from robench.evaluation.run_folder import CLEAN
from robench.report.accuracy import UNION, is_stage, percent, summarise, title
from robench.report.markdown import table

HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}


def model_card(run: Path) -> str:
    """Header and section of a model card: a metric per attack without stages, none for an attack that failed on samples.

    Raises:
        RobenchError: it is no run folder.

    Source: https://huggingface.co/docs/hub/model-cards, "model-index".
    """
    results = read_results(run)
    described, summary = results.description, summarise(results)
    rows = [row for _, row in summary.iterrows() if not is_stage(row["attack"]) and not row["undecided"]]
    index = [{"name": described["model"]["name"], "results": [_result(described, results.columns, rows)]}]
    return f"---\nmodel-index:\n{_yaml(index)}---\n\n{_section(described, results.columns, rows)}"


def _result(described: dict[str, Any], columns: list[str], rows: list[pd.Series]) -> dict[str, Any]:
    data = described["data"]
    return {
        "task": {"type": "image-classification", "name": "Image classification under attack"},
        "dataset": {"type": HUB_NAMES.get(data["name"], data["name"]), "name": data["name"], "split": data["split"]},
        "metrics": [_metric(described, columns, row) for row in rows],
    }


def _metric(described: dict[str, Any], columns: list[str], row: pd.Series) -> dict[str, Any]:
    threat = described["threat"]
    asked = {"samples": described["n"], "ci95_low": round(row["ci_low"], 6), "ci95_high": round(row["ci_high"], 6)}
    if row["attack"] == CLEAN:
        return {"type": "accuracy", "name": "accuracy without attack", "value": round(row["robust_accuracy"], 6), "args": asked}
    return {
        "type": "accuracy",
        "name": f"robust accuracy, {threat['norm']} {threat['eps_text']}, {title(row['attack'])}",
        "value": round(row["robust_accuracy"], 6),
        "args": {"attack": row["attack"], "norm": threat["norm"], "eps": threat["eps_text"]}
        | ({"attacks": columns} if row["attack"] == UNION else {})
        | asked,
    }


def _section(described: dict[str, Any], columns: list[str], rows: list[pd.Series]) -> str:
    threat, data = described["threat"], described["data"]
    cells = [
        [title(row["attack"]), percent(row["robust_accuracy"]), f"{percent(row['ci_low'])} to {percent(row['ci_high'])}"]
        for row in rows
    ]
    part = "" if described["n"] == data["n"] else f"the first {described['n']:,} of "
    return (
        f"## Robustness\n\n{threat['norm']}, eps {threat['eps_text']} (pixels in [0, 1]), on {part}{data['n']:,} {data['split']} samples of "
        f"{data['name']}{_prepared(data)}; measured by robench {__version__}.\n\n{table(['attack', 'accuracy %', '95 % interval'], cells)}\n\n"
        "Upper bounds: a stronger attack can only lower them. Samples misclassified without attack count as not robust; the union counts a "
        f"sample as robust only where none of {', '.join(columns)} broke it. Digest of weights and code: `{described['spec']['model']}`.\n"
    )


def _prepared(data: dict[str, Any]) -> str:
    """How pictures became the pixels that the threat model is about, where they were resized or cropped."""
    return f" ({data['preprocessing']})" if "preprocessing" in data else ""


def _yaml(value: Any, depth: int = 0) -> str:
    """Block YAML of dictionaries and lists; scalars are JSON, which YAML contains."""
    pad, lines = "  " * depth, []
    if isinstance(value, list):
        for item in value:
            lines.append(f"{pad}- {_yaml(item, depth + 1).lstrip()}" if isinstance(item, dict) else f"{pad}- {json.dumps(item)}\n")
        return "".join(lines)
    for key, item in value.items():
        nested = isinstance(item, dict | list)
        lines.append(
            f"{pad}{key}:\n{_yaml(item, depth + (isinstance(item, dict)))}" if nested else f"{pad}{key}: {json.dumps(item)}\n"
        )
    return "".join(lines)
