"""Readings: numbers against thresholds, as findings. The checks are made of these."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from robench.audit.evidence import AUDITED_RADIUS, Evidence
from robench.report.accuracy import interval, percent, title
from robench.report.paired import Paired, paired
from robench.types import Finding, Level

NEGLIGIBLE = 2  # samples that prove nothing, however small n is: honest models lose that many to a second attack
GRADIENT_FREE = ("pgd50-spsa", "pgd50@surrogate", "square20000")


def reading(
    level: Level, says: str, evidence: str, *, statistic: float | None = None, threshold: float | None = None, p: float | None = None,
    calls_for: tuple[str, ...] = (),
) -> Finding:  # fmt: skip
    """What a check found, but for its name and source, which stand in ``CHECKS``; a check that passes calls for nothing."""
    return Finding(
        check="", level=level, says=says, evidence=evidence, source="", statistic=statistic, threshold=threshold, p=p,
        calls_for=() if level == Level.PASS else calls_for,
    )  # fmt: skip


def unknown(why: str) -> Finding:
    """A check whose experiment is missing."""
    return reading(Level.UNKNOWN, "not measured", why)


def missing(evidence: Evidence, *columns: str, at: str = AUDITED_RADIUS) -> Finding:
    """A check whose attacks were not run, or failed."""
    failed = evidence.failed()
    why = [f"{title(name)} {f'failed: {failed[name]}' if name in failed else 'was not run'}" for name in columns]
    return unknown("; ".join(why) + (f" (radius {at})" if at != AUDITED_RADIUS else ""))


def gap_finding(
    gap: Paired, *, warn: float, fail: float, says: str, fine: str, text: str, calls_for: tuple[str, ...] = (), among: int = 1
) -> Finding:
    """A difference that should not exceed a threshold: it warns by its value and fails by its lower 95 % bound. A difference of no more
    than ``NEGLIGIBLE`` samples proves nothing and is no warning, however few samples there are.

    Args:
        gap: the difference.
        warn, fail: the thresholds.
        says, fine: what it means where one is exceeded, and where none is.
        text: what was compared.
        calls_for: the attacks that it leads to.
        among: of how many comparisons this is the largest; p is multiplied by it (Bonferroni).
    """
    value, low = gap.difference, gap.low
    warns = value > warn and gap.only_first - gap.only_second > NEGLIGIBLE
    level = Level.FAIL if low > fail else Level.WARN if warns else Level.PASS
    measured = f"{text}: {100 * value:+.1f} points [{100 * low:+.1f}, {100 * gap.high:+.1f}] on {gap.n:,} samples; {gap}"
    return reading(
        level, fine if level == Level.PASS else says, measured, statistic=value, threshold=fail if level == Level.FAIL else warn,
        p=min(1.0, among * gap.p), calls_for=calls_for,
    )  # fmt: skip


def two(evidence: Evidence, first: str, second: str, *, best: bool = True, **judged: Any) -> Finding:
    """The accuracy under one attack against that under another, see ``gap_finding``."""
    gap = evidence.compare(first, second, best=best)
    if gap is None:
        return missing(evidence, *(name for name in (first, second) if evidence.robust(name, best=best) is None))
    return gap_finding(gap, **judged)


def rises(evidence: Evidence, steps: list[tuple[str, np.ndarray | None]], what: str, says: str, fine: str) -> Finding:
    """The largest rise along a sequence of accuracies that should fall."""
    known = [(name, robust) for name, robust in steps if robust is not None]
    if len(known) < 2:
        return unknown(f"fewer than two points of accuracy against {what} were measured")
    pairs = [(f"{one} to {two}", paired(later, earlier)) for (one, earlier), (two, later) in pairwise(known)]
    name, worst = max(pairs, key=lambda pair: pair[1].difference)
    curve = ", ".join(f"{name} {percent(float(robust.mean()))} %" for name, robust in known)
    return gap_finding(
        worst,
        warn=0.01,
        fail=0.0,
        says=says,
        fine=fine,
        text=f"{curve}; largest rise, {name}",
        calls_for=GRADIENT_FREE,
        among=len(pairs),
    )


def left_at(evidence: Evidence, at: str, allowed: float, name: str) -> Finding:
    """What survives at a radius at which nothing should."""
    ran = {column: robust for column in ("pgd20", "pgd100-margin") if (robust := evidence.robust(column, at=at)) is not None}
    if not ran:
        return missing(evidence, "pgd20", at=at)
    left = np.logical_and.reduce(list(ran.values()))
    count, n = int(left.sum()), len(left)
    low = interval(count, n).low
    level = Level.FAIL if low > max(allowed, 0.01) and count > NEGLIGIBLE else Level.WARN if count / n > allowed else Level.PASS
    radius = evidence.runs[at].description["threat"]["eps_text"]
    says = f"the attack does not reach {name} even there: it cannot be trusted at a small radius"
    return reading(
        level, says if level != Level.PASS else f"it reaches {name}",
        f"{count:,} of {n:,} samples survive {' and '.join(map(title, ran))} at eps {radius}", statistic=count / n, threshold=allowed,
        calls_for=("pgd50-rescaled", *GRADIENT_FREE),
    )  # fmt: skip


def stronger_than(
    evidence: Evidence, left: np.ndarray | None, broken: np.ndarray | None, *, what: str, over: str, fail: float
) -> Finding:
    """What an attack that should add nothing breaks of what others left."""
    if left is None or broken is None:
        return unknown(f"{what}, or what it is compared with, was not run or failed")
    count, n = int((left & broken).sum()), len(left)
    low = interval(count, n).low
    level = Level.FAIL if low > fail and count > NEGLIGIBLE else Level.WARN if count else Level.PASS
    says = f"{what} breaks what {over} left" + (": gradients do not lead to the weak points" if level == Level.FAIL else "")
    return reading(
        level, says if level != Level.PASS else f"{what} adds nothing", f"{count:,} of {int(left.sum()):,} survivors, n = {n:,}",
        statistic=count / n, threshold=fail, calls_for=GRADIENT_FREE,
    )  # fmt: skip


def survivors(evidence: Evidence, columns: tuple[str, ...]) -> np.ndarray | None:
    """What is left after those of the columns that ran; None where not one did."""
    known = [robust for name in columns if (robust := evidence.robust(name)) is not None]
    return np.logical_and.reduce(known) if known else None


def probed(evidence: Evidence, probe: str, statistic: str, *, warn: float, fail: float, says: str, fine: str, what: str,
            calls_for: tuple[str, ...] = ()) -> Finding:  # fmt: skip
    """A probe's statistic against two thresholds."""
    measured = evidence.probes.get(probe, {})
    if measured.get(statistic) is None:
        return unknown(str(measured.get("failed") or f"the probe {probe} was not run"))
    value = float(measured[statistic])
    if value != value:
        return unknown(f"the probe {probe} gave no number")
    sure = (
        interval(round(value * measured["n"]), measured["n"]).low if "n" in measured else value
    )  # of a share, its lower 95 % bound
    level = Level.FAIL if sure > fail else Level.WARN if value > warn else Level.PASS
    of = f" of {measured['n']}" if "n" in measured else ""
    details = f"; {measured['details']}" if measured.get("details") else ""
    return reading(
        level, fine if level == Level.PASS else says, f"{what} {value:.4g}{of}{details}", statistic=value,
        threshold=fail if level == Level.FAIL else warn, calls_for=calls_for,
    )  # fmt: skip
