"""One picture file: what its header says, whether it is whole, and its pixels as RGB."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from robench.data.arrays import refuse_deep_images
from robench.types import RobenchError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from robench.data.preprocessing import Preprocessing

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # what the last bytes of a whole file hold
TAIL = 1024  # bytes at the end of a file that are looked at; cameras append a little
TURNED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
# What turns a picture of each EXIF orientation upright, by PIL's names.
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
# What PIL's decoders raise of damaged files and of odd EXIF data.
DAMAGED = (
    OSError, SyntaxError, ValueError, IndexError, TypeError, KeyError, EOFError, OverflowError, AttributeError, ZeroDivisionError, struct.error,
)  # fmt: skip
ORIENTATION = 0x0112


class Header(NamedTuple):
    """What is known of a picture without decoding it: its size as it is stored, and its EXIF orientation, 1 where it needs no turn."""

    height: int
    width: int
    orientation: int


def check_picture(content: bytes, *, decode: bool = False) -> Header:
    """The header of a picture; one whose end is missing, or of a kind whose end says nothing, is decoded to see whether it is whole.

    Of a PNG the checksums are compared. A JPEG has none: one that was overwritten in its middle decodes to other pixels, and nobody can tell.

    Args:
        content: of the file.
        decode: decode it in any case.

    Raises:
        RobenchError: it is no picture, or damaged; the message is a part of a sentence.
    """
    from PIL import Image

    with _in_one_message(), Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        orientation = _orientation(image)
        _refuse_deep(image)
        end = ENDS.get(image.format or "")
        if decode or end is None or end not in content[-TAIL:]:
            image.load()
    if image.format == "PNG":  # decoding does not look at checksums
        with _in_one_message(), Image.open(io.BytesIO(content)) as image:
            image.verify()
    return Header(height, width, orientation)


def read_picture(source: Path | BinaryIO, *, upright: bool = True, preprocessing: Preprocessing | None = None) -> np.ndarray:
    """A picture as RGB, uint8 (H, W, 3): gray, palette, CMYK and transparent ones are converted, 16 bits are scaled to 8.

    Args:
        source: the file.
        upright: turn it as its EXIF tag says, as viewers show it; torchvision's and timm's loaders do not.
        preprocessing: of the picture, none by default.

    Raises:
        RobenchError: it is none, or damaged; the message is a part of a sentence.
    """
    import numpy as np
    from PIL import Image

    with _in_one_message(), Image.open(source) as opened:
        _refuse_deep(opened)
        orientation = _orientation(opened) if upright else 1
        image: Image.Image = opened.transpose(Image.Transpose[UPRIGHT[orientation]]) if orientation in UPRIGHT else opened
        if image.mode in SIXTEEN_BITS:  # convert() would cut off all above 255
            levels = np.asarray(image).astype(np.uint32)
            image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        image = image.convert("RGB")
        return np.asarray(preprocessing.apply(image) if preprocessing else image)


@contextmanager
def _in_one_message() -> Iterator[None]:
    """Whatever PIL raises about a file becomes one sentence."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError:
        raise RobenchError("no picture that PIL can read") from None
    except Image.DecompressionBombError as error:
        raise RobenchError(f"{error}; scale it down first") from None
    except DAMAGED as error:
        raise RobenchError(str(error) or type(error).__name__) from None


def _orientation(image: Image) -> int:
    """By EXIF, 1 where a picture needs no turn or its EXIF data cannot be read. Pillow turns TIFF files by itself."""
    if image.format not in ("JPEG", "PNG", "WEBP", "MPO"):
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except DAMAGED:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _refuse_deep(image: Image) -> None:
    if image.mode not in SIXTEEN_BITS:
        refuse_deep_images(image.mode, "it")
