"""What a preprocessor_config.json of Hugging Face's transformers says: how images are resized and cropped, and what is subtracted from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robench.data.preprocessing import Preprocessing
from robench.models.left_out import Normalisation
from robench.types import RobenchError

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by PIL's numbers
# Image processors that read one number as the shorter side; the others read it as both (transformers 5.24).
BY_SHORTER_SIDE = ("Bit", "CLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer", "Siglip")
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


def normalisation_of(config: Mapping[str, Any]) -> Normalisation:
    """What an image processor does to pixels of [0, 1], scaling and offset included, as one mean and std.

    Raises:
        RobenchError: mean and std are not of one length.
    """
    scale = 255 * float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 255.0
    offset = 1.0 if config.get("rescale_offset") else 0.0
    means, stds = (_per_channel(config.get(name)) for name in ("image_mean", "image_std"))
    if len(means) != len(stds):
        raise RobenchError(
            f"a preprocessor_config.json has {len(means)} values of image_mean and {len(stds)} of image_std; mend it"
        )
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


def _kind(config: Mapping[str, Any]) -> str:
    return str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")


def _per_channel(value: Any) -> tuple[float, ...]:
    if value is None:
        return ()
    return tuple(float(part) for part in (value if isinstance(value, list | tuple) else [value]))


def geometry_of(config: Mapping[str, Any], origin: str) -> Preprocessing | None:
    """How an image processor resizes and crops; None where it does neither.

    Args:
        config: see ``read_processor``.
        origin: what to call it.

    Raises:
        RobenchError: it does something that no ``Preprocessing`` says.
    """
    kind = _kind(config)
    if kind.startswith(OTHERWISE):
        raise RobenchError(f"{origin}: what {kind} does to images is more than resizing and cropping; {YOURSELF}")
    resize = _size(config.get("size"), kind, origin) if config.get("do_resize", True) else None
    crop = _both(_size(config.get("crop_size"), "", origin)) if config.get("do_center_crop") else None
    share = config.get("crop_pct")
    if resize is not None and kind.startswith("ConvNext"):
        side = resize if isinstance(resize, int) else resize[0]
        squashed = side >= CONVNEXT_SQUASHES_FROM
        resize, crop = ((side, side), None) if squashed else (int(side / float(share or 224 / 256)), (side, side))
    elif resize is not None and kind.startswith("PoolFormer") and share:
        resize = _enlarged(resize, float(share))
    elif isinstance(resize, int) and kind.startswith("Levit"):
        resize = int(256 / 224 * resize)
    if resize is None and crop is None:
        return None
    return Preprocessing(resize=resize, crop=crop, **_interpolation(config.get("resample"), origin))


YOURSELF = "say yourself how images are resized and cropped, and with which interpolation"


def _size(size: Any, kind: str, origin: str) -> int | tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, int):
        return size if kind.startswith(BY_SHORTER_SIDE) else (size, size)
    if isinstance(size, dict) and size.keys() >= {"height", "width"}:
        return int(size["height"]), int(size["width"])
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        return int(size["shortest_edge"])
    raise RobenchError(f"{origin}: images of size {size} are not understood; {YOURSELF}")


def _both(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _enlarged(size: int | tuple[int, int], share: float) -> int | tuple[int, int]:
    if isinstance(size, int):
        return int(size / share)
    height, width = (int(side / share) for side in size)
    return height if height == width else (height, width)


def _interpolation(resample: Any, origin: str) -> dict[str, str]:
    if resample is None:
        return {"interpolation": "bilinear", "origin": f"{origin}, which names no interpolation"}
    if not isinstance(resample, int) or not 0 <= resample < len(RESAMPLING):
        raise RobenchError(f"{origin}: resample is {resample!r}, expected one of PIL's numbers, 0 to 5; {YOURSELF}")
    return {"interpolation": RESAMPLING[resample], "origin": origin}
