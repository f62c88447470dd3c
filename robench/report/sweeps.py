"""Robust accuracy against eps and against steps: several verdicts on the same samples as one curve."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from robench.evaluation.results import Results, decide
from robench.evaluation.run_folder import CLEAN
from robench.files import write_atomically
from robench.identity import AttackIdentity
from robench.report.accuracy import UNION, percent, robust_share, title
from robench.report.markdown import table
from robench.types import format_eps

EPS, STEPS = "eps", "steps"
COLORS, INK = ("#2f6db3", "#d9822b", "#3d8f5f", "#8a5fb0"), "#22272e"
NOTES = (
    "*As measured* is what an attack returned at that radius or number of steps, each measured by itself; it can rise where an attack "
    "is weak. *Envelope* counts a sample as robust only if no image broke it that an attack came across there or at anything smaller: "
    "an image inside a small ball lies inside every larger one, so that this curve can only fall, and it is the one to believe. Both are "
    "upper bounds, over all samples; brackets are 95 % intervals. eps 0 is the accuracy without attack."
)


def eps_curve(runs: Mapping[float, Results]) -> pd.DataFrame:
    """A row per radius and attack: axis, value, attack, the share that is robust as measured, the same of the envelope, run.

    Args:
        runs: radius to its run, all of one model on the same samples with the same attacks.
    """
    radii = sorted(runs)
    columns = [name for name in runs[radii[0]].columns if all(name in runs[radius].columns for radius in radii)]
    rows = []
    for name in [*columns, UNION] if len(columns) > 1 else columns:
        clean = _of(runs[radii[0]], CLEAN)
        frames = {0.0: clean} | {radius: _of(runs[radius], name, columns) for radius in radii}
        run_names = {radius: runs[radius].path.name for radius in radii}
        rows += _points(EPS, name, frames, run_names)
    return pd.DataFrame(rows)


def steps_curve(run: Results) -> pd.DataFrame:
    """As ``eps_curve``, of one run whose columns are PGD with so many steps each."""
    steps: dict[str, float] = {
        column["name"]: AttackIdentity.of_member(column["members"][0]).steps or 0 for column in run.description["suites"]
    }
    frames = {steps[name]: _of(run, name) for name in sorted(run.columns, key=lambda name: steps[name])}
    return pd.DataFrame(_points(STEPS, "pgd", frames, dict.fromkeys(frames, run.path.name)))


def _of(results: Results, name: str, columns: list[str] | None = None) -> pd.DataFrame:
    """The verdicts of an attack, or of the union of columns."""
    if name != UNION:
        return results.verdicts[results.verdicts["attack"] == name]
    union = decide([_of(results, column) for column in columns or []], UNION)
    return union.assign(outcome=union["best"])


def _points(axis: str, name: str, frames: Mapping[float, pd.DataFrame], run_names: Mapping[float, str]) -> list[dict[str, Any]]:
    """One attack's rows, in ascending order; the envelope is of everything up to a row."""
    rows, so_far = [], []
    for value, frame in sorted(frames.items()):
        so_far.append(frame)
        envelope = robust_share(decide(so_far, name)["best"])
        rows.append(
            {"axis": axis, "value": value, "attack": name}
            | robust_share(frame["outcome"])
            | {f"envelope_{key}": share for key, share in envelope.items() if key != "n"}
            | {"run": run_names.get(value, "")}
        )
    return rows


def write_curves(folder: Path, curves: list[pd.DataFrame], described: dict[str, Any], command: str) -> Path:
    """Writes curve.csv, curve.png and curve.md.

    Args:
        folder: below which the runs lie.
        curves: of ``eps_curve`` and ``steps_curve``.
        described: run.json of one of the runs.
        command: that made them.

    Returns:
        The path of curve.md.
    """
    together = pd.concat(curves, ignore_index=True)
    csv = together.to_csv(index=False, lineterminator="\n", float_format="%.9g")
    write_atomically(folder / "curve.csv", csv.encode())
    buffer = io.BytesIO()
    draw_curves(curves, described).savefig(buffer, format="png", dpi=150)
    write_atomically(folder / "curve.png", buffer.getvalue())
    sections = [
        f"# Robustness curves of {described['model']['name']}",
        f"Data: {described['data']['name']}, {described['data']['split']} split, n = {described['n']:,}; {described['threat']['norm']}.",
        "![Robust accuracy against eps and steps](curve.png)",
        *(f"## Against {_axis(curve, described)}\n\n{curve_table(curve)}\n\n{_links(curve)}" for curve in curves),
        NOTES,
        f"## Repeat it\n\n```\n{command or 'called from Python'}\n```",
    ]
    write_atomically(folder / "curve.md", ("\n\n".join(sections) + "\n").encode())
    return folder / "curve.md"


