"""From a picture of any size to the pixels that a model is judged on: before the threat model, which is about those pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from robench.types import RobenchError

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")
NONE = "none"
LARGEST_SIDE = 10_000  # pixels


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """A resize and a centre crop, as torchvision does them on PIL images; either may be left out.

    Where a crop is larger than the picture, black is put around it. A few models' files ask for that; a user who does is refused.

    Attributes:
        resize: 256 scales the short side to 256 pixels, (height, width) scales to just that size; None leaves the size.
        crop: height and width of the centre that is kept; None keeps all.
        interpolation: of the resize, one of ``INTERPOLATIONS``.
        origin: whose it is, such as "timm's pretrained_cfg of resnet18"; "" where the user gave it.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    origin: str = ""

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise RobenchError(f"`interpolation={self.interpolation}`: expected one of {', '.join(INTERPOLATIONS)}")

    def __bool__(self) -> bool:
        return self.resize is not None or self.crop is not None

    def __str__(self) -> str:
        resized = f"short side to {self.resize}" if isinstance(self.resize, int) else f"scaled to {_by(self.resize)}"
        parts = [f"{resized} ({self.interpolation})"] if self.resize is not None else []
        parts += [f"the centre {_by(self.crop)}"] if self.crop is not None else []
        return ", then ".join(parts) or "as they are"

    @property
    def words(self) -> str:
        """The same with its origin, for people."""
        return f"{self}, as {self.origin} says" if self.origin else str(self)

    def to_json(self) -> dict[str, Any]:
        """As run.json has it."""
        return {"resize": self.resize, "crop": self.crop, "interpolation": self.interpolation, "origin": self.origin}

    def to_options(self) -> dict[str, str]:
        """As a user gives it, see ``ExternalData``."""
        return {"resize": _side(self.resize), "crop": _side(self.crop), "interpolation": self.interpolation}

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> Preprocessing:
        """What ``to_json`` wrote."""
        sides = {name: tuple(side) if isinstance(side := written.get(name), list) else side for name in ("resize", "crop")}
        return cls(**sides, interpolation=written.get("interpolation", "bilinear"), origin=written.get("origin", ""))

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the pixels that an image of this size becomes.

        Raises:
            RobenchError: the crop is larger than the image, and no model's files ask for that.
        """
        height, width = self._resized(height, width)
        if self.crop is None:
            return height, width
        if not self.origin and (self.crop[0] > height or self.crop[1] > width):
            raise RobenchError(
                f"`crop={_side(self.crop)}` is larger than an image of {_by((height, width))}: give `resize` too, or a smaller crop"
            )
        return self.crop

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.resize, int):
            return self.resize or (height, width)
        short, long = sorted((height, width))
        other = int(self.resize * long / short)  # as torchvision rounds it
        return (self.resize, other) if height <= width else (other, self.resize)

    def apply(self, image: Image) -> Image:
        """The picture as its pixels are to be."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import center_crop, resize

        if self.resize is not None:
            size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
            image = resize(image, size, InterpolationMode(self.interpolation))
        return image if self.crop is None else center_crop(image, list(self.crop))


@dataclass(frozen=True)
class OwnPreprocessing:
    """What a model's files say about preprocessing.

    Attributes:
        preprocessing: what they say.
        of_these_weights: whether it lies beside the weights; else it is what a library says of an architecture's own weights.
    """

    preprocessing: Preprocessing
    of_these_weights: bool


def parse_side(text: str, name: str) -> int | tuple[int, int] | None:
    """What ``--resize`` and ``--crop`` mean: "256", "256x224" for height and width, or "none".

    Raises:
        RobenchError: it is none of these.
    """
    parts = text.lower().replace(",", "x").split("x")
    if text == NONE:
        return None
    if len(parts) > 2 or not all(part.strip().isdecimal() and 0 < int(part) <= LARGEST_SIDE for part in parts):
        raise RobenchError(f"`{name}={text}`: expected a number of pixels such as 224, height x width such as 224x320, or none")
    sides = [int(part) for part in parts]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def refuse_unreadable(resize: str | None, crop: str | None, interpolation: str | None) -> None:
    """Refuses texts that mean nothing, before any picture is looked at.

    Raises:
        RobenchError: so it is.
    """
    for name, text in (("resize", resize), ("crop", crop)):
        if text is not None:
            parse_side(text, name)
    if interpolation is not None:
        Preprocessing(interpolation=interpolation)


def given_preprocessing(
    resize: str | None, crop: str | None, interpolation: str | None, own: Preprocessing | None, *, recorded: bool = False
) -> Preprocessing | None:
    """What the user gave, filled up with what the model's files or the data set say; None where nothing was given.

    Args:
        resize, crop: see ``parse_side``.
        interpolation: of the resize.
        own: what is said otherwise.
        recorded: a finished run did so, and a crop may be larger than the resized picture.

    Raises:
        RobenchError: a text means nothing, or the crop is larger than the resized image.
    """
    if resize is None and crop is None and interpolation is None:
        return None
    if own is None and resize is None and crop is None:
        raise RobenchError(f"`interpolation={interpolation}` is about a resize: give `resize` too")
    changed: dict[str, Any] = {"origin": ""}
    if resize is not None:  # a crop that belongs to another size is not meant
        changed |= {"resize": parse_side(resize, "resize"), "crop": None}
    if crop is not None:
        side = parse_side(crop, "crop")
        changed["crop"] = (side, side) if isinstance(side, int) else side
    if interpolation is not None:
        changed["interpolation"] = interpolation
    given = replace(own or Preprocessing(), **changed)
    if recorded:
        return replace(given, origin="the run")
    if given.resize is not None and given.crop is not None:
        smallest = (given.resize, given.resize) if isinstance(given.resize, int) else given.resize
        if any(cut > side for cut, side in zip(given.crop, smallest, strict=True)):
            raise RobenchError(
                f"`crop={_side(given.crop)}` is larger than `resize={_side(given.resize)}`: the crop would be filled up with black; give a "
                "crop of at most the resized size"
            )
    return given


def _by(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size)) if size else NONE


def _side(side: int | tuple[int, int] | None) -> str:
    return str(side) if isinstance(side, int) else _by(side)
