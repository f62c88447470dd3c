"""How picture files become pixels: what the user asked for, what the model's files say, and what is made of both."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from robench.data.preprocessing import OwnPreprocessing, Preprocessing, given_preprocessing, refuse_unreadable
from robench.types import RobenchError

SHOWN = 4  # sizes that a message names


class Settled(NamedTuple):
    """What happens to every picture: None for nothing; the size of the pixels, height and width; and the same as run.json has it."""

    preprocessing: Preprocessing | None
    size: tuple[int, int]
    described: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How picture files are to be read.

    Attributes:
        resize, crop, interpolation: what the user asked for, as ``ExternalData`` has it.
        own: what the model's files say, None where they say nothing.
        check: decode every file first, to see that it is whole.
        subset: a named part of the data set, None for all of it.
        told: say on stderr what was settled.
        recorded: see ``ExternalData``.
    """

    resize: str | None = None
    crop: str | None = None
    interpolation: str | None = None
    own: OwnPreprocessing | None = None
    check: bool = False
    subset: str | None = None
    told: bool = False
    recorded: bool = False

    def __post_init__(self) -> None:
        refuse_unreadable(self.resize, self.crop, self.interpolation)

    def settled(self, sizes: Mapping[tuple[int, int], int], named: str, default: Preprocessing | None = None) -> Settled:
        """What is done to pictures of these sizes.

        What the user gave; else what the model's files say, unless all pictures have the model's size already, or all have one other
        size and only the library says what its own weights of that architecture take; else ``default``.

        Args:
            sizes: how many pictures have which height and width.
            named: the data, for messages.
            default: of a data set that has a usual preprocessing.

        Raises:
            RobenchError: pictures differ in size, and nothing says what to make of them; or a crop is larger than a picture.
        """
        base = default if self.own is None else self.own.preprocessing
        given = given_preprocessing(self.resize, self.crop, self.interpolation, base, recorded=self.recorded)
        chosen = given if given is not None else self._of_model(sizes, named, default)
        made = {(chosen or Preprocessing()).size_of(*size) for size in sizes}
        if len(made) > 1:
            raise RobenchError(self._unequal(sizes, named, chosen))
        if not chosen:  # what was asked for is recorded: without a word a default would apply
            return Settled(None, made.pop(), {} if given is None else {"preprocessing": given.words, "steps": given.to_json()})
        if self.told:
            print(f"robench: {named}: every picture: {chosen.words}", file=sys.stderr)
        return Settled(chosen, made.pop(), {"preprocessing": chosen.words, "steps": chosen.to_json()})

    def _of_model(self, sizes: Mapping[tuple[int, int], int], named: str, default: Preprocessing | None) -> Preprocessing | None:
        if self.own is None:
            return default
        says = self.own.preprocessing
        if len(sizes) > 1 or default is not None:
            return says
        (size,) = sizes
        if size == says.crop or (says.crop is None and says.size_of(*size) == size):
            return None
        if self.own.of_these_weights:
            return says
        if self.told:
            by = "x".join(map(str, size))
            print(
                f"robench: {named}: pictures are taken as they are, {by}; {says.origin} says: {says}; a `resize` and a `crop` that are given do so",
                file=sys.stderr,
            )
        return None

    def _unequal(self, sizes: Mapping[tuple[int, int], int], named: str, chosen: Preprocessing | None) -> str:
        most = sorted(sizes.items(), key=lambda each: -each[1])[:SHOWN]
        seen = ", ".join(f"{width}x{height}: {count}" for (height, width), count in most) + (", ..." if len(sizes) > SHOWN else "")
        if chosen:
            return f"the images in {named} differ in size ({seen}), also after `resize={chosen.resize}`: give `crop` too, such as `crop=224`"
        return (
            f"the images in {named} differ in size ({seen}), and nothing says what the model takes: give `resize=256` `crop=224`, with the "
            "sizes that it was trained with, or scale them to one size first"
        )

    def refuse_subset(self, named: str) -> None:
        """Refuses a subset of data that has none.

        Raises:
            RobenchError: one was named.
        """
        if self.subset is not None:
            raise RobenchError(f"`subset={self.subset}` is of `dataset=imagenet`; {named} has none")


AS_THEY_ARE = Reading()
