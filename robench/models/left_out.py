"""What a state dict holds beside the tensors of a module: a normalisation, which is used, and the rest, which is told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from robench.types import ExternalModel, RobenchError

LISTED = 6
ALIKE = 1e-3  # of values that were rounded, or stored in half precision
NAME = re.compile(r"_*((new|image|pixel|norm|channel|data|dataset)_)?(mean|mu|std|sigma)s?(_(tensor|image|rgb))?_*", re.IGNORECASE)
MEANS = ("mean", "mu")


class Normalisation(NamedTuple):
    """Mean and std, per channel or one number for all, in pixel units of [0, 1]; empty where there is none."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def is_plausible(self) -> bool:
        """Whether it can be one of pixels in [0, 1]."""
        return all(0 <= value <= 1 for value in self.mean) and all(0 < value <= 1 for value in self.std)

    def is_like(self, other: Normalisation) -> bool:
        """Whether both do the same to pixels, but for rounding."""
        ours, theirs = ((*_wide(each.mean, other_mean), *_wide(each.std, other_std)) for each, other_mean, other_std in (
            (self, other.mean, other.std), (other, self.mean, self.std)
        ))  # fmt: skip
        return len(ours) == len(theirs) and all(abs(one - two) <= ALIKE for one, two in zip(ours, theirs, strict=True))

    def __str__(self) -> str:
        return " and ".join(
            f"{name} {','.join(f'{value:.4g}' for value in values)}" for name, values in self._asdict().items() if values
        )


@dataclass(frozen=True)
class Settled:
    """What was made of the tensors that a module has no place for.

    Attributes:
        normalise: in front of the module, where the user gives none.
        origin: what run.json says of them.
        notes: what the user is told, in sentences.
    """

    normalise: Normalisation
    origin: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def settle(left_out: Mapping[str, Tensor], path: Path, external: ExternalModel, channels: int, said: Normalisation) -> Settled:
    """Looks for a normalisation among the tensors that a module has no place for, since without it every number would be wrong.

    Args:
        left_out: by name.
        path: their file, for messages.
        external: the model; what its user gives wins.
        channels: of the images.
        said: the normalisation that other entries of the model's files name.

    Raises:
        RobenchError: something looks like a normalisation and is half of one, is in other units, or there are several, and the user
            says nothing.
    """
    found, names = _found(left_out, channels)
    users, notes, origin = Normalisation(external.mean, external.std), [], {}
    if names and users.mean:
        if not (found and all(each.is_like(users) for each in found)):
            notes.append(f"{path} holds what looks like a normalisation ({_shown(left_out, names)}); yours is used, {users}")
    elif names:
        said = _the_one(found, said, path, _shown(left_out, names))
        origin["normalisation of the weights"] = names_of(names)
        notes.append(f"{path} holds a normalisation ({names_of(names)}), which is used: {said}; `mean` and `std` replace it")
        left_out = {name: tensor for name, tensor in left_out.items() if name not in names}
    rest = [name for name in left_out if name not in names]
    if rest:
        notes.append(f"{path} holds tensors that are no part of the model, which are left out: {names_of(rest)}")
    if left_out:
        origin["weights left out"] = names_of(left_out)
    return Settled(said, origin, tuple(notes))


def names_of(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _found(left_out: Mapping[str, Tensor], channels: int) -> tuple[list[Normalisation], list[str]]:
    """The normalisations among some tensors, incomplete ones with only a mean or a std, and the names of all that belongs to them."""
    parents: dict[str, tuple[list[str], list[str]]] = {}
    for name, tensor in left_out.items():
        parent, _, last = name.rpartition(".")
        match = NAME.fullmatch(last)
        if match and tensor.is_floating_point() and tensor.numel() in (1, channels):
            parents.setdefault(parent, ([], []))[0 if match[3].lower() in MEANS else 1].append(name)
    found, names = [], []
    for means, stds in parents.values():
        values = [[tuple(left_out[name].float().flatten().tolist()) for name in each] for each in (means, stds)]
        for place in range(max(len(means), len(stds))):
            mean, std = (each[place] if place < len(each) else () for each in values)
            each = Normalisation(_wide(mean, std), _wide(std, mean))
            if each.is_plausible or (mean and std):  # half of one that cannot be meant is none
                found.append(each)
                names += [*means[place : place + 1], *stds[place : place + 1]]
    return found, names


def _the_one(found: list[Normalisation], said: Normalisation, path: Path, shown: str) -> Normalisation:
    """The normalisation that is meant."""
    one = found[0]
    if not all(each.mean and each.std for each in found):
        problem = "which looks like a part of a normalisation"
    elif not all(each.is_plausible for each in found):
        problem = "which looks like a normalisation, but not of pixels in [0, 1]"
    elif not all(each.is_like(one) for each in found):
        problem = "which looks like several normalisations"
    elif said.mean and not said.is_like(one):
        problem = f"but elsewhere the model's files say {said}"
    else:
        return said if said.mean else one
    raise RobenchError(
        f"{path} holds {shown} beside the model, {problem}; say what is meant with `mean` and `std` (`mean=0` `std=1` for none)"
    )


def _shown(left_out: Mapping[str, Tensor], names: list[str]) -> str:
    values = (",".join(f"{value:.4g}" for value in left_out[name].float().flatten().tolist()) for name in names)
    return names_of(f"{name} {each}" for name, each in zip(names, values, strict=True))


def _wide(values: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    """One number for all channels as one per channel, where the other has that."""
    return values * len(other) if len(values) == 1 and other else values
