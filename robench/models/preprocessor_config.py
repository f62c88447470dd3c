"""What a preprocessor_config.json of Hugging Face's transformers says: how images are resized and cropped, and what is subtracted from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robench.data.preprocessing import Preprocessing
from robench.models.entries import larger, number, numbers, side
from robench.models.left_out import Normalisation
from robench.models.processor_defaults import default_of
from robench.types import RobenchError

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by PIL's numbers
# Image processors that read one number as the shorter side; the others read it as both (transformers 5.24).
BY_SHORTER_SIDE = ("Bit", "CLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer", "Siglip")
# Those that keep only the centre unless they are told otherwise (transformers 5.24).
CROPPING = (
    "Bit", "BridgeTower", "ChineseCLIP", "CLIP", "DeiT", "Flava", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer",
)  # fmt: skip
# Those that crop first, pad, or round sizes.
OTHERWISE = ("Donut", "Gemma3", "ImageGPT", "Perceiver", "PPLCNet", "Siglip2", "TextNet")
CONVNEXT_SQUASHES_FROM = 384  # pixels; images of that size and larger are not cropped


def read_processor(path: Path) -> dict[str, Any]:
    """The settings of an image processor.

    Raises:
        RobenchError: the file is no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RobenchError(f"{path} is no JSON: {error}; download it again") from None
    if not isinstance(config, dict):
        raise RobenchError(f"{path} holds a {type(config).__name__}, expected the settings of an image processor")
    return config


def normalisation_of(config: Mapping[str, Any], origin: str = "a preprocessor_config.json") -> Normalisation:
    """What an image processor does to pixels of [0, 1], scaling and offset included, as one mean and std.

    Args:
        config: see ``read_processor``.
        origin: what to call it.

    Raises:
        RobenchError: an entry is no number; mean and std are not of one length; or it normalises, and nobody knows by what.
    """
    scale = 255.0
    if config.get("do_rescale", True):
        scale *= number(config.get("rescale_factor", 1 / 255), "rescale_factor", origin, positive=True)
    offset = 1.0 if config.get("rescale_offset") else 0.0
    means, stds = _means_and_stds(config, origin)
    if len(means) != len(stds):
        raise RobenchError(f"{origin} has {len(means)} values of image_mean and {len(stds)} of image_std; mend it")
    again = stds if config.get("include_top") else (1.0,) * len(stds)  # EfficientNet's divides twice
    if not config.get("do_normalize", not _kind(config).startswith("MobileViT")):
        means, stds = (0.0,) * len(means), (1.0,) * len(stds)
    if not means:
        means, stds, again = (0.0,), (1.0,), (1.0,)
    if abs(scale - 1) < 1e-6:
        scale = 1.0
    mean = tuple((value + offset) / scale for value in means)
    std = tuple(value * more / scale for value, more in zip(stds, again, strict=True))
    return Normalisation() if set(mean) == {0.0} and set(std) == {1.0} else Normalisation(mean, std)


def _means_and_stds(config: Mapping[str, Any], origin: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """As the file has them; where it lacks one that is needed, as the library has it."""
    found = {name: config.get(name) for name in ("image_mean", "image_std")}
    normalises = config.get("do_normalize")
    if "do_normalize" not in config and found == {"image_mean": None, "image_std": None} and _kind(config):
        normalises = default_of(_kind(config), "do_normalize")
    if normalises:
        found = {name: default_of(_kind(config), name) if value is None else value for name, value in found.items()}
        missing = [name for name, value in found.items() if value is None]
        if missing:
            raise RobenchError(f"{origin}: the file says normalise but not by what ({', '.join(missing)}); give `mean`, `std`")
    return numbers(found["image_mean"], "image_mean", origin), numbers(found["image_std"], "image_std", origin, positive=True)


def _kind(config: Mapping[str, Any]) -> str:
    return str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")


def geometry_of(config: Mapping[str, Any], origin: str) -> Preprocessing | None:
    """How an image processor resizes and crops; None where it does neither.

    Args:
        config: see ``read_processor``.
        origin: what to call it.

    Raises:
        RobenchError: it does something that no ``Preprocessing`` says; an entry is no number or missing.
    """
    kind = _kind(config)
    if kind.startswith(OTHERWISE):
        raise RobenchError(f"{origin}: what {kind} does to images is more than resizing and cropping; {YOURSELF}")
    resize = _size(config.get("size"), "size", kind, origin) if config.get("do_resize", True) else None
    crop = _crop(config, kind, origin)
    share = config.get("crop_pct")
    if resize is not None and kind.startswith("ConvNext"):
        short = resize if isinstance(resize, int) else resize[0]
        squashed = short >= CONVNEXT_SQUASHES_FROM
        resize, crop = (
            ((short, short), None) if squashed else (larger(short, share or 224 / 256, "crop_pct", origin), (short, short))
        )
    elif resize is not None and kind.startswith("PoolFormer") and share:
        resize = _enlarged(resize, share, origin)
    elif isinstance(resize, int) and kind.startswith("Levit"):
        resize = side(int(256 / 224 * resize), "size", origin)
    if resize is None and crop is None:
        return None
    return Preprocessing(resize=resize, crop=crop, **_interpolation(config.get("resample"), origin))


YOURSELF = "say yourself how images are resized and cropped, and with which interpolation"


def _crop(config: Mapping[str, Any], kind: str, origin: str) -> tuple[int, int] | None:
    """The centre that is kept, None for all; as the library has it where the file does not say."""
    crops, size = config.get("do_center_crop", False), config.get("crop_size")
    may_crop = kind.startswith(CROPPING) or (size is not None and not kind.startswith("ConvNext"))
    if "do_center_crop" not in config and may_crop:
        crops = default_of(kind, "do_center_crop")
        if crops is None:
            raise RobenchError(f"{origin}: the file does not say whether the centre is cut out (do_center_crop); {YOURSELF}")
    if not crops:
        return None
    size = default_of(kind, "crop_size") if size is None else size
    if size is None and not kind.startswith("ConvNext"):
        raise RobenchError(f"{origin}: the file says that the centre is cut out, but not of which size (crop_size); {YOURSELF}")
    return _both(_size(size, "crop_size", "", origin))


def _size(size: Any, entry: str, kind: str, origin: str) -> int | tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, int):
        pixels = side(size, entry, origin)
        return pixels if kind.startswith(BY_SHORTER_SIDE) else (pixels, pixels)
    if isinstance(size, dict) and size.keys() >= {"height", "width"}:
        return side(size["height"], f"{entry}'s height", origin), side(size["width"], f"{entry}'s width", origin)
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        return side(size["shortest_edge"], f"{entry}'s shortest_edge", origin)
    raise RobenchError(f"{origin}: images of size {size} are not understood; {YOURSELF}")


def _both(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _enlarged(size: int | tuple[int, int], share: Any, origin: str) -> int | tuple[int, int]:
    if isinstance(size, int):
        return larger(size, share, "crop_pct", origin)
    height, width = (larger(pixels, share, "crop_pct", origin) for pixels in size)
    return height if height == width else (height, width)


def _interpolation(resample: Any, origin: str) -> dict[str, str]:
    if resample is None:
        return {"interpolation": "bilinear", "origin": f"{origin}, which names no interpolation"}
    if not isinstance(resample, int) or not 0 <= resample < len(RESAMPLING):
        raise RobenchError(f"{origin}: resample is {resample!r}, expected one of PIL's numbers, 0 to 5; {YOURSELF}")
    return {"interpolation": RESAMPLING[resample], "origin": origin}
