"""The page of ``robench leaderboard``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from robench.report.accuracy import accuracy_text, title
from robench.report.html import render_page
from robench.report.html.parts import ACCURACY, Cell, Heading, Table, accuracy_cells, count
from robench.report.leaderboard import Entry, Leaderboard


def render_leaderboard(leaderboard: Leaderboard, folder: Path, link: Callable[[Path], str]) -> str:
    """The whole page.

    Args:
        leaderboard: the runs.
        folder: that they lie below.
        link: from a run folder to its address as seen from the page.
    """
    groups = [_group(place, what, entries, link) for place, (what, entries) in enumerate(leaderboard.groups.items())]
    return render_page(
        "leaderboard.html",
        title=f"Runs below {folder.name or folder}",
        groups=groups,
        total=sum(map(len, leaderboard.groups.values())),
        unread=[(str(path), why) for path, why in leaderboard.unread],
    )


def _group(place: int, what: str, entries: list[Entry], link: Callable[[Path], str]) -> dict[str, Any]:
    columns = (
        Heading("model", number=False), Heading("note", number=False), Heading("natural %"), *ACCURACY[:2], Heading("n"), Heading("AutoAttack %"),
        Heading("attacks", number=False),
    )  # fmt: skip
    rows = []
    for entry in entries:
        clean = entry.summary.iloc[0]
        page = next((name for name in ("report.html", "report.md") if (entry.path / name).exists()), None)
        rows.append([
            Cell(entry.description["model"]["name"], href=f"{link(entry.path)}/{page}" if page else None, note=str(entry.path)),
            Cell(", ".join(filter(None, (_seed(entry), entry.note)))),
            Cell(accuracy_text(clean), float(clean["robust_high"])), *_robust(entry), count(entry.last["n"]), _autoattack(entry),
            Cell(", ".join(map(title, entry.attacks)) or "none"),
        ])  # fmt: skip
    return {
        "id": f"group-{place}",
        "name": what,
        "table": Table(f"runs-{place}", "Robust against every attack of each run", columns, rows),
    }


def _robust(entry: Entry) -> list[Cell]:
    """Robust accuracy and its interval; without the bar, which would push the attacks off a narrow page."""
    return accuracy_cells(entry.last)[:2] if entry.attacks else [Cell("", float("nan"))] * 2


def _seed(entry: Entry) -> str:
    seed = entry.description["spec"].get("seed", 0)
    return f"seed {seed}" if seed else ""


def _autoattack(entry: Entry) -> Cell:
    rows = entry.summary[entry.summary["attack"] == "autoattack"]
    return Cell("", float("nan")) if rows.empty else Cell(accuracy_text(rows.iloc[0]), float(rows.iloc[0]["robust_high"]))
