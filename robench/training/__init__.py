"""Training: data -> model -> checkpoint."""

from robench.training.ranks import Ranks, joined
from robench.training.spec import TrainSpec, check_names
from robench.training.trainer import train

__all__ = ["Ranks", "TrainSpec", "check_names", "joined", "train"]
