"""What every source of a model hands over; apart from the list of sources, which imports them all. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that a source has loaded.

    Attributes:
        module: takes images, [0, 1] or normalised by ``mean`` and ``std``.
        name: for titles and folder names.
        origin: what run.json says about it beside ``--model``.
        code: of the program that it is, which its digest covers; b"" where its classes say it all.
        mean, std: of the normalisation that its files name; empty where they name none.
        classes: what its files call its outputs; empty where they do not.
        notes: what is to be known of how it was loaded, in sentences for the user.
    """

    module: nn.Module
    name: str
    origin: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    code: bytes = b""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
