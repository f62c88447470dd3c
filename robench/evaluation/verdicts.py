"""What samples turned out to be, by what an attack returned and what it asked the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robench.evaluation.crafting import Conditions, Cost, Crafted
from robench.evaluation.judge import Judgement, judge
from robench.evaluation.memory import retry_in_smaller_passes
from robench.evaluation.run_folder import ChunkVerdicts
from robench.models.classifier import Classifier
from robench.types import Outcome

if TYPE_CHECKING:
    from robench.types import Images, Labels


@dataclass(frozen=True, eq=False, kw_only=True)
class AttackedVerdicts:
    """What the samples that were attacked turned out to be; see ``ChunkVerdicts``.

    Attributes:
        images: the returned ones, in their place the best query where only that one is adversarial and it counts or is to be saved,
            and the clean image where it is invalid or there is none; None where there are none at all.
    """

    outcome: np.ndarray
    best: np.ndarray
    adv_pred: np.ndarray
    distance: np.ndarray
    margin: np.ndarray
    message: str = ""
    ties: int = 0
    images: Images | None = field(default=None)
    broken_at: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def nothing(cls, images: Images) -> AttackedVerdicts:
        """Of no samples.

        Args:
            images: (0, C, H, W).
        """
        text, number = np.zeros(0, "U13"), np.zeros(0, np.float32)
        return cls(outcome=text, best=text, adv_pred=np.zeros(0, np.int64), distance=number, margin=number, images=images)


def judge_crafted(
    classifier: Classifier, images: Images, labels: Labels, crafted: Crafted, conditions: Conditions
) -> AttackedVerdicts:
    """What the returned images are, and what the best queries add to them."""
    n, message, adv_images = len(images), crafted.message, crafted.returned
    outcome, adv_pred = np.full(n, Outcome.ERROR, "U13"), np.full(n, -1)
    distance = margin = np.full(n, np.nan, np.float32)
    if adv_images is not None:
        judged = judged_of(classifier, images, labels, adv_images, conditions)
        outcome, adv_pred, message = np.array(judged.outcomes, "U13"), judged.adv_pred.numpy(), judged.complaint
        distance, margin = judged.distance.numpy(), judged.margin.numpy()
    rows = np.flatnonzero(crafted.broken.cpu().numpy() & (outcome != Outcome.BROKEN))
    best, ties = outcome.copy(), crafted.ties
    if isinstance(adv_images, Tensor) and adv_images.shape == images.shape:
        invalid = torch.from_numpy(outcome == Outcome.INVALID).to(images.device)
        adv_images = torch.where(invalid[:, None, None, None], images, adv_images.to(images))
    else:
        adv_images = images.clone() if len(rows) and conditions.save else None
    if len(rows):
        row_index = torch.from_numpy(rows).to(images.device)
        seen = judged_of(classifier, images[row_index], labels[row_index], crafted.best[row_index], conditions)
        held = np.array(seen.outcomes) == Outcome.BROKEN
        rows, ties = rows[held], ties + (int((~held).sum()) if classifier.draws == 1 else 0)
        best[rows] = Outcome.BROKEN
        if conditions.count_queries:
            outcome[rows], adv_pred[rows] = Outcome.BROKEN, seen.adv_pred.numpy()[held]
            distance[rows], margin[rows] = seen.distance.numpy()[held], seen.margin.numpy()[held]
        if adv_images is not None and (conditions.count_queries or conditions.save):
            adv_images[rows] = crafted.best[rows]
    return AttackedVerdicts(
        outcome=outcome, best=best, adv_pred=adv_pred, distance=distance, margin=margin, message=message, ties=ties, images=adv_images,
        broken_at=crafted.broken_at.cpu().numpy(),
    )  # fmt: skip


def judged_of(classifier: Classifier, images: Images, labels: Labels, adv_images: Images, conditions: Conditions) -> Judgement:
    """As ``judge``, in smaller passes where memory runs out."""
    return retry_in_smaller_passes(
        classifier, len(images), lambda: judge(classifier, images, labels, adv_images, conditions.threat)
    )


def over_whole_chunk(
    judged: AttackedVerdicts, clean: ChunkVerdicts, *, before: np.ndarray, places: np.ndarray, cost: Cost, machine: str, peak: int
) -> ChunkVerdicts:
    """What was found at ``places`` as verdicts of the whole chunk. A model that is wrong already is not broken by anything."""
    wrong = before == Outcome.MISCLASSIFIED
    outcome = np.where(wrong, Outcome.MISCLASSIFIED, Outcome.SKIPPED).astype("U13")
    outcome[clean.clean_pred < 0] = Outcome.ERROR
    best, adv_pred = outcome.copy(), np.where(wrong, clean.clean_pred, -1)
    distance, margin = np.where(wrong, 0, np.nan).astype(np.float32), np.full(len(before), np.nan, np.float32)
    broken_at = np.full(len(before), np.nan, np.float32)
    at_the_end = np.where(np.isnan(judged.broken_at), cost.forwards + 2 * cost.backwards, judged.broken_at)
    broken_at[places] = np.where(judged.best == Outcome.BROKEN, at_the_end, np.nan)
    adv_pred[places], distance[places], margin[places] = judged.adv_pred, judged.distance, judged.margin
    outcome[places] = np.where(wrong[places], Outcome.MISCLASSIFIED, judged.outcome)
    best[places] = np.where(wrong[places], Outcome.MISCLASSIFIED, judged.best)
    return ChunkVerdicts(
        index=clean.index, label=clean.label, clean_pred=clean.clean_pred, outcome=outcome, adv_pred=adv_pred, distance=distance,
        margin=margin, forwards=cost.forwards, backwards=cost.backwards, seconds=cost.seconds, machine=machine,
        message=judged.message or clean.message, best=best, ties=judged.ties, mode=cost.mode, peak_bytes=peak, broken_at=broken_at,
    )  # fmt: skip
