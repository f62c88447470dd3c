"""Figures of the reproduction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from robench.report.accuracy import title
from robench.reproduce.measured import Measured
from robench.reproduce.plan import ATTACKS, AUTOATTACK

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_protocols(models: list[Measured]) -> Figure:
    """Accuracy of every model under the paper's protocol and under the right ones, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.75 * len(models)), layout="constrained")
    axes = figure.subplots()
    bars = [
        ("PGD-20 stored for the single-task model (the paper's protocol)", "#d9822b", "pgd20", True),
        ("PGD-20 on the model itself", "#2f6db3", "pgd20", False),
        ("AutoAttack", "#22272e", AUTOATTACK, False),
    ]
    for place, (name, color, attack, stored) in enumerate(bars):
        known = [height for height, measured in enumerate(models) if measured.has_stored or not stored]
        shares = [100 * models[height].accuracy(attack, stored=stored) for height in known]
        bounds = [[100 * bound for bound in models[height].bounds(attack, stored=stored)] for height in known]
        heights = np.array(known) + 0.26 * (place - 1)
        spread = np.clip([[share - low, high - share] for share, (low, high) in zip(shares, bounds, strict=True)], 0, None).T
        axes.barh(
            heights, shares, height=0.24, color=color, label=name, xerr=spread, error_kw={"elinewidth": 1, "ecolor": "#9aa4b0"}
        )
        for height, share, (_, high) in zip(heights, shares, bounds, strict=True):
            axes.text(max(share, high) + 1, height, f"{share:.2f}", va="center", fontsize=8)
    natural = [100 * measured.accuracy("clean") for measured in models]
    axes.plot(natural, range(len(models)), "|", color="#9aa4b0", markersize=26)
    axes.plot([], [], "|", color="#9aa4b0", markersize=9, label="natural accuracy")  # the mark in the legend
    axes.set_yticks(range(len(models)), [measured.model.title for measured in models])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("test images classified correctly, %")
    figure.legend(fontsize=8, frameon=False, loc="outside upper left", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_why(models: list[Measured]) -> Figure:
    """What decides the accuracy on stored images: their size; their sign; the loss along them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    size, agreement, curves = figure.subplots(1, 3)
    others = [measured for measured in models if not measured.model.is_source]
    for place, measured in enumerate(others):
        color = f"C{place}"
        order = sorted(ATTACKS, key=lambda attack: measured.about["mechanism"]["l2"][attack])
        sizes = [measured.about["mechanism"]["l2"][attack] for attack in order]
        size.plot(
            sizes, [100 * measured.accuracy(attack, stored=True) for attack in order], "o-", color=color, label=measured.model.title
        )
        shares = [measured.about["mechanism"]["sign agreement"][attack] for attack in ATTACKS]
        agreement.plot(range(len(ATTACKS)), shares, "o", color=color)
        steps = np.linspace(0, 1, len(measured.about["mechanism"]["transfer"]))
        curves.plot(steps, measured.about["mechanism"]["transfer"], "-", color=color)
        curves.plot(steps, measured.about["mechanism"]["white-box"], "--", color=color)
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
