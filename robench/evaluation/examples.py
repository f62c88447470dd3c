"""The few images of a run that its report shows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from robench.evaluation.crafting import unwatched
from robench.evaluation.run_folder import ChunkVerdicts
from robench.models.classifier import Classifier
from robench.types import Outcome

if TYPE_CHECKING:
    from robench.types import Images

EXAMPLES = 12  # samples of the first chunk whose images are kept for the report
LARGE, LARGE_EXAMPLES = 96, 4  # pixels a side above which an image is large, and how many of such are kept
ROOM = 5_000_000  # bytes of the images that an attack keeps where they are large: 4 of 224 x 224, 2 of 299 x 299, one of any size


def with_examples(
    classifier: Classifier, verdicts: ChunkVerdicts, images: Images, adv_images: Images, places: np.ndarray
) -> ChunkVerdicts:
    """The same verdicts with images of those of the chosen samples of a chunk that were attacked."""
    rows = np.flatnonzero(np.isin(places, choose_examples(verdicts, how_many(images))))
    clean, adv = images[rows].float(), adv_images[rows].detach().float()
    return replace(
        verdicts,
        shown=verdicts.index[places[rows]],
        shown_clean=clean.cpu().numpy(),
        shown_adv=adv.cpu().numpy(),
        shown_confidence=np.stack([_confidence(classifier, clean), _confidence(classifier, adv)], 1),
    )


def how_many(images: Images) -> int:
    """Of how many samples both images are kept, as float32."""
    if images.shape[-1] <= LARGE:
        return EXAMPLES
    return min(LARGE_EXAMPLES, max(1, ROOM // (2 * 4 * images.shape[1:].numel())))


def choose_examples(verdicts: ChunkVerdicts, count: int) -> np.ndarray:
    """Places of the first correctly classified sample of every class, then of the second, up to ``count``."""
    correct = np.flatnonzero(~np.isin(verdicts.outcome, (Outcome.MISCLASSIFIED, Outcome.INVALID)))
    labels, seen = verdicts.label[correct], np.zeros(len(correct), np.int64)
    for label in np.unique(labels):
        seen[labels == label] = np.arange((labels == label).sum())
    return np.sort(correct[np.argsort(seen, kind="stable")][:count])


@torch.no_grad()
def _confidence(classifier: Classifier, images: Images) -> np.ndarray:
    """Softmax of the predicted class, float32 (N,); NaN for a random model, of which one pass says nothing."""
    if classifier.draws > 1 or not len(images):
        return np.full(len(images), np.nan, np.float32)
    return unwatched(classifier, images).softmax(1).amax(1).cpu().numpy()
