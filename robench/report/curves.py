"""Robust accuracy against the number of steps within a run, and against eps across a run and its sibling folders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robench.evaluation.results import Results, read_results
from robench.evaluation.run_folder import CLEAN, read_run
from robench.identity import AttackIdentity
from robench.report.accuracy import UNION, summarise, title
from robench.types import RobenchError

ITERATIVE = re.compile(r"^(\D+)(\d+)(\D.*)?$")
SAME_IN_SIBLINGS = ("model", "data", "norm", "seed", "precision")  # of the key of a sibling: only its radius is another


@dataclass(frozen=True)
class Point:
    """One measured accuracy.

    Attributes:
        x: eps in pixel units, or steps.
        x_text: x as it is printed.
        n: samples.
        accuracy: robust accuracy; where an attack failed on samples, its upper bound.
        low, high: its 95 % interval, which undecided samples lengthen.
    """

    x: float
    x_text: str
    n: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """One attack at several places."""

    name: str
    points: tuple[Point, ...]


def against_steps(results: Results, summary: pd.DataFrame) -> list[Curve]:
    """A curve per iterative attack that the run holds with two numbers of steps or more: pgd7, pgd20, pgd50 make "PGD"."""
    families: dict[str, list[Point]] = {}
    for _, row in summary[summary["attack"].isin(results.columns)].iterrows():
        match = ITERATIVE.match(row["attack"])
        if match and _steps(results, row["attack"]) == int(match[2]):
            name = f"{title(match[1]).rstrip('-')}{match[3] or ''}"
            families.setdefault(name, []).append(_point(row, float(match[2]), match[2]))
    return [_curve(name, points) for name, points in families.items() if len(points) > 1]


def against_eps(results: Results, summary: pd.DataFrame) -> list[Curve]:
    """A curve per attack that siblings of the run hold at other radii; the union where theirs is over the same attacks.

    Every curve starts with the clean accuracy, which is the robust one at eps 0.
    """
    threat = results.description["threat"]
    at = {threat["eps"]: (threat["eps_text"], results, summary)}
    for other in siblings(results):
        radius, known = other.description["threat"], at.get(other.description["threat"]["eps"])
        if known is None or (known[1] is not results and known[1].description["n"] < other.description["n"]):
            at[radius["eps"]] = (radius["eps_text"], other, summarise(other))
    curves: dict[str, list[Point]] = {}
    for eps, (x_text, run, table) in sorted(at.items()):
        for _, row in table[table["attack"].isin([*results.columns, UNION])].iterrows():
            if row["attack"] != UNION or set(run.columns) == set(results.columns):
                curves.setdefault(row["attack"], []).append(_point(row, eps, x_text))
    clean = _point(summary[summary["attack"] == CLEAN].iloc[0], 0.0, "0")
    zero = [] if 0.0 in at else [clean]
    return [_curve(title(name), [*zero, *points]) for name, points in curves.items() if len(points) > 1]


def siblings(results: Results) -> list[Results]:
    """Runs in folders beside this one that differ in the radius: the points of a sweep, or an audit's grid."""
    folder, others = results.path.resolve(), []
    for file in sorted(folder.parent.glob("*/run.json")):
        try:
            if file.parent != folder and _is_sibling(read_run(file.parent), results.description):
                others.append(read_results(file.parent))
        except RobenchError:  # unfinished or damaged: its own report says so
            continue
    return others


def _is_sibling(other: dict[str, Any], description: dict[str, Any]) -> bool:
    theirs, ours = other["spec"], description["spec"]
    return theirs["eps"] != ours["eps"] and all(theirs.get(name) == ours.get(name) for name in SAME_IN_SIBLINGS)


def _steps(results: Results, column: str) -> int | None:
    described = next(each for each in results.description["suites"] if each["name"] == column)
    return AttackIdentity.of_member(described["members"][0]).steps if len(described["members"]) == 1 else None


def _point(row: pd.Series, x: float, x_text: str) -> Point:
    low, high = float(row["ci_low"]), float(row["ci_high"])
    return Point(x, x_text, n=int(row["n"]), accuracy=float(row["robust_high"]), low=low, high=high)


def _curve(name: str, points: list[Point]) -> Curve:
    return Curve(name, tuple(sorted(points, key=lambda point: point.x)))


def audit_folder(run: Path) -> Path | None:
    """Where the findings of the audit lie that a run belongs to: in the run's folder or, for the run of an audit, above it."""
    above = [run.parent] if run.name == "run" or run.name.startswith("run-") else []
    return next((folder for folder in [run, *above] if (folder / "findings.json").is_file()), None)
