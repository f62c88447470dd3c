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

PLAIN = 96  # pixels a side up to which a picture is kept without loss
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
        clean, adv, delta: data URIs of the pictures.
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
    made = cards(results)
    if not made:
        return None
    left = {name: int((rows["outcome"] == Outcome.ROBUST).sum()) for name, rows in results.verdicts.groupby("attack")}
    attacks = list(dict.fromkeys((card.attack, card.attack_name) for card in made))
    return {
        "cards": made,
        "attacks": attacks,
        "first": min(reversed(attacks), key=lambda each: left[each[0]])[0],
        "labels": [name for name in results.description["data"]["classes"] if any(card.label == name for card in made)],
        "outcomes": sorted({card.outcome for card in made}),
        "confident": any(card.clean_confidence for card in made),
    }


def cards(results: Results) -> list[Card]:
    """Every sample that the run holds images of, attack by attack; none where images are neither gray nor in colour."""
    classes = results.description["data"]["classes"]
    verdicts = results.verdicts.set_index(["attack", "index"])
    made = []
    for column in results.columns:
        by_index = _last_stage(results, column)
        for index in sorted(by_index):
            if by_index[index][0].shape[0] not in (1, 3):
                return []
            made.append(_card(index, column, verdicts.loc[(column, index)], by_index[index], classes))
    return made


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
    """A data URI of float (C, H, W) in [0, 1]: PNG, and JPEG where that would be large."""
    from PIL import Image

    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    kind, buffer = ("png" if max(pixels.shape[:2]) <= PLAIN else "jpeg"), io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
        buffer, kind, **({} if kind == "png" else {"quality": 92})
    )
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
