"""Gradients through what has none: rounding, detaching, and an input stage that a model declares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

STEPS = frozenset((torch.round, Tensor.round, torch.floor, Tensor.floor, torch.ceil, Tensor.ceil, torch.trunc, Tensor.trunc))
CUTS = frozenset((torch.detach, Tensor.detach))
INPUT_STAGE = "input_stage"  # the name by which a model declares a module that keeps its input's shape


class StraightThrough(nn.Module):
    """A module in which everything that rounds, detaches or forbids gradients passes them on unchanged, and so does its input stage.

    The forward pass stays what it is. A model declares an input stage (a compression, a filter) by having a submodule called
    ``input_stage`` that returns images of the shape which it was given.

    Source: Athalye, Carlini, Wagner 2018, https://arxiv.org/abs/1802.00420, section 4.1 (BPDA with the identity).
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        stages = [part for name, part in self.module.named_modules() if name.split(".")[-1] == INPUT_STAGE]
        hooks = [stage.register_forward_hook(_identity_backwards) for stage in stages]
        try:
            if not torch.is_grad_enabled():
                return self.module(inputs)
            with _PassOn():
                return self.module(inputs)
        finally:
            for hook in hooks:
                hook.remove()


def _identity_backwards(stage: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    given = inputs[0]
    same = isinstance(output, Tensor) and output.shape == given.shape
    return given + (output - given).data if same else output


class _PassOn(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in CUTS:
            return args[0]
        if func is torch._C._set_grad_enabled:  # torch.no_grad
            return None
        result = func(*args, **(kwargs or {}))
        return args[0] + (result - args[0]).data if func in STEPS else result
