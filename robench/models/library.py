"""Architectures by name, of torchvision and of timm."""

from __future__ import annotations

from typing import Any

from torch import nn

from robench.data import did_you_mean
from robench.models.loaded_model import LoadedModel
from robench.types import Dataset, ExternalModel, RobenchError

NO_TIMM = "timm is not installed: pip install 'robench[models]'"


def load_torchvision(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    """``torchvision:NAME``, a classifier of torchvision.models with as many outputs as the data has classes.

    Raises:
        RobenchError: torchvision has no such classifier, or no weights were named.
    """
    import torchvision

    name = external.reference.partition(":")[2]
    refuse_unknown_torchvision(name)
    weights = _needs_weights(external)
    return LoadedModel(torchvision.models.get_model(name, weights=None, num_classes=len(dataset.classes)), f"{name}-{weights}")


def load_timm(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    """``timm:NAME``, with as many outputs as the data has classes and as many inputs as its images have channels.

    Raises:
        RobenchError: timm is not installed or has no such model, or no weights were named.
    """
    name = external.reference.partition(":")[2]
    _timm()
    weights = _needs_weights(external)
    return LoadedModel(build_timm(name, num_classes=len(dataset.classes), in_chans=dataset.image_shape[0]), f"{name}-{weights}")


def build_timm(name: str, **settings: Any) -> nn.Module:
    """An architecture of timm with fresh weights.

    Raises:
        RobenchError: timm is not installed, has no such model, or refuses a setting.
    """
    timm = _timm()
    refuse_unknown_timm(name)
    try:
        return timm.create_model(name, pretrained=False, **settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RobenchError(f"timm cannot build {name} with {settings}: {error}") from None


def refuse_unknown_torchvision(name: str) -> None:
    """Refuses a name that torchvision has no classifier of.

    Raises:
        RobenchError: so it is.
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise RobenchError(
            f"`model=torchvision:{name}`: torchvision {torchvision.__version__} has no classifier of that name{did_you_mean(name, known)}"
        )


def refuse_unknown_timm(name: str) -> None:
    """Refuses a name that timm has no model of.

    Raises:
        RobenchError: so it is, or timm is not installed.
    """
    timm = _timm()
    if not timm.is_model(name):
        raise RobenchError(f"timm {timm.__version__} has no model {name!r}{did_you_mean(name, timm.list_models())}")


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise RobenchError(NO_TIMM) from None
    return timm


def _needs_weights(external: ExternalModel) -> str:
    """The stem of the weights file."""
    if external.weights is None:
        raise RobenchError(
            f"`model={external.reference}` names an architecture, whose weights would be random: add `weights=FILE`, its state dict "
            "(safetensors, or torch.save of one)"
        )
    return external.weights.stem
