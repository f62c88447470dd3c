"""What was found, section by section: attacks, curves, costs."""

from __future__ import annotations

from typing import Any

import pandas as pd

from robench.evaluation.results import Results
from robench.evaluation.run_folder import LEFT_OUT
from robench.report.accuracy import UNION, is_stage, left_out, percent, table_rows, title
from robench.report.anytime import cost_curve, outlook_lines
from robench.report.breakdown import broken_alone
from robench.report.curves import Curve, against_eps, against_steps
from robench.report.html.charts import line_chart, step_chart
from robench.report.html.parts import ACCURACY, Cell, Heading, Table, accuracy_cells, count, listed, share


def attack_table(results: Results, summary: pd.DataFrame) -> Table:
    """Every attack and stage, with intervals."""
    alone = broken_alone(results) if len(results.columns) > 1 else {}
    columns = (
        Heading("attack", number=False), *ACCURACY, Heading("broken", about="by the images that it returned"),
        Heading("by best query", about="by any image that it showed to the model"),
        Heading("it alone", about="samples that no other column broke"), Heading("success %", about="of the samples that it was given"),
    )  # fmt: skip
    rows = []
    for name, row in table_rows(summary):
        kind = "stage" if is_stage(name) else "union" if name == UNION else ""
        broken_alone_cell = Cell("", float("nan")) if name not in alone else count(len(alone[name]))
        heading = name.rpartition("/")[2] if is_stage(name) else title(name)
        head = Cell(heading, kind=kind, note=name)
        if left_out(row):
            rows.append(
                [Cell(f"{heading} ({LEFT_OUT})", kind=kind, note=row["mode"]), *[Cell("", float("nan"))] * (len(columns) - 1)]
            )
            continue
        rows.append(
            [
                head,
                *accuracy_cells(row),
                count(row["broken"]),
                count(row["best_broken"]),
                broken_alone_cell,
                share(row["attack_success_rate"]),
            ]
        )
    return Table("attacks", "Robust accuracy after each attack, of all samples", columns, rows)


def chart_context(results: Results, summary: pd.DataFrame) -> list[dict[str, Any]]:
    """A chart and its numbers against eps and against steps, where there are two points or more."""
    norm, charts = results.description["threat"]["norm"], []
    for what, label, curves in (
        ("eps", f"eps, {norm}", against_eps(results, summary)),
        ("steps", "steps", against_steps(results, summary)),
    ):
        if curves:
            description = f"Robust accuracy against {what}: " + "; ".join(map(_spoken, curves))
            accent = next((curve.name for curve in curves if curve.name in (UNION, "AutoAttack")), "")
            svg = line_chart(curves, label=label, description=description, log=what == "steps", accent=accent)
            charts.append({"what": what, "svg": svg, "table": _curve_table(what, label, curves)})
    return charts


def cost_context(results: Results) -> dict[str, Any] | None:
    """Robust accuracy against what attacks spent, and what more of them might still break; None where no attack noted it."""
    curves = {title(column): cost_curve(results, column) for column in results.columns}
    lines = {
        name: list(zip(curve["units"], 100 * curve["robust_accuracy"], strict=True))
        for name, curve in curves.items()
        if len(curve) > 2
    }
    if not lines:
        return None
    description = "Robust accuracy against cost: " + "; ".join(
        f"{name} ends at {line[-1][1]:.2f} % after {line[-1][0]:,.0f} units a sample" for name, line in lines.items()
    )
    return {
        "svg": step_chart(lines, label="units a sample: a forward pass 1, a backward pass 2", description=description),
        "outlook": [line.removeprefix("- ").replace("**", "") for line in outlook_lines(results)],
    }


def _spoken(curve: Curve) -> str:
    return f"{curve.name} " + ", ".join(f"{percent(point.accuracy)} % at {point.x_text}" for point in curve.points)


def _curve_table(what: str, label: str, curves: list[Curve]) -> Table:
    columns = (Heading("attack", number=False), Heading(label), Heading("n"), Heading("robust %"), Heading("95 % interval"))
    rows = [
        [
            Cell(curve.name), Cell(point.x_text, point.x), count(point.n), share(point.accuracy),
            Cell(f"{percent(point.low)} to {percent(point.high)}", point.low),
        ]
        for curve in curves
        for point in curve.points
    ]  # fmt: skip
    return Table(f"against-{what}", f"The numbers of the chart against {what}", columns, rows)


def alone_table(results: Results) -> Table | None:
    """Which samples one column alone breaks; None where there is none, or one column only."""
    alone = {name: places for name, places in broken_alone(results).items() if places}
    if not alone or len(results.columns) < 2:
        return None
    rows = [[Cell(title(name)), count(len(places)), listed(places)] for name, places in alone.items()]
    columns = (Heading("attack", number=False), Heading("samples"), Heading("which, by their place in the data", number=False))
    return Table("alone", "Samples that one attack alone breaks", columns, rows)
