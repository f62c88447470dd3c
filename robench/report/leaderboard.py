"""All runs below a folder, grouped by what they are about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robench.evaluation.results import read_results
from robench.evaluation.run_folder import CLEAN, read_run
from robench.report.accuracy import UNION, accuracy_text, is_stage, summarise, title
from robench.report.markdown import table
from robench.types import RobenchError

NEEDED = ("attack", "n", "robust_accuracy", "ci_low", "ci_high", "undecided", "robust_low", "robust_high")


@dataclass(frozen=True, eq=False)
class Entry:
    """One run.

    Attributes:
        path: its folder.
        description: run.json.
        summary: a row per attack; at least ``NEEDED``.
        note: what is to be known about it, or "".
    """

    path: Path
    description: dict[str, Any]
    summary: pd.DataFrame
    note: str = ""

    @property
    def last(self) -> pd.Series:
        return self.summary.iloc[-1]

    @property
    def attacks(self) -> list[str]:
        return [name for name in self.summary["attack"] if not is_stage(name) and name not in (CLEAN, UNION)]


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """Groups of runs on the same data under one threat model, the most robust run first; and folders that could not be read, with why."""

    groups: dict[str, list[Entry]]
    unread: list[tuple[Path, str]]


def collect(folder: Path) -> Leaderboard:
    """Every run below a folder.

    Raises:
        RobenchError: there is none.
    """
    entries: list[Entry] = []
    unread: list[tuple[Path, str]] = []
    for path in _runs(folder):
        try:
            entries.append(_entry(path))
        except RobenchError as error:
            unread.append((path, str(error)))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError) as error:  # what hands may do to a JSON file
            unread.append((path, f"run.json or a chunk is not what robench writes ({type(error).__name__}: {error})"))
    if not entries and not unread:
        raise RobenchError(f"{folder} holds no run (no run.json in it or below); `robench attack` makes one")
    groups: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda each: (not each.attacks, -float(each.last["robust_high"]), str(each.path))):
        groups.setdefault(_what(entry.description), []).append(entry)
    return Leaderboard(dict(sorted(groups.items())), unread)


def _runs(folder: Path) -> Iterator[Path]:
    """Folders with a run.json; what lies inside a run is not searched, and of an audit only its run at the audited radius."""
    for place, below, files in os.walk(folder):
        audit = "findings.json" in files  # whose runs at other radii are its own affair
        below[:] = [] if "run.json" in files else sorted(name for name in below if not (audit and name.startswith("run-")))
        if "run.json" in files:
            yield Path(place)


def _entry(path: Path) -> Entry:
    """A run from its verdicts, or, where only its tables were kept, from those."""
    description = read_run(path)
    if not (path / "chunks").exists() and description.get("results"):
        entry = Entry(path, description, pd.DataFrame(description["results"])[[*NEEDED]], "verdicts not kept")
    else:
        results = read_results(path)
        note = f"unfinished: {', '.join(results.unfinished)}" if results.unfinished else ""
        entry = Entry(path, description, summarise(results), note)
    _what(description), description["model"]["name"], float(entry.last["robust_high"])  # a run that lacks these is damaged
    return entry


def _what(description: dict[str, Any]) -> str:
    threat, spec = description["threat"], description["spec"]
    return f"{description['data']['name']}, {threat['norm']} {threat['eps_text']} (data {spec['data'][:8]})"


def leaderboard_text(leaderboard: Leaderboard) -> str:
    """The groups as markdown tables."""
    parts = []
    for what, entries in leaderboard.groups.items():
        rows = [
            [entry.description["model"]["name"], accuracy_text(entry.summary.iloc[0]), accuracy_text(entry.last) if entry.attacks else "", str(entry.last["n"]),
             ", ".join(map(title, entry.attacks)), entry.note]
            for entry in entries
        ]  # fmt: skip
        parts.append(f"{what}\n\n" + table(["model", "natural", "robust", "n", "attacks", "note"], rows))
    parts += ["not shown:\n\n" + "\n".join(f"- {path}: {why}" for path, why in leaderboard.unread)] if leaderboard.unread else []
    return "\n\n".join(parts) + "\n"
