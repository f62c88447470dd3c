"""What a model's files say about preprocessing."""

from __future__ import annotations

from robench.data.preprocessing import OwnPreprocessing
from robench.types import ExternalModel


def own_preprocessing(external: ExternalModel) -> OwnPreprocessing | None:
    """What a model's files say, None where they say nothing."""
    return None
