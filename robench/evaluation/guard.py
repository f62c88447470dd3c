"""Notices what an attack did to the model that it was lent, and undoes it."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.models.classifier import Classifier


class Guard:
    """A copy of the weights, to compare with after every attack.

    Args:
        classifier: as it is to stay.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._weights = {name: tensor.detach().clone() for name, tensor in _tensors(classifier).items()}

    @torch.no_grad()
    def restore(self, by: str = "the attack") -> str:
        """What was changed since the guard was made, said to be changed ``by`` it, put back to what it was; "" if nothing was."""
        training = [
            name for name, module in self.classifier.named_modules() if getattr(module, "training", False)
        ]  # a frozen script has no mode
        changed = _differing(_tensors(self.classifier), self._weights)
        for name in changed:
            _tensors(self.classifier)[name].copy_(self._weights[name])
        for module in self.classifier.modules():
            if getattr(module, "training", False):
                module.training = False
        self.classifier.requires_grad_(False)
        changes = [f"changed the model's weights ({_some(changed)})"] if changed else []
        changes += [f"switched layers to train mode ({_some(training)})"] if training else []
        return f"{by} {' and '.join(changes)}; they were put back" if changes else ""


def _tensors(classifier: Classifier) -> dict[str, Tensor]:
    return dict(classifier.named_parameters()) | dict(classifier.named_buffers())


def _differing(tensors: dict[str, Tensor], before: dict[str, Tensor]) -> list[str]:
    """Names of those that are not what they were. A device is waited for once, whatever their number."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        same = torch.tensor(_same(tensor, before[name])) if tensor.device.type == "cpu" else same_on_device(tensor, before[name])
        by_device.setdefault(same.device, {})[name] = same
    known = {
        name: bool(same)
        for of_one in by_device.values()
        for name, same in zip(of_one, torch.stack([*of_one.values()]).tolist(), strict=True)
    }
    return [name for name in tensors if not known[name]]


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first, second) or (first.is_floating_point() and torch.equal(first.nan_to_num(), second.nan_to_num()))


def same_on_device(first: Tensor, second: Tensor) -> Tensor:
    """Whether two tensors hold the same, NaN where the other one has it, as a bool on their device that nobody has waited for."""
    if first.shape != second.shape:
        return torch.zeros((), dtype=torch.bool, device=first.device)
    return ((first == second) | ((first != first) & (second != second))).all()


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
