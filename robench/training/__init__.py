"""Training: data -> model -> checkpoint."""

from robench.training.spec import TrainSpec
from robench.training.trainer import train

__all__ = ["TrainSpec", "train"]
