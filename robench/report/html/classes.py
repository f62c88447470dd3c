"""The section about classes: all of them, or the worst of many; and where wrong answers land."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from robench.evaluation.results import Results
from robench.evaluation.run_folder import CLEAN
from robench.report.accuracy import per_class, percent, title
from robench.report.breakdown import (
    WORST_SAYS,
    attacks_of,
    class_shares,
    confusions,
    has_many_classes,
    superclass_errors,
    worst_classes,
)
from robench.report.html.parts import Cell, Heading, Table, count, share
from robench.report.metadata import short


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
