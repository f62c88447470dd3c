"""One backbone, named heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from robench.models.backbones import BACKBONES
from robench.models.output import MAIN_HEAD
from robench.types import Checkpoint, RobenchError

__all__ = ["MAIN_HEAD", "HeadLogits", "MultiHead", "rebuild"]


class MultiHead(nn.Module):
    """Shared features F and a prediction head per task, the main one among them (Wang & Wang 2021, section 3)."""

    def __init__(self, backbone: str, heads: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        entry = BACKBONES[backbone]
        self.backbone = entry.build()
        self.heads = nn.ModuleDict({name: _head(entry.n_features, **head) for name, head in heads.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Output of every head, name -> (N, width)."""
        features = self.backbone(images)
        return {name: head(features) for name, head in self.heads.items()}


class HeadLogits(nn.Module):
    """One head of a MultiHead as a plain classifier: its first ``n_classes`` outputs."""

    def __init__(self, model: MultiHead, head: str, n_classes: int) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.head = model.heads[head]
        self.n_classes = n_classes

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))[:, : self.n_classes]


def _head(n_features: int, *, layers: str, width: int, classes: int | None = None) -> nn.Module:
    if layers == "linear":
        return nn.Linear(n_features, width)
    return nn.Sequential(nn.Linear(n_features, n_features), nn.ReLU(inplace=True), nn.Linear(n_features, width))


def rebuild(checkpoint: Checkpoint) -> MultiHead:
    """The trained module of a checkpoint, in eval mode.

    Raises:
        RobenchError: the backbone is unknown, or the weights do not fit it.
    """
    if checkpoint.backbone not in BACKBONES:
        raise RobenchError(f"the checkpoint's backbone {checkpoint.backbone!r} is unknown; known: {', '.join(BACKBONES)}")
    try:
        model = MultiHead(checkpoint.backbone, checkpoint.heads)
        model.load_state_dict(dict(checkpoint.weights))
    except (RuntimeError, TypeError, KeyError) as error:
        first = str(error).strip().splitlines()
        raise RobenchError(f"the checkpoint's weights do not fit its {checkpoint.backbone}: {' '.join(first[:2])}") from None
    return model.eval()
