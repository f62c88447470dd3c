"""RECIPES: what the paper's text says, and what its authors' code ran."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def paper_rate(step: int, steps_per_epoch: int, epochs: int) -> float:
    """Share of the learning rate at a step: 1 for the first tenth of the training, then a half cosine to zero.

    Source: Wang & Wang 2021, section 4 ("cosine after the first 10 epochs" of 100).
    """
    progress = (step / (steps_per_epoch * epochs) - 0.1) / 0.9
    return 0.5 * (1 + math.cos(math.pi * max(0.0, progress)))


def authors_rate(step: int, steps_per_epoch: int, epochs: int) -> float:
    """The same in the authors' code: a cosine whose period is the number of batches, stepped once an epoch from the tenth on.

    With 195 batches and 100 epochs the rate ends at 0.56 of its start.
    """
    epoch = step // steps_per_epoch
    return 0.5 * (1 + math.cos(math.pi * max(0, epoch - 10) / steps_per_epoch))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults of a training.

    Attributes:
        rate: ``rate(step, steps_per_epoch, epochs) -> share of lr``.
        main_width: outputs of the single-task head, None for as many as classes.
        sum_views: see ``Terms``.
        about: one line.
    """

    rate: Callable[[int, int, int], float]
    main_width: int | None
    sum_views: bool
    about: str
    epochs: int = 100
    batch_size: int = 256
    lr: float = 3e-4
    weight_decay: float = 1e-4
    temperature: float = 0.07


RECIPES: dict[str, Recipe] = {
    # The text gives no lambda and no temperature: every lambda is 0.5 (see OBJECTIVES), and the temperature the code's.
    "paper": Recipe(
        rate=paper_rate,
        main_width=None,
        sum_views=True,
        about="what the text says: eq. 1-5, constant rate for a tenth of the epochs, then cosine to zero",
    ),
    # Their single-task head is 1000 wide, and its cross-entropy runs over all 1000.
    "authors": Recipe(
        rate=authors_rate,
        main_width=1000,
        sum_views=False,
        about="what their code ran: NT-Xent at weight 1, a rate that hardly falls, a head 1000 wide for the single task",
    ),
}
