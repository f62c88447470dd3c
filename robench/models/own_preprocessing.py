"""What a model's own files, or its library, say of how images are prepared for it. Reads small files, and never weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robench.data.preprocessing import OwnPreprocessing, Preprocessing
from robench.models.entries import larger, side
from robench.models.hub import file_if_any, is_of_timm, pretrained_cfg, read_config
from robench.models.hub_transformers import CONFIG, PROCESSOR
from robench.models.library import refuse_unknown_timm, refuse_unknown_torchvision
from robench.models.preprocessor_config import YOURSELF, geometry_of, read_processor
from robench.models.sources import SOURCES, source_of
from robench.types import ExternalModel, RobenchError


def own_preprocessing(external: ExternalModel) -> OwnPreprocessing | None:
    """What is said of a model's images; None where nobody says anything, also where the model or its library is not there.

    Only ``hf:`` may need the network, for config.json and preprocessor_config.json, where they are not in the Hub's cache.

    Raises:
        RobenchError: a file is damaged, or what it says is more than resizing and cropping.
    """
    source, name = source_of(external.reference), external.reference.partition(":")[2]
    if source is SOURCES["timm:NAME"]:
        found, of_these_weights = _of_timm(name), False
    elif source is SOURCES["torchvision:NAME"]:
        found, of_these_weights = _of_torchvision(name), False
    elif source in (SOURCES["hf:ORG/NAME"], SOURCES["FOLDER"]):
        found, of_these_weights = _of_files(external), True
    else:
        return None
    return None if found is None else OwnPreprocessing(found, of_these_weights)


def normalisation_hint(external: ExternalModel) -> str:
    """What a library says about the normalisation of an architecture's own weights, which is not applied to others unasked; or ""."""
    source, name = source_of(external.reference), external.reference.partition(":")[2]
    if source not in (SOURCES["timm:NAME"], SOURCES["torchvision:NAME"]):
        return ""
    if source is SOURCES["timm:NAME"]:
        import timm

        config: Any = timm.get_pretrained_cfg(name)
        mean, std = (getattr(config, each, None) for each in ("mean", "std"))
    else:
        import torchvision

        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        mean, std = preset.mean, preset.std
    if not mean or not std:
        return ""
    given = " ".join(f"`{option}={','.join(map('{:g}'.format, each))}`" for option, each in (("mean", mean), ("std", std)))
    return f"nothing is normalised in front of {name}; the library's own weights of it take {given}"


def _of_timm(name: str) -> Preprocessing | None:
    try:
        import timm
        from timm.data.config import resolve_data_config
    except ImportError:
        return None
    refuse_unknown_timm(name)
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return None
    tag = f".{config.tag}" if getattr(config, "tag", "") else ""
    resolved = resolve_data_config(pretrained_cfg=config.to_dict())
    return _of_pretrained_cfg(resolved, f"timm's pretrained_cfg of {name.partition('.')[0]}{tag}")


def _of_torchvision(name: str) -> Preprocessing | None:
    import torchvision

    refuse_unknown_torchvision(name)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    resize, crop = tuple(preset.resize_size), tuple(preset.crop_size)
    return Preprocessing(
        resize=resize[0] if len(resize) == 1 else resize, crop=crop * 2 if len(crop) == 1 else crop, interpolation=preset.interpolation.value,
        origin=f"torchvision's {type(weights).__name__}.{weights.name}",
    )  # fmt: skip


def _of_files(external: ExternalModel) -> Preprocessing | None:
    path = file_if_any(external, CONFIG)
    if path is None:
        return None
    config = read_config(path)
    if is_of_timm(config):
        origin = f"{path.name} of {external.reference}"
        pretrained = pretrained_cfg(config, origin)
        says = pretrained.get("input_size") is not None and pretrained.get("crop_pct") is not None
        return _of_pretrained_cfg(pretrained, origin) if says else None
    processor = file_if_any(external, PROCESSOR)
    return None if processor is None else geometry_of(read_processor(processor), f"{processor.name} of {external.reference}")


def _of_pretrained_cfg(config: Mapping[str, Any], origin: str) -> Preprocessing:
    """As timm's ``transforms_imagenet_eval`` reads it (timm 1.0)."""
    size, mode = config["input_size"], config.get("crop_mode") or "center"
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise RobenchError(
            f"{origin}: input_size is {size!r}, expected channels, height and width, such as [3, 224, 224]; mend the file"
        )
    crop = side(size[1], "input_size", origin), side(size[2], "input_size", origin)
    scaled = tuple(larger(pixels, config["crop_pct"], "crop_pct", origin) for pixels in crop)
    if mode not in ("center", "squash") or (mode == "center" and scaled[0] != scaled[1]):
        raise RobenchError(f"{origin}: crop_mode {mode!r} to {crop[0]}x{crop[1]} is more than resizing and cropping; {YOURSELF}")
    resize = scaled[0] if mode == "center" else (scaled[0], scaled[1])
    return Preprocessing(
        resize=resize, crop=(crop[0], crop[1]), interpolation=str(config.get("interpolation") or "bicubic"), origin=origin
    )
