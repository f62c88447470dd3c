"""Two accuracies on the same samples: their difference with its interval, and the exact test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robench.report.accuracy import interval

Z95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How two columns of right and wrong answers differ on the same samples.

    Attributes:
        n: samples.
        only_first, only_second: samples that one alone gets right.
        difference: the first accuracy minus the second.
        low, high: 95 % interval of the difference: the wider of Wald's and of the exact one that takes the number of discordant samples
            as given, so that it holds 0 wherever the exact test does not reject; Clopper-Pearson's of none in n where none differ.
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
    """Compares two columns, bool (N,) each; of different lengths, over the samples that both have. Without any, nothing is known."""
    from scipy.stats import binomtest

    n = min(len(first), len(second))  # the first n of the test split are the same in both
    if not n:
        return Paired(n=0, only_first=0, only_second=0, difference=0.0, low=-1.0, high=1.0, p=1.0)
    first, second = first[:n], second[:n]
    ahead, behind = int((first & ~second).sum()), int((~first & second).sum())
    discordant, difference = ahead + behind, (ahead - behind) / n
    if not discordant:
        high = interval(0, n).high
        return Paired(n=n, only_first=0, only_second=0, difference=0.0, low=-high, high=high, p=1.0)
    half = Z95 * max(discordant / n - difference**2, 0.0) ** 0.5 / n**0.5
    test = binomtest(ahead, discordant)
    share = test.proportion_ci(0.95, method="exact")  # of the discordant ones, as the exact test sees them
    low, high = ((2 * bound - 1) * discordant / n for bound in (share.low, share.high))
    return Paired(
        n=n, only_first=ahead, only_second=behind, difference=difference, low=min(difference - half, low), high=max(difference + half, high),
        p=float(test.pvalue),
    )  # fmt: skip


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
