"""Training: data -> model -> checkpoint."""

from robench.training.trainer import TrainSpec, train

__all__ = ["TrainSpec", "train"]
