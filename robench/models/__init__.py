"""Models: backbones, heads, and how any of them becomes a Classifier. The public names load their modules on first use."""

from importlib import import_module

_PUBLIC = {"Classifier": "robench.models.classifier", "load_classifier": "robench.models.subject"}

__all__ = ["Classifier", "load_classifier"]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'robench.models' has no attribute {name!r}")
