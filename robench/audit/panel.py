"""Which attacks an audit runs, at which radii; and which stronger ones its findings call for, within a budget."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from robench.attacks import AttackOptions, parse_columns
from robench.audit.comparisons import REST
from robench.audit.evidence import Evidence
from robench.audit.rules import GRADIENT_FREE
from robench.types import AUTOATTACK_UNITS, Attack, Column, Finding, Level, ThreatModel

FULL = (
    "pgd7", "pgd20", "pgd50", "pgd100", "pgd50-ce", "pgd50-margin", "pgd50-dlr", "pgd50-rescaled", "pgd50-float64", "noise",
)  # fmt: skip
QUICK = ("pgd20", "pgd50-ce", "pgd50-margin", "pgd50-rescaled", "noise")
GRID = {
    "half": ("pgd20",),
    "x2": ("pgd20",),
    "x4": ("pgd20",),
    "large": ("pgd20", "pgd100-margin"),
    "unbounded": ("pgd20", "pgd100-margin"),
}
QUICK_GRID = {"x2": ("pgd20",), "unbounded": ("pgd20", "pgd100-margin")}
RESTARTS = 5

REST_ORDER = ("apgd-ce", "apgd-t", "square", "fab-t")  # FAB costs most and adds least, so that it comes last
CONSEQUENCES = "consequences"
AVERAGED = "pgd30-averaged"


@dataclass(frozen=True)
class Stronger:
    """A stronger attack that findings may call for; units a surviving sample, as ``AUTOATTACK_UNITS``."""

    name: str
    cost: int


# Cheap ones first: each sees only what the ones before it left.
LADDER = (
    Stronger("pgd50-log", 150),
    Stronger("pgd50-bpda", 150),
    Stronger("pgd50@surrogate", 150),
    Stronger("pgd100-margin", 300),
    Stronger(AVERAGED, 950),
    Stronger("pgd50-spsa", 6_450),
    Stronger("square20000", 20_000),
)  # fmt: skip
# What a finding may call for: columns that have run by then, and the ladder.
CALLABLE = frozenset((*FULL, *QUICK, "pgd50-eot", *(each.name for each in LADDER)))


def panel(threat: ThreatModel, n_classes: int, *, quick: bool) -> list[Column]:
    """The columns at the audited radius."""
    names = [threat.geometry.single_step, *(name for name in (QUICK if quick else FULL) if n_classes >= 3 or name != "pgd50-dlr")]
    columns = parse_columns(",".join(names), threat, n_classes)
    return columns if quick else columns + parse_columns("pgd20", threat, n_classes, AttackOptions(restarts=RESTARTS))


def rest(threat: ThreatModel, n_classes: int, broken: np.ndarray) -> Column:
    """AutoAttack's four stages as one column, on what the panel left.

    Args:
        threat: the threat model.
        n_classes: of the main task.
        broken: bool (n,), samples that are decided.
    """
    names = [name for name in REST_ORDER if n_classes >= 4 or name != "apgd-t"]
    return _on_what_is_left(REST, [parse_columns(name, threat, n_classes)[0].stages[0] for name in names], broken)


def _on_what_is_left(name: str, stages: list[Attack], broken: np.ndarray) -> Column:
    left = hashlib.sha256(np.packbits(broken).tobytes()).hexdigest()[:12]
    stages = [stage.identified(replace(stage.identity, left=left)) for stage in stages]
    return Column(name, tuple(stages), is_cascade=True, count_queries=True, skip=frozenset(np.flatnonzero(broken).tolist()))


def grid(threat: ThreatModel, image_shape: tuple[int, int, int], *, quick: bool) -> dict[str, tuple[ThreatModel, tuple[str, ...]]]:
    """The other radii, and what runs there: half, double and four times eps, half of the pixel range, and all of it."""
    side = threat.geometry.diameter(image_shape)
    radii = {"half": threat.eps / 2, "x2": 2 * threat.eps, "x4": 4 * threat.eps, "large": side / 2, "unbounded": side}
    wanted = QUICK_GRID if quick else GRID
    return {at: (ThreatModel(threat.norm, min(radii[at], threat.geometry.largest_eps)), names) for at, names in wanted.items()}


class CalledFor(NamedTuple):
    """Names of stronger attacks: those to run, and those that the budget does not allow."""

    names: list[str]
    not_run: list[str]


def called_for(findings: Iterable[Finding], done: Iterable[str], budget: float) -> CalledFor:
    """The stronger attacks that findings lead to.

    A warning leads to attacks with gradients only; those without are for failures.

    Args:
        findings: of the panel.
        done: columns that were run.
        budget: multiples of AutoAttack's cost a surviving sample.
    """
    wanted: set[str] = set()
    for finding in findings:
        assert CALLABLE.issuperset(finding.calls_for), f"{finding.check} calls for {finding.calls_for}, known: {sorted(CALLABLE)}"
        if finding.level == Level.FAIL:
            wanted.update(finding.calls_for)
        elif finding.level == Level.WARN:
            wanted.update(name for name in finding.calls_for if name not in GRADIENT_FREE)
    ladder = [each for each in LADDER if each.name in wanted and each.name not in set(done)]
    chosen, spent = [], 0
    for each in ladder:
        if spent + each.cost <= budget * AUTOATTACK_UNITS:
            chosen.append(each.name)
            spent += each.cost
    return CalledFor(chosen, [each.name for each in ladder if each.name not in chosen])


def needless(evidence: Evidence) -> list[str]:
    """Stronger attacks that were run already, or make no sense on these outputs."""
    probabilities = float(evidence.probes.get("outputs", {}).get("probabilities", 0.0))
    return [*evidence.columns(), *(["pgd50-log"] if probabilities < 0.99 else [])]


def consequences(names: list[str], threat: ThreatModel, n_classes: int, broken: np.ndarray, transfers: dict[str, Attack]) -> Column:
    """The stronger attacks as one column: a cascade over what the panel left.

    Args:
        names: of the attacks, in order.
        threat: the threat model.
        n_classes: of the main task.
        broken: bool (n,), samples that are decided.
        transfers: attacks that are crafted on another model, by their name.
    """
    stages = [transfers[name] if name in transfers else parse_columns(name, threat, n_classes)[0].stages[0] for name in names]
    return _on_what_is_left(CONSEQUENCES, stages, broken)


def steps_of(name: str) -> int:
    """The steps in an attack's name, 0 where there are none."""
    match = re.match(r"pgd(\d+)", name)
    return int(match[1]) if match else 0
