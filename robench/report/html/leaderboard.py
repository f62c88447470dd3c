"""The page of ``robench leaderboard``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from robench.report.html import render_page
from robench.report.html.parts import ACCURACY, Cell, Column, Table, accuracy_cells, count
from robench.report.leaderboard import Entry, Leaderboard
from robench.report.tables import accuracy_text, title


def render_leaderboard(found: Leaderboard, folder: Path, link: Callable[[Path], str]) -> str:
    """The whole page.

    Args:
        found: the runs.
        folder: that they lie below.
        link: from a run folder to its address as seen from the page.
    """
    groups = [_group(place, what, entries, link) for place, (what, entries) in enumerate(found.groups.items())]
    return render_page(
        "leaderboard.html",
        title=f"Runs below {folder.name or folder}",
        groups=groups,
        total=sum(map(len, found.groups.values())),
        unread=[(str(path), why) for path, why in found.unread],
    )


def _group(place: int, what: str, entries: list[Entry], link: Callable[[Path], str]) -> dict:
    columns = (
        Column("model", number=False), Column("natural %"), *ACCURACY, Column("n"), Column("AutoAttack %"), Column("attacks", number=False),
        Column("note", number=False),
    )  # fmt: skip
    rows = []
    for entry in entries:
        clean = entry.summary.iloc[0]
        page = next((name for name in ("report.html", "report.md") if (entry.path / name).exists()), None)
        rows.append([
            Cell(entry.description["model"]["name"], href=f"{link(entry.path)}/{page}" if page else None, note=str(entry.path)),
            Cell(accuracy_text(clean), float(clean["robust_high"])), *accuracy_cells(entry.last), count(entry.last["n"]), _autoattack(entry),
            Cell(", ".join(map(title, entry.attacks)) or "none"), Cell(", ".join(filter(None, (_seed(entry), entry.note)))),
        ])  # fmt: skip
    return {
        "id": f"group-{place}",
        "name": what,
        "table": Table(f"runs-{place}", "Robust against every attack of each run", columns, rows),
    }


def _seed(entry: Entry) -> str:
    seed = entry.description["spec"].get("seed", 0)
    return f"seed {seed}" if seed else ""


def _autoattack(entry: Entry) -> Cell:
    rows = entry.summary[entry.summary["attack"] == "autoattack"]
    return Cell("", float("nan")) if rows.empty else Cell(accuracy_text(rows.iloc[0]), float(rows.iloc[0]["robust_high"]))
