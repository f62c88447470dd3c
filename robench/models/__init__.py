"""Models: backbones, heads, and how any of them becomes a Classifier."""

from robench.models.classifier import Classifier
from robench.models.loading import load_classifier

__all__ = ["Classifier", "load_classifier"]
