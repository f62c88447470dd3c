"""What a recording relies on of a model and of what is at work around it: looked at before every replay."""

from __future__ import annotations

from itertools import chain
from operator import is_

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_of_all

TABLES = ("_parameters", "_buffers", "_modules")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Parts:
    """What a recording relies on, of a module and its parts: looked at before every replay, so by identity and in few steps.

    Args:
        module: as it is to stay.
    """

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        self._tables = [table for part in parts for table in (vars(part), *(getattr(part, name) for name in TABLES))]
        self._held = list(chain.from_iterable(map(dict.values, self._tables)))
        self._hooks = [vars(part)[name] for part in parts for name in HOOKS if name in vars(part)]
        self._tensors = [each for each in self._held if isinstance(each, Tensor) and is_plain(each)]
        self._places = [each.data_ptr() for each in self._tensors]
        self._trains = any(vars(part).get("training") for part in parts)

    def are_their_own(self) -> bool:
        """Whether nobody has a hook on one of them, wants a gradient of its weights, or has it in training mode."""
        return not (self._trains or any(self._hooks) or any(each.requires_grad for each in self._tensors))

    def are_what_they_were(self) -> bool:
        """Whether each has the same attributes, and its tensors lie where they did; what these hold may have changed."""
        now = list(chain.from_iterable(map(dict.values, self._tables)))
        same = len(now) == len(self._held) and all(map(is_, now, self._held))
        return same and [each.data_ptr() for each in self._tensors] == self._places


def _is_transformed() -> bool:
    """Whether torch.func is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_watched(device: torch.device) -> bool:
    """Whether something follows or changes each operation that is computed now, which a replay would hide from it."""
    saving = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # as ``checkpoint`` does
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    forward = forward_ad._current_level >= 0 or torch.is_inference_mode_enabled()
    other = torch.is_autocast_enabled(device.type) or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return bool(saving or modes or forward or other or _is_transformed() or hooks_of_all._has_any_global_hook())


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is of torch's own kind, with its values one after the other."""
    return type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided
