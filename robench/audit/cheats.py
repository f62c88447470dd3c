"""Modules that make a model look more robust than it is, and harmless relatives of theirs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Outputs(nn.Module):
    """A model whose outputs go through something."""

    def __init__(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.module(images))


class Inputs(nn.Module):
    """A model behind a stage that its images go through, and that it declares."""

    def __init__(self, stage: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.input_stage, self.module = stage, module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(self.input_stage(images))


class Quantise(nn.Module):
    """Rounds to a few levels, whose gradient is zero (Buckman et al. 2018 encode them as thermometers)."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.levels).round() / self.levels


class Noise(nn.Module):
    """Adds Gaussian noise, fresh at every call."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return images + self.size * torch.randn_like(images)


class Crop(nn.Module):
    """Shifts the batch by up to some pixels, anew at every call (Xie et al. 2018 resize and pad at random)."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: Tensor) -> Tensor:
        padded = F.pad(images, [self.most] * 4)
        top, left = (int(torch.randint(2 * self.most + 1, ())) for _ in range(2))
        return padded[:, :, top : top + images.shape[2], left : left + images.shape[3]]


class KWinners(nn.Module):
    """Keeps the largest activations and zeroes the rest: discontinuous (Xiao et al. 2020)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        kept = features.topk(max(1, int(self.share * features.shape[1])), dim=1).values[:, -1:]
        return features * (features >= kept)


class Detached(nn.Module):
    """Answers as the model does, and lets only a meaningless gradient through."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images.detach()) + 0 * images.flatten(1).sum(1, keepdim=True)


class NoGradient(nn.Module):
    """Computes under ``torch.no_grad``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)


class BatchStatistics(nn.Module):
    """BatchNorm that uses the batch's own statistics for ever, as in training mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        for part in self.module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean = part.running_var = None
                part.track_running_stats = False

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)


class Ripple(nn.Module):
    """Adds a ripple as fine as a level of 8 bits, whose slope is ``c`` times the pixel's own, so that gradients point anywhere."""

    def __init__(self, c: float = 4.0, k: float = 127.5) -> None:
        super().__init__()
        self.c, self.turns = c, 2 * torch.pi * k

    def forward(self, images: Tensor) -> Tensor:
        return images - self.c * torch.sin(self.turns * images) / self.turns
