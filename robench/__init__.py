"""robench: train multi-head image classifiers, attack any of them, and say whether the robustness number is real.

The public names below load their modules on first use, so that ``robench --help`` answers without importing torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {  # docs/python.md says what each is
    "evaluate": "robench.run.evaluate",
    "Evaluation": "robench.run.evaluate",
    "attack": "robench.authoring",
    "Attack": "robench.types",
    "AttackFn": "robench.types",
    "ReturnPolicy": "robench.types",
    "Column": "robench.types",
    "ThreatModel": "robench.types",
    "Outcome": "robench.types",
    "Dataset": "robench.types",
    "ExternalData": "robench.types",
    "load_dataset": "robench.data",
    "train": "robench.training.trainer",
    "TrainSpec": "robench.training.spec",
    "load_checkpoint": "robench.checkpoint",
    "load_classifier": "robench.models",
    "RobenchError": "robench.types",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'robench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
