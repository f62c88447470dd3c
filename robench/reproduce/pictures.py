"""Figures of the reproduction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from robench.report.tables import title
from robench.reproduce.measured import Measured
from robench.reproduce.plan import ATTACKS, AUTOATTACK

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_protocols(there: list[Measured]) -> Figure:
    """Accuracy of every model under the paper's protocol and under the right ones, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.75 * len(there)), layout="constrained")
    axes = figure.subplots()
    bars = [
        ("PGD-20 stored for the single-task model (the paper's protocol)", "#d9822b", "pgd20", True),
        ("PGD-20 on the model itself", "#2f6db3", "pgd20", False),
        ("AutoAttack", "#22272e", AUTOATTACK, False),
    ]
    for place, (name, color, attack, stored) in enumerate(bars):
        known = [height for height, found in enumerate(there) if found.has_stored or not stored]
        shares = [100 * there[height].accuracy(attack, stored=stored) for height in known]
        bounds = [[100 * bound for bound in there[height].bounds(attack, stored=stored)] for height in known]
        where = np.array(known) + 0.26 * (place - 1)
        spread = np.clip([[share - low, high - share] for share, (low, high) in zip(shares, bounds, strict=True)], 0, None).T
        axes.barh(where, shares, height=0.24, color=color, label=name, xerr=spread, error_kw={"elinewidth": 1, "ecolor": "#9aa4b0"})
        for height, share, (_, high) in zip(where, shares, bounds, strict=True):
            axes.text(max(share, high) + 1, height, f"{share:.2f}", va="center", fontsize=8)
    natural = [100 * found.accuracy("clean") for found in there]
    axes.plot(natural, range(len(there)), "|", color="#9aa4b0", markersize=26)
    axes.plot([], [], "|", color="#9aa4b0", markersize=9, label="natural accuracy")  # the mark in the legend
    axes.set_yticks(range(len(there)), [found.model.title for found in there])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("test images classified correctly, %")
    figure.legend(fontsize=8, frameon=False, loc="outside upper left", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_why(there: list[Measured]) -> Figure:
    """What decides the accuracy on stored images: their size; their sign; the loss along them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    size, agreement, curves = figure.subplots(1, 3)
    others = [found for found in there if not found.model.is_source]
    for place, found in enumerate(others):
        color = f"C{place}"
        order = sorted(ATTACKS, key=lambda attack: found.about["mechanism"]["l2"][attack])
        sizes = [found.about["mechanism"]["l2"][attack] for attack in order]
        size.plot(
            sizes, [100 * found.accuracy(attack, stored=True) for attack in order], "o-", color=color, label=found.model.title
        )
        shares = [found.about["mechanism"]["sign agreement"][attack] for attack in ATTACKS]
        agreement.plot(range(len(ATTACKS)), shares, "o", color=color)
        steps = np.linspace(0, 1, len(found.about["mechanism"]["transfer"]))
        curves.plot(steps, found.about["mechanism"]["transfer"], "-", color=color)
        curves.plot(steps, found.about["mechanism"]["white-box"], "--", color=color)
    if others:
        for attack in ATTACKS:
            size.axvline(others[0].about["mechanism"]["l2"][attack], color="#dddddd", zorder=0)
            size.annotate(
                title(attack),
                (others[0].about["mechanism"]["l2"][attack], 1.0),
                xycoords=("data", "axes fraction"),
                fontsize=7,
                rotation=30,
            )
        size.legend(fontsize=8, frameon=False)
    size.set_xlabel("mean L2 size of the stored perturbation")
    size.set_ylabel("accuracy on the stored images, %")
    agreement.axhline(0.5, color="#9aa4b0", linestyle=":")
    agreement.set_xticks(range(len(ATTACKS)), [title(attack) for attack in ATTACKS])
    agreement.set_ylim(0.4, 1.0)
    agreement.set_ylabel("same sign as the model's own gradient (chance 0.5)")
    curves.set_xlabel("share of the way to the adversarial image")
    curves.set_ylabel("cross-entropy: stored (solid), own PGD-50 (dashed)")
    for axes in (size, agreement, curves):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