def _axis(curve: pd.DataFrame, described: dict[str, Any]) -> str:
    norm = described["threat"]["norm"]
    return f"eps in {norm}" if curve["axis"].iloc[0] == EPS else f"steps of PGD at {norm} {described['steps_eps']}"


def _links(curve: pd.DataFrame) -> str:
    names = dict.fromkeys(name for name in curve["run"] if name)
    return "Runs: " + ", ".join(f"[{name}]({name}/report.md)" for name in names)


def curve_table(curve: pd.DataFrame, layout: Callable[[list[str], list[list[str]]], str] = table) -> str:
    """Percent of all samples, a line per radius or number of steps: every attack as measured, then its envelope.

    Args:
        curve: of ``eps_curve`` or ``steps_curve``.
        layout: makes a table of a header and rows.
    """
    names = list(dict.fromkeys(curve["attack"]))
    header = [curve["axis"].iloc[0], *(text for name in names for text in (f"{title(name)}, measured", f"{title(name)}, envelope"))]
    rows = []
    for value, points in curve.groupby("value"):
        cells = points.set_index("attack")
        texts = [_cell(cells.loc[name], prefix) for name in names for prefix in ("", "envelope_")]
        rows.append([value_text(curve, value), *texts])
    return layout(header, rows)


def _cell(point: pd.Series, prefix: str) -> str:
    share = percent(point[f"{prefix}robust_accuracy"])
    if point[f"{prefix}undecided"]:
        share = f"{percent(point[f'{prefix}robust_low'])} to {percent(point[f'{prefix}robust_high'])}"
    return f"{share} [{percent(point[f'{prefix}ci_low'])}, {percent(point[f'{prefix}ci_high'])}]"


def value_text(curve: pd.DataFrame, value: float) -> str:
    """A radius as people write it, or a number of steps."""
    return format_eps(value) if curve["axis"].iloc[0] == EPS else f"{value:g}"


def draw_curves(curves: list[pd.DataFrame], described: dict[str, Any]) -> Figure:
    """Every curve in a panel of its own: points as measured with 95 % intervals, a line for the envelope."""
    figure = Figure(figsize=(5.6 * len(curves), 3.9), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, curve in zip(panels, curves, strict=True):
        for color, (name, points) in zip(cycle(COLORS), curve.groupby("attack", sort=False), strict=False):
            high = 100 * points["robust_high"]  # an upper bound: samples that an attack failed on may be robust
            spread = [(high - 100 * points["ci_low"]).clip(lower=0), (100 * points["ci_high"] - high).clip(lower=0)]
            style = {"color": color, "fmt": "o", "markersize": 5}
            if name == UNION:  # dashed and hollow, so that an attack that is all of it shows through
                style = {"color": INK, "fmt": "s", "markersize": 8, "markerfacecolor": "none"}
            axes.errorbar(points["value"], high, yerr=spread, elinewidth=1.2, capsize=3, **style)
            line = {"color": style["color"], "linestyle": "--" if name == UNION else "-", "linewidth": 1.6}
            axes.plot(points["value"], 100 * points["envelope_robust_high"], label=title(str(name)), **line)
        values = sorted(set(curve["value"]))
        if curve["axis"].iloc[0] == STEPS:
            axes.set_xscale("log")
        axes.set_xticks(values, [value_text(curve, value) for value in values], rotation=45 if len(values) > 4 else 0, fontsize=8)
        axes.minorticks_off()
        axes.set_xlabel(_axis(curve, described))
        axes.set_ylim(-3, 103)
        axes.grid(axis="y", color="#e3e7ec", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("samples still classified correctly, %")
    what = f"{described['model']['name']}, {described['data']['name']} n = {described['n']:,}"
    figure.suptitle(f"{what}: points as measured, lines the envelope", fontsize=10, x=0.01, ha="left")
    return figure
