"""BACKBONES: image -> features. Each is one function and one registry line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallMapConv2d(nn.Conv2d):
    """A 3x3 convolution (padding 1) that skips the taps which only ever multiply padding.

    On maps of 1x1 and 2x2, where the paper's backbone spends its last two layers at 32x32 input, five to eight of nine taps
    meet nothing but zeros. There the convolution is one dense matrix product of the taps that remain: the same function
    (logits equal to 1e-6), parameters and state dict, and 2.3 times the training speed on two AVX2 cores (``benchmarks/training.py``).
    """

    def forward(self, images: Tensor) -> Tensor:
        size, stride = images.shape[-1], self.stride[0]
        if size > 2 or images.shape[-2] != size:
            return super().forward(images)
        side = -(-size // stride)
        flat = F.linear(images.permute(0, 2, 3, 1).flatten(1), self.dense(self.weight, size))
        return flat.view(len(images), side, side, -1).permute(0, 3, 1, 2)

    def dense(self, weight: Tensor, size: int) -> Tensor:
        """The matrix that the convolution is on maps of ``size`` x ``size``: (out * side * side, in * size * size), channels last."""
        taps, side = weight.permute(0, 2, 3, 1), -(-size // self.stride[0])  # (out, 3, 3, in)
        offsets = [1 - self.stride[0] * place for place in range(side)]
        return torch.cat([taps[:, y : y + size, x : x + size].flatten(1) for y in offsets for x in offsets])


def _skip_padding_taps(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.bias is None:
                faster = SmallMapConv2d(conv.in_channels, conv.out_channels, 3, stride=conv.stride[0], padding=1, bias=False)
                faster.weight = conv.weight
                parent.register_module(name, faster)


def dead_taps(backbone: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Weights of 3x3 convolutions that only ever multiply padding at this image size: parameter name to a mask (1, 1, 3, 3)."""
    masks: dict[str, Tensor] = {}

    def note(name: str, conv: nn.Conv2d, size: tuple[int, int]) -> None:
        rows, columns = (_live(length, conv.stride[0]) for length in size)
        masks[f"{name}.weight"] = ~(rows[:, None] & columns[None, :])[None, None]

    hooks = [
        module.register_forward_pre_hook(
            partial(lambda conv, inputs, name: note(name, conv, tuple(inputs[0].shape[-2:])), name=name)
        )
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.padding == (1, 1)
    ]
    with torch.no_grad():
        backbone(torch.zeros(1, *image_shape))
    for hook in hooks:
        hook.remove()
    return masks


def _live(size: int, stride: int) -> Tensor:
    """Which of three taps ever meet a pixel of ``size``, with padding 1, bool (3,)."""
    starts = range(-1, size, stride)[: -(-size // stride)]
    return torch.tensor([any(0 <= start + tap < size for start in starts) for tap in range(3)])


def _resnet18() -> nn.Module:
    from torchvision.models import resnet18

    backbone = resnet18(weights=None)
    backbone.fc = nn.Identity()
    _skip_padding_taps(backbone)
    return backbone


def _resnet18_cifar() -> nn.Module:
    backbone = _resnet18()
    backbone.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    backbone.maxpool = nn.Identity()
    return backbone


def _small() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())


@dataclass(frozen=True)
class BackboneEntry:
    """``build() -> module`` from images (N, 3, H, W) to features (N, n_features)."""

    build: Callable[[], nn.Module]
    n_features: int
    about: str


BACKBONES: dict[str, BackboneEntry] = {
    "resnet18": BackboneEntry(_resnet18, 512, "the paper's: torchvision's ResNet-18 with the ImageNet stem (7x7/2, max-pool)"),
    "resnet18-cifar": BackboneEntry(
        _resnet18_cifar, 512, "ResNet-18 with a 3x3/1 stem and no max-pool, as RobustBench's entries have it"
    ),
    "small": BackboneEntry(_small, 256, "three strided convolutions, 24,000 weights: for digits and quick looks"),
}
