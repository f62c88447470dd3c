"""Two accuracies on the same samples: their difference with its interval, and the exact test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robench.report.tables import interval

Z95 = 1.959964


@dataclass(frozen=True)
class Paired:
    """How two columns of right and wrong answers differ on the same samples.

    Attributes:
        n: samples.
        only_first, only_second: samples that one alone gets right.
        difference: the first accuracy minus the second.
        low, high: 95 % interval of the difference. Normal (Wald's on the discordant pairs); where they all point one way, that of their
            share, Wilson's, or Clopper-Pearson's where there are none.
        p: two-sided, of the exact McNemar test.
    """

    n: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        if not self.only_first and not self.only_second:
            return "not one sample differs"
        return f"{self.only_first:,} samples right for the first alone, {self.only_second:,} for the second; exact McNemar {p_text(self.p)}"


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """Compares two columns, bool (N,) each; of different lengths, over the samples that both have."""
    from scipy.stats import binomtest

    n = min(len(first), len(second))  # the first n of the test split are the same in both
    first, second = first[:n], second[:n]
    ahead, behind = int((first & ~second).sum()), int((~first & second).sum())
    difference = (ahead - behind) / n
    if ahead and behind:
        half = Z95 * (((ahead + behind) / n - difference**2) / n) ** 0.5
        low, high = difference - half, difference + half
    elif ahead or behind:
        low, high = interval(ahead, n) if ahead else tuple(-bound for bound in reversed(interval(behind, n)))
    else:
        high = interval(0, n)[1]
        low = -high
    p = float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
    return Paired(n, ahead, behind, difference, low, high, p)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values (Holm 1979), in their order."""
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    corrected, worst = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, ps[place] * (len(ps) - rank)))
        corrected[place] = worst
    return corrected


def p_text(p: float) -> str:
    """A p-value as it is printed."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
