"""What image processors of transformers do where their file does not say: the library's own defaults, asked of its classes."""

from __future__ import annotations

from typing import Any


def default_of(kind: str, entry: str) -> Any:
    """The default of an image processor; None where transformers is not installed, or has no image processor or default of that name.

    Args:
        kind: its class, such as "CLIPImageProcessor"; older files end it on FeatureExtractor.
        entry: such as "image_mean".
    """
    try:
        import transformers

        builder = getattr(transformers, kind.replace("FeatureExtractor", "ImageProcessor"), None)
        if not (isinstance(builder, type) and issubclass(builder, transformers.ImageProcessingMixin)):
            return None
        return builder().to_dict().get(entry)
    except Exception:  # of a library that is not installed, or lacks what this class needs
        return None
