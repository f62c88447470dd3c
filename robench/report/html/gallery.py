"""The gallery: clean image, adversarial image, enlarged perturbation, as pictures inside the page."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from robench.evaluation.results import Results
from robench.report.accuracy import title
from robench.types import Outcome

ROOM = 6_000_000  # characters of all pictures of a page, which is to stay below 10 MB with all its tables
SMALL = 96  # pixels a side up to which a picture is shown enlarged, its pixels crisp
LARGEST = 256  # pixels a side of a picture; of larger images every second, third, ... pixel is shown
_Shown = tuple[np.ndarray, np.ndarray, np.ndarray]  # clean image, adversarial image, confidence on both


@dataclass(frozen=True, kw_only=True)
class Card:
    """One sample under one attack.

    Attributes:
        index: of the sample.
        attack, attack_name: column, and as it is printed.
        label, clean_pred, adv_pred: names of the classes: the true one, and what the model sees.
        broken: whether the attack's image is misclassified.
        outcome: a value of ``Outcome``.
        clean, adv, delta: data URIs of the pictures, PNG.
        factor: by how much the perturbation is enlarged, as text; "" where there is none.
        clean_confidence, adv_confidence: as text with a percent sign; "" where it is not known.
    """

    index: int
    attack: str
    attack_name: str
    label: str
    clean_pred: str
    adv_pred: str
    broken: bool
    outcome: str
    clean: str
    adv: str
    delta: str
    factor: str
    clean_confidence: str
    adv_confidence: str


def gallery_context(results: Results) -> dict[str, Any] | None:
    """The cards and what they can be filtered by; the attack that leaves fewest is shown first. None where there are no images."""
    shown = {column: _last_stage(results, column) for column in results.columns}
    shapes = {images[0].shape for by_index in shown.values() for images in by_index.values()}
    if not shapes or any(channels not in (1, 3) for channels, _, _ in shapes):
        return None
    left = {name: int((rows["outcome"] == Outcome.ROBUST).sum()) for name, rows in results.verdicts.groupby("attack")}
    first = min(reversed([column for column in results.columns if shown[column]]), key=lambda each: left[each])
    made = cards(results, shown, first)
    labels, large = {card.label for card in made}, max(max(shape[1:]) for shape in shapes)
    return {
        "cards": made,
        "attacks": list(dict.fromkeys((card.attack, card.attack_name) for card in made)),
        "first": first,
        "labels": list(dict.fromkeys(name for name in results.description["data"]["classes"] if name in labels)),
        "outcomes": sorted({card.outcome for card in made}),
        "confident": any(card.clean_confidence for card in made),
        "large": large > SMALL,
        "says": _says(shapes, len(made), sum(map(len, shown.values()))),
    }


def cards(results: Results, shown: dict[str, dict[int, _Shown]], first: str) -> list[Card]:
    """Samples attack by attack: of every attack as many as pages have room for, the most of the attack that is shown first.

    Args:
        results: the run.
        shown: column to index to what is shown, see ``_last_stage``.
        first: a column.
    """
    classes = results.description["data"]["classes"]
    wanted = {index for by_index in shown.values() for index in by_index}
    verdicts = results.verdicts[results.verdicts["index"].isin(wanted)].set_index(["attack", "index"])
    order = [
        (rank, column != first, place, index, column)
        for place, column in enumerate(shown)
        for rank, index in enumerate(sorted(shown[column]))
    ]
    made: list[tuple[int, Card]] = []
    room = ROOM
    for _, _, place, index, column in sorted(order):
        card = _card(index, column, verdicts.loc[(column, index)], shown[column][index], classes)
        room -= len(card.clean) + len(card.adv) + len(card.delta)
        if made and room < 0:
            break
        made.append((place, card))
    return [card for _, card in sorted(made, key=lambda each: (each[0], each[1].index))]


def _says(shapes: set[tuple[int, ...]], made: int, kept: int) -> str:
    """How pictures differ from the images, and how many are left out; "" where they are small and all there."""
    height, width = max((shape[1:] for shape in shapes), key=max)
    step = _step(height, width)
    sentences = []
    if step > 1:
        every = {2: "second", 3: "third"}.get(step, f"{step}th")
        sentences.append(f"Images have {height} x {width} pixels, of which pictures show every {every} one each way.")
    elif max(height, width) > SMALL:
        sentences.append(f"Pictures have all of the {height} x {width} pixels, in 8 bits; the page scales them to its width.")
    if made < kept:
        sentences.append(f"{kept - made:,} of {kept:,} are left out, which would make the page too large.")
    return " ".join(sentences)


def _step(height: int, width: int) -> int:
    """How many pixels each way one pixel of a picture stands for."""
    return math.ceil(max(height, width) / LARGEST)


def _last_stage(results: Results, column: str) -> dict[int, _Shown]:
    """What is shown of each sample: in a cascade, by the last stage that attacked it."""
    by_index: dict[int, _Shown] = {}
    for name in results.stages[column] or [column]:
        examples = results.examples.get(name)
        if examples is not None:
            shown = zip(examples.clean, examples.adv, examples.confidence, strict=True)
            by_index |= zip(examples.index.tolist(), shown, strict=True)
    return by_index


def _card(index: int, column: str, row: pd.Series, shown: _Shown, classes: list[str]) -> Card:
    clean, adv, confidence = shown
    largest = float(np.abs(adv - clean).max())
    factor = 0.5 / largest if largest else 0.0

    def named(which: str) -> str:
        return classes[int(row[which])] if row[which] >= 0 else "no class"

    clean_confidence, adv_confidence = ("" if math.isnan(each) else f"{100 * each:.0f} %" for each in confidence)
    return Card(
        index=index, attack=column, attack_name=title(column), label=named("label"), clean_pred=named("clean_pred"),
        adv_pred=named("adv_pred"), broken=row["outcome"] == Outcome.BROKEN, outcome=row["outcome"], clean=_picture(clean),
        adv=_picture(adv), delta=_picture(0.5 + factor * (adv - clean)), factor=f"{factor:.3g}" if factor else "",
        clean_confidence=clean_confidence, adv_confidence=adv_confidence,
    )  # fmt: skip


def _picture(image: np.ndarray) -> str:
    """A data URI of float (C, H, W) in [0, 1], PNG: JPEG takes away what attacks add. A mean of pixels would, too, so large images lose some."""
    from PIL import Image

    step = _step(*image.shape[1:])
    pixels = np.round(255 * np.clip(image[:, ::step, ::step], 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
