"""report.md: the run on one page, readable as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from robench.evaluation.results import Results
from robench.evaluation.run_folder import LEFT_OUT
from robench.report.accuracy import UNION, accuracy_text, is_stage, left_out, percent, table_rows, title
from robench.report.anytime import outlook_lines
from robench.report.breakdown import WORST_SAYS, attacks_of, class_shares, has_many_classes, worst_classes
from robench.report.metadata import READING, attack_settings, commands, notes, preprocessing_text, provenance, short

if TYPE_CHECKING:
    from robench.evaluation.replay import Replay

FIGURES = {
    "robust_accuracy": "Robust accuracy after each attack, with 95 % intervals",
    "examples": "Clean images, adversarial images and the perturbation, enlarged; captions are what the model sees",
    "per_class": "Robust accuracy per class",
    "cost": "Robust accuracy against cost, every query counted",
}


def render(results: Results, summary: pd.DataFrame, figures: list[str]) -> str:
    """The whole report."""
    run = results.description
    sections = [
        f"# Robustness of {run['model']['name']}",
        _stamps(results, summary),
        _verdict(run, summary),
        "## In the paper's layout\n\n" + layout_table({run["model"]["name"]: summary}) + "\n\nPercent of all samples.",
        "## Every attack\n\n" + _detail_table(summary) + "\n\n" + READING,
        _outlook(results),
        _classes(results),
        *[f"## {FIGURES[name]}\n\n![{FIGURES[name]}](figures/{name}.png)" for name in figures],
        "## How it was obtained\n\n" + _provenance(results),
        "## Repeat it\n\n" + _commands(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _outlook(results: Results) -> str:
    lines = outlook_lines(results)
    return "## What more attacking might still break\n\n" + "\n".join(lines) if lines else ""


def _classes(results: Results) -> str:
    """The worst of many classes; of fewer a figure shows all."""
    if not has_many_classes(results):
        return ""
    shares = class_shares(results)
    *others, last = attacks_of(shares)
    rows = [
        [short(row["class"]).replace("|", "\\|"), str(row["label"]), percent(row[last]), f"{percent(row['ci_low'])} to {percent(row['ci_high'])}",
         str(row["samples"]), *(percent(row[name]) for name in others)]
        for _, row in worst_classes(shares).iterrows()
    ]  # fmt: skip
    header = ["class", "label", f"{title(last)} %", "95 % interval", "samples", *map(title, others)]
    return f"## The worst of {len(shares):,} classes\n\n{table(header, rows)}\n\n{WORST_SAYS} All classes are in `classes.csv`."


def layout_table(summaries: dict[str, pd.DataFrame]) -> str:
    """Models in rows, attacks in columns, as in Wang & Wang 2021, tables 1 and 2; the union last. Stages are left out."""
    columns = list(dict.fromkeys(name for summary in summaries.values() for name in summary["attack"] if not is_stage(name)))
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
    return "\n\n".join(
        "\n".join([f"> **{each.title}:** {each.text}", *(f"> - {item}" for item in each.items)]) for each in notes(results, summary)
    )


def _verdict(run: dict[str, Any], summary: pd.DataFrame) -> str:
    clean = summary.iloc[0]
    lines = [
        f"Threat model: **{run['threat']['norm']}, eps {run['threat']['eps_text']}** (pixels in [0, 1]). "
        f"Data: {run['data']['name']}, {run['data']['split']} split, n = {run['n']:,}."
    ]
    preprocessing = preprocessing_text(run)
    if preprocessing:
        lines.append(f"Images are preprocessed: {preprocessing}.")
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
    for name, row in table_rows(summary):
        if left_out(row):
            rows.append([name, LEFT_OUT, *([""] * 8)])
            continue
        rows.append(
            [
                row["attack"],
                accuracy_text(row),
                f"{percent(row['ci_low'])} to {percent(row['ci_high'])}",
                str(row["broken"]),
                str(row["best_broken"]),
                percent(row["attack_success_rate"]),
                f"{row['forwards']:,}",
                f"{row['backwards']:,}",
                f"{row['seconds']:,.1f}",
                "" if pd.isna(row["seconds_per_sample"]) else f"{1000 * row['seconds_per_sample']:,.1f}",
            ]
        )
    header = [
        "attack", "robust accuracy %", "95 % interval", "broken", "by best query", "success rate %", "forwards", "backwards",
        "seconds", "ms per sample",
    ]  # fmt: skip
    modes = [
        f"`{name}` {'were' if ', ' in name else 'was'} {row['mode']}."
        if row["mode"].startswith(LEFT_OUT)
        else f"`{name}` is a {row['mode']}, whose passes pay for it."
        for name, row in table_rows(summary)
        if row["mode"]
    ]
    return table(header, rows) + ("\n\n" + " ".join(modes) if modes else "")


def _provenance(results: Results) -> str:
    facts = "\n".join(f"- {name}: {f'`{text}`' if 'digest' in name else text}" for name, text in provenance(results))
    listed = "\n".join(f"| {' | '.join(row)} |" for row in attack_settings(results))
    return f"{facts}\n\n| attack | library | parameters | source |\n|---|---|---|---|\n{listed}" if listed else facts


def _commands(results: Results) -> str:
    listed = "\n".join(commands(results))
    return f"```\n{listed}\n```\n\nTables again from the verdicts alone: `robench report {results.path}`"


def replay_table(replays: list[Replay]) -> str:
    """What ``robench verify`` found, one line an attack."""
    header = ["attack", "broken", "float32", "float64", "one by one", "8 bits", "tampered chunks", "missing"]
    columns = ("claimed", "float32", "float64", "single", "rounded", "tampered", "missing")
    counts = [[getattr(each, name) for name in columns] for each in replays]
    rows = [
        [each.attack, *("-" if count is None else str(count) for count in counted)]
        for each, counted in zip(replays, counts, strict=True)
    ]
    return aligned(header, rows)


def aligned(header: list[str], rows: list[list[str]]) -> str:
    """A table for a terminal, first column left, the others right."""
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    lines = [
        "  ".join(cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in [header, *rows]
    ]
    return "\n".join(lines)


def terminal_table(summary: pd.DataFrame, total: int = 0) -> str:
    """The summary for a terminal, one line an attack.

    Args:
        summary: of ``summarise``.
        total: samples of the data; where there are more than the table is about, its first line says so.
    """
    lines = []
    width = max(24, *(len(name) + 2 for name, row in table_rows(summary)))
    for name, row in table_rows(summary):
        if left_out(row):
            lines.append(f"{name:<{width}}{LEFT_OUT:>16}")
            continue
        bounds = f"[{percent(row['ci_low'])}, {percent(row['ci_high'])}]"
        lines.append(f"{name:<{width}}{accuracy_text(row):>16} %  {bounds:>16}  n={row['n']}")
    if summary.iloc[0]["n"] < total:
        lines[0] += f", the first of {total:,}"
    return "\n".join(lines)
