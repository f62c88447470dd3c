"""Figures of one run, drawn from its verdicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robench.evaluation.results import Results
from robench.evaluation.run_folder import CLEAN
from robench.report.accuracy import UNION, accuracy_text, per_class, title
from robench.report.anytime import draw_costs
from robench.report.breakdown import has_many_classes
from robench.report.metadata import short

CAPTION = 20  # letters of a class's name that fit above a picture
DRAWN = 6  # samples in the picture of examples; report.html shows them all
INK, BLUE, ORANGE, GRAY = "#22272e", "#2f6db3", "#d9822b", "#9aa4b0"


def draw_all(results: Results, summary: pd.DataFrame) -> dict[str, Figure]:
    """Every figure that the run has data for, by file name; of many classes none is legible."""
    figures = {"robust_accuracy": draw_accuracies(summary, _subtitle(results))}
    examples = draw_examples(results)
    if examples is not None:
        figures["examples"] = examples
    if not has_many_classes(results):
        figures["per_class"] = draw_per_class(results, summary)
    costs = draw_costs(results)
    if costs is not None:
        figures["cost"] = costs
    return figures


def draw_accuracies(summary: pd.DataFrame, subtitle: str) -> Figure:
    """Robust accuracy per attack, with its 95 % interval, which undecided samples lengthen."""
    rows = summary[::-1]
    figure = Figure(figsize=(7, 1.3 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    center = 100 * rows["robust_high"]  # an upper bound: samples that an attack failed on may be robust
    colors = [INK if name == UNION else GRAY if name == CLEAN else BLUE for name in rows["attack"]]
    axes.barh(range(len(rows)), center, height=0.62, color=colors)
    spread = [center - 100 * rows["ci_low"], 100 * rows["ci_high"] - center]
    axes.errorbar(center, range(len(rows)), xerr=np.clip(spread, 0, None), fmt="none", ecolor=ORANGE, elinewidth=1.6, capsize=3)
    axes.set_yticks(range(len(rows)), [title(name) for name in rows["attack"]])
    for place, (_, row) in enumerate(rows.iterrows()):
        axes.text(min(100 * row["ci_high"] + 1.5, 102), place, accuracy_text(row), va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 108)
    axes.set_xlabel("samples still classified correctly, %")
    axes.set_title(subtitle, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_examples(results: Results) -> Figure | None:
    """Clean image, adversarial image and enlarged perturbation for a few samples and up to three attacks, or None."""
    columns = _columns_to_show(results)
    if not columns:
        return None
    clean_images: dict[int, np.ndarray] = {}
    shown = {column: _examples_of(results, column, clean_images) for column in columns}
    indices = sorted(clean_images)[:DRAWN]
    classes = results.description["data"]["classes"]
    verdicts = results.verdicts.set_index(["attack", "index"])
    figure = Figure(figsize=(1.35 * (1 + 2 * len(columns)) + 0.3, 1.62 * len(indices) + 0.5), layout="constrained")
    grid = figure.subplots(len(indices), 1 + 2 * len(columns), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, index in enumerate(indices):
        label = int(verdicts.loc[(CLEAN, index), "label"])
        _show(grid[line, 0], clean_images[index], short(classes[label], CAPTION), INK)
        for place, column in enumerate(columns):
            if index not in shown[column]:
                continue
            adv_image = shown[column][index]
            predicted = int(verdicts.loc[(column, index), "adv_pred"])
            caption = short(classes[predicted], CAPTION) if predicted >= 0 else "?"
            _show(grid[line, 1 + 2 * place], adv_image, caption, INK if predicted == label else ORANGE)
            delta = adv_image - clean_images[index]
            largest = float(np.abs(delta).max())
            factor = 0.5 / largest if largest else 1.0
            _show(grid[line, 2 + 2 * place], 0.5 + delta * factor, f"x{factor:.3g}" if largest else "unchanged", GRAY)
    for place, name in enumerate(["natural", *(part for column in columns for part in (title(column), "perturbation"))]):
        top = grid[0, place]
        top.annotate(name, (0.5, 1.3), xycoords="axes fraction", ha="center", fontsize=9, fontweight="bold", color=INK)
    return figure


def _columns_to_show(results: Results) -> list[str]:
    """At most three columns that have images: the first, the last, and the one before it."""
    having = [c for c in results.columns if any(name in results.examples for name in [c, *results.stages[c]])]
    return having if len(having) <= 3 else [having[0], having[-2], having[-1]]


def _examples_of(results: Results, column: str, clean_images: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Adversarial image per sample index: a cascade's is from the last stage that attacked the sample."""
    by_index: dict[int, np.ndarray] = {}
    for name in results.stages[column] or [column]:
        if name in results.examples:
            examples = results.examples[name]
            by_index |= zip(examples.index.tolist(), examples.adv, strict=True)
            clean_images |= zip(examples.index.tolist(), examples.clean, strict=True)
    return by_index


def _show(axes: Axes, image: np.ndarray, caption: str, color: str) -> None:
    pixels = np.clip(image.transpose(1, 2, 0), 0, 1)
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(caption, fontsize=8, color=color, pad=2)


def draw_per_class(results: Results, summary: pd.DataFrame) -> Figure:
    """Robust accuracy of every class under every attack, the most robust class on top."""
    shares = per_class(results, [CLEAN, *results.columns])
    shares = shares.iloc[np.argsort(shares.fillna(-1).mean(axis=1).to_numpy(), kind="stable")[::-1]]
    classes = results.description["data"]["classes"]
    small = len(shares) > 30
    figure = Figure(figsize=(2.2 + 0.85 * shares.shape[1], 1.2 + (0.11 if small else 0.32) * len(shares)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * shares.to_numpy(), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(shares.shape[1]), [title(name) for name in shares.columns], rotation=30, ha="right", fontsize=8)
    counts = results.verdicts[results.verdicts["attack"] == CLEAN]["label"].value_counts()
    named = [f"{short(classes[label])} ({counts.get(label, 0)})" for label in shares.index]
    axes.set_yticks(range(len(shares)), named, fontsize=5 if small else 9)
    if not small:
        for (line, place), share in np.ndenumerate(shares.to_numpy()):
            text = "" if np.isnan(share) else f"{100 * share:.0f}"
            axes.text(place, line, text, ha="center", va="center", fontsize=8, color="white" if share > 0.6 else INK)
    figure.colorbar(image, ax=axes, label="robust, %", fraction=0.05)
    axes.set_title(_subtitle(results) + "\nclasses (samples), sorted by their mean", fontsize=9, loc="left")
    return figure


def _subtitle(results: Results) -> str:
    run = results.description
    return f"{run['model']['name']}, {run['data']['name']} n = {run['n']:,}, {run['threat']['norm']} {run['threat']['eps_text']}"
