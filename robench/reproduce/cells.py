"""The paper's numbers, cell by cell: which lie in our interval, and how far off the others are."""

from __future__ import annotations

from dataclasses import dataclass

from robench.report.accuracy import percent, title
from robench.report.markdown import table
from robench.reproduce.measured import Measured
from robench.reproduce.plan import ATTACKS, PUBLISHED

COLUMNS = ("clean", *ATTACKS)  # in the order of ``PUBLISHED``
INSIDE = "inside"
FURTHEST = 3  # cells are named
ROUNDED = 0.005  # points by which a published number may differ from what was measured, for its two decimals alone


@dataclass(frozen=True)
class Cell:
    """One published accuracy beside ours under the same protocol; accuracies in percent.

    Attributes:
        model: its title.
        attack: "clean" or an attack's name.
        published: by the paper.
        ours, low, high: with its 95 % interval over test samples.
    """

    model: str
    attack: str
    published: float
    ours: float
    low: float
    high: float

    @property
    def distance(self) -> float:
        """Points by which the published number lies above the interval, or, negative, below it; 0 inside, within its rounding."""
        outside = max(self.published - self.high, 0.0) + min(self.published - self.low, 0.0)
        return outside if abs(outside) > ROUNDED else 0.0

    @property
    def text(self) -> str:
        return f"{self.distance:+.2f}" if self.distance else INSIDE


def cells_of(dataset: str, measured: Measured) -> list[Cell]:
    """The published cells of a model and ours under the paper's protocol; none where the paper has no such model."""
    published = PUBLISHED.get(dataset, {}).get(measured.model.arch) if measured.model.role == "paper" else None
    if published is None or not measured.has_stored:
        return []
    return [_cell(measured, attack, value) for attack, value in zip(COLUMNS, published, strict=True)]


def _cell(measured: Measured, attack: str, published: float) -> Cell:
    stored = attack != "clean"
    ours, bounds = measured.accuracy(attack, stored=stored), measured.bounds(attack, stored=stored)
    return Cell(measured.model.title, attack, published, ours=100 * ours, low=100 * bounds.low, high=100 * bounds.high)


def cell_by_cell(dataset: str, models: list[Measured]) -> str:
    """A table of distances, and in words how many cells lie inside and which lie furthest off; "" where the paper has none of the models."""
    rows = [cells for measured in models if (cells := cells_of(dataset, measured))]
    if not rows:
        return ""
    cells = [cell for row in rows for cell in row]
    inside = sum(cell.distance == 0 for cell in cells)
    lines = [[cells[0].model, *(cell.text for cell in cells)] for cells in rows]
    said = (
        f"{inside} of {len(cells)} published cells lie in our 95 % interval under the paper's protocol. The table says so of each, or by how many "
        "points the published number lies above (+) or below (-) the nearer end of the interval. The interval is about test samples alone: another "
        "training moves a cell too."
    )
    furthest = sorted((cell for cell in cells if cell.distance), key=lambda cell: -abs(cell.distance))[:FURTHEST]
    named = "; ".join(
        f"{cell.model}, {'natural' if cell.attack == 'clean' else title(cell.attack)}: published {cell.published:.2f}, ours "
        f"{percent(cell.ours / 100)} [{cell.low:.2f}, {cell.high:.2f}]"
        for cell in furthest
    )
    more = f"\n\nFurthest off: {named}." if furthest else ""
    return f"{said}\n\n{table(['model', 'natural', *map(title, ATTACKS)], lines)}{more}"
