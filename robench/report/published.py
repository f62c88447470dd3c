"""Robust accuracies that others published, to compare with. Imports no torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench.types import RobenchError, parse_eps

# RobustBench, Linf 8/255, ResNet-18 entries: weakest and best that were adversarially trained, percent under AutoAttack.
ROBUSTBENCH = {"cifar10": (43.21, 58.50), "cifar100": (18.95, 28.88)}
ROBUST = ("external", "autoattack_acc")  # the lower of both is what is known: "external" is an evaluation stronger than AutoAttack


@dataclass(frozen=True)
class Published:
    """One entry of RobustBench; accuracies in percent."""

    name: str
    clean: float
    robust: float


def read_robustbench(folder: Path, dataset: str, norm: str, eps: float) -> list[Published]:
    """The entries of a data set and threat model in RobustBench's ``model_info``, the most robust first.

    Args:
        folder: a clone of RobustBench, its ``model_info``, or a folder below that.
        dataset: such as "cifar10".
        norm, eps: the threat model; an entry that names another one, in its text or by its folder, is left out.

    Raises:
        RobenchError: there are no entries of any kind.
    """
    files = sorted(Path(folder).rglob("*.json")) if Path(folder).is_dir() else []
    entries = [(file, entry) for file in files if (entry := _read(file)) is not None]
    if not entries:
        raise RobenchError(
            f"`robustbench={folder}`: no entries of RobustBench there; expected its model_info folder, as a clone of its repository has it"
        )
    published = [_published(file, entry) for file, entry in entries if _is_about(file, entry, dataset, norm, eps)]
    return sorted((each for each in published if each is not None), key=lambda each: -each.robust)


def _read(file: Path) -> dict[str, Any] | None:
    """An entry, or None for any other JSON file."""
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and "clean_acc" in entry else None


def _is_about(file: Path, entry: dict[str, Any], dataset: str, norm: str, eps: float) -> bool:
    """Whether nothing that an entry says about itself contradicts the data set or the threat model."""
    above = [part.lower() for part in file.parent.parts]
    named = str(entry.get("dataset") or "").lower()
    threats = [part for part in above if part in ("linf", "l2", "l1") or part.startswith("corruptions")]
    if named != dataset and (named or dataset not in above):
        return False
    if threats and threats[-1] != norm.lower():
        return False
    try:
        return math.isclose(parse_eps(entry["eps"]), eps, rel_tol=1e-3) if entry.get("eps") else True
    except RobenchError:  # "null" and the like
        return True


def _published(file: Path, entry: dict[str, Any]) -> Published | None:
    clean, robust = _percent(entry["clean_acc"]), [each for name in ROBUST if (each := _percent(entry.get(name))) is not None]
    if clean is None or not robust:
        return None
    return Published(f"{file.stem} ({entry['name']})" if entry.get("name") else file.stem, clean, min(robust))


def _percent(value: Any) -> float | None:
    """A number of percent, given as a number or as text, with or without its sign."""
    try:
        number = float(str(value).strip().removesuffix("%"))
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number <= 100 else None
