"""report.md: the run on one page, readable as plain text."""

from __future__ import annotations

import json

import pandas as pd

from robench.evaluation.results import Results
from robench.evaluation.store import CLEAN
from robench.report.tables import UNION, accuracy_text, percent, title

FIGURES = {
    "robust_accuracy": "Robust accuracy after each attack, with 95 % intervals",
    "examples": "Clean images, adversarial images and the perturbation, enlarged; captions are what the model sees",
    "per_class": "Robust accuracy per class",
}


def render(results: Results, summary: pd.DataFrame, figures: list[str]) -> str:
    """The whole report."""
    run = results.description
    sections = [
        f"# Robustness of {run['model']['name']}",
        _stamps(results, summary),
        _verdict(run, summary),
        "## In the paper's layout\n\n" + layout_table({run["model"]["name"]: summary}) + "\n\nPercent of all samples.",
        "## Every attack\n\n" + _detail_table(summary) + "\n\n" + _reading_notes(),
        *[f"## {FIGURES[name]}\n\n![{FIGURES[name]}](figures/{name}.png)" for name in figures],
        "## How it was obtained\n\n" + _provenance(results),
        "## Repeat it\n\n" + _commands(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def layout_table(summaries: dict[str, pd.DataFrame]) -> str:
    """Models in rows, attacks in columns, as in Wang & Wang 2021, tables 1 and 2; the union last. Stages are left out."""
    columns = list(dict.fromkeys(name for summary in summaries.values() for name in summary["attack"] if "/" not in name))
    columns = [name for name in columns if name != UNION] + ([UNION] if UNION in columns else [])
    rows = []
    for model, summary in summaries.items():
        cells = {row["attack"]: accuracy_text(row) for _, row in summary.iterrows()}
        rows.append([model, *(cells.get(name, "") for name in columns)])
    return table(["model", *(title(name) for name in columns)], rows)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table, first column left, the others right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _stamps(results: Results, summary: pd.DataFrame) -> str:
    run, notes = results.description, []
    if run["n"] < run["data"]["n"]:
        notes.append(f"**Partial:** the first {run['n']:,} of {run['data']['n']:,} {run['data']['split']} samples.")
    undecided = summary[summary["undecided"] > 0]
    if len(undecided):
        said = results.ledger[results.ledger["message"] != ""].groupby("attack")["message"].first()
        listed = "\n".join(f"> - {name}: {message}" for name, message in said.items())
        notes.append(
            "**An attack failed:** samples it failed on count neither as robust nor as broken, so that accuracies are given as bounds.\n"
            + listed
        )
    if results.unfinished:
        notes.append(f"**Unfinished, not shown:** {', '.join(results.unfinished)}. The same command goes on.")
    machines = sorted(set(results.ledger["machine"]))
    if len(machines) > 1:
        notes.append("**Mixed machines:** last bits may differ between them. " + "; ".join(machines))
    return "\n\n".join("> " + note for note in notes)


def _verdict(run: dict, summary: pd.DataFrame) -> str:
    clean = summary.iloc[0]
    lines = [
        f"Threat model: **{run['threat']['norm']}, eps {run['threat']['eps_text']}** (pixels in [0, 1]). "
        f"Data: {run['data']['name']}, {run['data']['split']} split, n = {run['n']:,}."
    ]
    union = summary[summary["attack"] == UNION]
    if len(union):
        row = union.iloc[0]
        lines.append(
            f"Of {percent(clean['robust_low'])} % correct without attack, **{accuracy_text(row)} %** survive every attack "
            f"(95 % interval {percent(row['ci_low'])} to {percent(row['ci_high'])})."
        )
    return "\n\n".join(lines)


def _detail_table(summary: pd.DataFrame) -> str:
    rows = []
    for _, row in summary.iterrows():
        rows.append(
            [
                row["attack"],
                accuracy_text(row),
                f"{percent(row['ci_low'])} to {percent(row['ci_high'])}",
                str(row["broken"]),
                percent(row["attack_success_rate"]),
                f"{row['forwards']:,}",
                f"{row['backwards']:,}",
                f"{row['seconds']:,.1f}",
            ]
        )
    header = ["attack", "robust accuracy %", "95 % interval", "broken", "success rate %", "forwards", "backwards", "seconds"]
    return table(header, rows)


def _reading_notes() -> str:
    return (
        "Robust accuracy measured by attacks is an upper bound: a stronger attack can only lower it. Samples misclassified without "
        "attack count as not robust. Intervals are Wilson's (Clopper-Pearson's at 0 and n) and cover the sampling of test images only. "
        "`union` counts a sample as robust only where no attack broke it; a row `suite/stage` shows what is left after that stage. Passes "
        "are counted in samples; the check of every adversarial image by robench itself is not among them."
    )


def _provenance(results: Results) -> str:
    run = results.description
    rows = [
        *([f"model, {name}", _inline({"": value}).strip()] for name, value in run["model"]["origin"].items()),
        ["digest of weights and code", f"`{run['spec']['model']}`"],
        ["digest of the data", f"`{run['spec']['data']}`"],
        ["attack seed", str(run["spec"]["seed"])],
        ["samples a chunk", str(run["spec"]["chunk"])],
        ["machine", "; ".join(sorted(set(results.ledger["machine"])))],
        ["environment", _inline(run["environment"])],
    ]
    attacks = [
        [
            f"{suite['name']}/{member['name']}" if suite["cascade"] else suite["name"],
            member["library"],
            _inline(member["params"]),
            member["source"],
        ]
        for suite in run["suites"]
        for member in suite["members"]
        if suite["name"] in results.columns
    ]
    facts = "\n".join(f"- {name}: {text}" for name, text in rows)
    listed = "\n".join(f"| {' | '.join(row)} |" for row in attacks)
    return f"{facts}\n\n| attack | library | parameters | source |\n|---|---|---|---|\n{listed}" if attacks else facts


def _commands(results: Results) -> str:
    commands = "\n".join(results.description["commands"] or ["robench.evaluate(...), called from Python"])
    return f"```\n{commands}\n```\n\nTables again from the verdicts alone: `robench report {results.path}`"


def _inline(values: dict) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in values.items()) or "none"


def _text(value) -> str:
    if isinstance(value, dict):
        return _inline(value)
    return value if isinstance(value, str) else json.dumps(value)


def terminal_table(summary: pd.DataFrame) -> str:
    """The summary for a terminal, one line an attack."""
    lines = []
    for _, row in summary.iterrows():
        name = row["attack"] if row["attack"] != CLEAN else "clean"
        bounds = f"[{percent(row['ci_low'])}, {percent(row['ci_high'])}]"
        lines.append(f"{name:<24}{accuracy_text(row):>16} %  {bounds:>16}  n={row['n']}")
    return "\n".join(lines)
