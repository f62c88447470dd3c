"""What every page is made of: tables that sort, and bars on a scale from 0 to 100 %."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import pandas as pd

from robench.report.accuracy import accuracy_text, percent


@dataclass(frozen=True)
class Bar:
    """An accuracy with its interval on a scale from 0 to 100, percent."""

    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it says.
        value: what it is sorted by, where that is not the text.
        bar: drawn in place of the text, which stays for those who do not see.
        href: a link of the text.
        shade: share of full colour behind the text, 0 to 1.
        kind: a class of the style sheet: "code", "stage", "level fail", ...
        note: what a pointer that rests on it is shown.
    """

    text: str
    value: float | str | None = None
    _: KW_ONLY
    bar: Bar | None = None
    href: str | None = None
    shade: float | None = None
    kind: str = ""
    note: str = ""

    @property
    def sort_value(self) -> str:
        """As the script reads it; empty sorts last."""
        if self.value is None:
            return self.text
        return "" if isinstance(self.value, float) and math.isnan(self.value) else str(self.value)


@dataclass(frozen=True)
class Heading:
    """A column's heading, whether it holds numbers, and what it means where a word does not say it."""

    name: str
    number: bool = True
    about: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its caption; the first cell of a row is the row's heading.

    Attributes:
        id: unique on the page.
        caption: what it shows.
        columns: headings.
        rows: cells in the order of the columns.
        sortable: whether headings are buttons.
        tall: whether it scrolls in a box of its own height.
    """

    id: str
    caption: str
    columns: tuple[Heading, ...]
    rows: list[list[Cell]]
    sortable: bool = True
    tall: bool = False


def accuracy_cells(row: pd.Series) -> list[Cell]:
    """Robust accuracy, its interval and its bar, of a row of a summary."""
    at = float(row["robust_high"])
    bounds = f"{percent(row['ci_low'])} to {percent(row['ci_high'])}"
    return [
        Cell(accuracy_text(row), at),
        Cell(bounds, float(row["ci_low"])),
        Cell(f"{accuracy_text(row)} %, interval {bounds}", at, bar=Bar(100 * at, 100 * row["ci_low"], 100 * row["ci_high"])),
    ]


ACCURACY = (
    Heading("robust %"),
    Heading("95 % interval"),
    Heading("0 to 100 %", about="the dot is the accuracy, the line its interval"),
)


def listed(places: list[int], limit: int = 40) -> Cell:
    """Places of samples in the data, the first ones by name."""
    text = ", ".join(map(str, places[:limit])) + (f" and {len(places) - limit:,} more" if len(places) > limit else "")
    return Cell(text, len(places))


def count(number: float) -> Cell:
    """A whole number."""
    return Cell(f"{int(number):,}", int(number))


def share(fraction: float) -> Cell:
    """A fraction in percent."""
    return Cell(percent(fraction), float(fraction))


def number(value: float, digits: int = 1) -> Cell:
    """A number with so many decimals, or nothing where there is none."""
    return Cell("" if math.isnan(value) else f"{value:,.{digits}f}", float(value))
