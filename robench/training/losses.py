"""The losses of the paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two views, a mean over the 2n anchors.

    Each embedding must pick its other view among the 2n - 1 others, by cosine similarity over ``temperature``. Identical
    embeddings give log(2n - 1).

    Args:
        first: embeddings of one view, (n, d), before normalisation.
        second: of the other view, row i belonging to row i.
        temperature: > 0.

    Source: Chen et al. 2020, eq. 1; Wang & Wang 2021, eq. 4.
    """
    n = len(first)
    embeddings = F.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = embeddings @ embeddings.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * n, device=first.device).roll(n)
    return F.cross_entropy(similarity, partner)
