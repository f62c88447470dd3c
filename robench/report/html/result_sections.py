"""What was found, section by section: attacks, curves, classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from robench.evaluation.results import Results
from robench.evaluation.run_folder import CLEAN, LEFT_OUT
from robench.report.accuracy import UNION, is_stage, left_out, per_class, percent, table_rows, title
from robench.report.anytime import cost_curve, outlook_lines
from robench.report.breakdown import (
    WORST_SAYS,
    attacks_of,
    broken_alone,
    class_shares,
    confusions,
    has_many_classes,
    superclass_errors,
    worst_classes,
)
from robench.report.curves import Curve, against_eps, against_steps
from robench.report.html.charts import line_chart, step_chart
from robench.report.html.parts import ACCURACY, Cell, Heading, Table, accuracy_cells, count, listed, share
from robench.report.metadata import short


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


def class_table(results: Results) -> Table:
    """Robust accuracy of every class under every attack; of many classes with the interval of what survives all, the worst first."""
    if has_many_classes(results):
        shares = class_shares(results)
        ordered = shares.sort_values(["ci_high", "label"], na_position="last")
        return _share_table(results, ordered, "classes", "Percent of each class that is robust")
    names = [CLEAN, *results.columns]
    shares = per_class(results, names)
    labels = results.verdicts[results.verdicts["attack"] == CLEAN]["label"].value_counts()
    classes, coarse = results.description["data"]["classes"], results.description["data"].get("coarse")
    columns = [Heading("class", number=False), *([Heading("superclass", number=False)] if coarse else []), Heading("samples")]
    rows = []
    for label, row in shares.iterrows():
        place = None if coarse is None else coarse["of_class"][label]
        above = [] if coarse is None else [Cell("" if place is None else coarse["classes"][place])]
        rows.append([Cell(classes[label]), *above, count(labels.get(label, 0)), *(_shaded(value) for value in row)])
    columns += [Heading(title(name)) for name in names]
    return Table("classes", "Percent of each class that is robust", tuple(columns), rows, tall=len(rows) > 30)


def many_classes_context(results: Results) -> dict[str, Any] | None:
    """Which of many classes are worst, and what is taken for what most often; None where a table shows all classes."""
    if not has_many_classes(results):
        return None
    worst = worst_classes(class_shares(results))
    caption = f"The worst {len(worst)} of {len(results.description['data']['classes']):,} classes, percent that is robust"
    return {
        "worst": _share_table(results, worst, "worst-classes", caption),
        "says": WORST_SAYS,
        "confusions": _confusion_table(results),
    }


def _share_table(results: Results, shares: pd.DataFrame, name: str, caption: str) -> Table:
    """Rows of ``class_shares``; a pointer that rests on a class is shown its label and whole name."""
    coarse = results.description["data"].get("coarse")
    *others, last = attacks_of(shares)
    columns = (
        Heading("class", number=False), *([Heading("superclass", number=False)] if coarse else []), Heading(title(last)),
        Heading("95 % interval", about=f"of {title(last)}"), Heading("samples"), *(Heading(title(each)) for each in others),
    )  # fmt: skip
    rows = []
    for row in shares.to_dict("records"):
        place = None if coarse is None else coarse["of_class"][row["label"]]
        above = [] if coarse is None else [Cell("" if place is None else coarse["classes"][place])]
        bounds = Cell(f"{percent(row['ci_low'])} to {percent(row['ci_high'])}" if row["samples"] else "", round(row["ci_high"], 4))
        rows.append(
            [
                _class_cell(results, row["label"]),
                *above,
                _shaded(row[last]),
                bounds,
                count(row["samples"]),
                *(_shaded(row[each]) for each in others),
            ]
        )
    return Table(name, caption, columns, rows, tall=len(rows) > 30)


def _class_cell(results: Results, label: int) -> Cell:
    name = results.description["data"]["classes"][label]
    return Cell(short(name), name, note=f"{name} (label {label})")


def _confusion_table(results: Results) -> Table | None:
    """What adversarial images are taken for most often; None where none is misclassified."""
    rows = [
        [_class_cell(results, label), _class_cell(results, answer), count(samples)]
        for label, answer, samples in confusions(results).itertuples(index=False)
    ]
    columns = (Heading("class", number=False), Heading("taken for", number=False), Heading("samples"))
    return Table("confusions", f"The {len(rows)} most frequent confusions by adversarial images", columns, rows) if rows else None


def _shaded(fraction: float) -> Cell:
    if np.isnan(fraction):
        return Cell("", float("nan"))
    return Cell(f"{100 * fraction:.0f}", float(fraction), shade=float(fraction))


def superclass_table(results: Results) -> Table | None:
    """Whether wrong answers stay inside the superclass; None where the data has none."""
    errors = superclass_errors(results)
    if not errors:
        return None
    columns = (
        Heading("attack", number=False), Heading("wrong answers"), Heading("within the superclass"), Heading("within %"),
        Heading("95 % interval"), Heading("by chance %", about="were every other class as likely"), Heading("across"),
    )  # fmt: skip
    rows = [
        [
            Cell(title(each.attack)), count(each.errors), count(each.within), share(each.within / each.errors),
            Cell(f"{percent(each.low)} to {percent(each.high)}", each.low), share(each.chance), count(each.errors - each.within),
        ]
        for each in errors
    ]  # fmt: skip
    return Table("superclasses", "Where wrong answers land: within the superclass of the right one, or across", columns, rows)


def alone_table(results: Results) -> Table | None:
    """Which samples one column alone breaks; None where there is none, or one column only."""
    alone = {name: places for name, places in broken_alone(results).items() if places}
    if not alone or len(results.columns) < 2:
        return None
    rows = [[Cell(title(name)), count(len(places)), listed(places)] for name, places in alone.items()]
    columns = (Heading("attack", number=False), Heading("samples"), Heading("which, by their place in the data", number=False))
    return Table("alone", "Samples that one attack alone breaks", columns, rows)
