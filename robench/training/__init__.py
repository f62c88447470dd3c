"""Training: data -> model -> checkpoint."""

from robench.training.spec import TrainSpec, check_names
from robench.training.trainer import train

__all__ = ["TrainSpec", "check_names", "train"]
