"""Somebody's arrays of images and labels: brought into one form, or refused with what is wrong with them and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from robench.types import RobenchError

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = (1, 3)
ROUNDING = 1e-5  # outside [0, 1]: no pixel value, but what interpolation leaves
DEEP = ("I", "F")  # modes of PIL with more than 8 bits, beside those that begin with I;


def to_images(pixels: np.ndarray, named: str) -> Tensor:
    """Images (N, C, H, W), uint8, or float32 in [0, 1] where 8 bits would lose something.

    Args:
        pixels: (N, H, W, C), (N, C, H, W) or (N, H, W), with 1 or 3 channels; integers of 0 to 255, or floats in [0, 1].
        named: what they are called in messages.

    Raises:
        RobenchError: another shape or type, or pixel values outside the range.
    """
    import torch

    arranged = _channels_first(pixels, named)
    if not len(arranged):
        raise RobenchError(f"{named} have shape {pixels.shape}, expected at least one image")
    if np.issubdtype(arranged.dtype, np.floating):
        return torch.from_numpy(_floats(arranged.astype(np.float32), named))
    if arranged.dtype == np.bool_ or not np.issubdtype(arranged.dtype, np.integer):
        raise RobenchError(f"{named} are {arranged.dtype}, expected uint8, or floats in [0, 1]")
    low, high = int(arranged.min()), int(arranged.max())
    if low < 0 or high > 255:
        raise RobenchError(f"{named} range from {low} to {high}; expected 0 to 255: scale them to 8 bits, or to floats in [0, 1]")
    if high <= 1 and low != high:
        raise RobenchError(
            f"{named} are integers of 0 and 1 only; were they floats in [0, 1] before? multiply by 255 first, then make them uint8"
        )
    return torch.from_numpy(np.ascontiguousarray(arranged.astype(np.uint8)))


def _channels_first(pixels: np.ndarray, named: str) -> np.ndarray:
    shape = pixels.shape
    if pixels.ndim == 3:
        return pixels[:, None]
    if pixels.ndim != 4:
        raise RobenchError(f"{named} have shape {shape}, expected (N, H, W, C) or (N, C, H, W)")
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first == last:
        why = "both could be the channels" if first else "neither has 1 or 3 channels"
        raise RobenchError(f"{named} have shape {shape}: expected (N, H, W, C) or (N, C, H, W), but {why}")
    return pixels if first else pixels.transpose(0, 3, 1, 2)


def _floats(pixels: np.ndarray, named: str) -> np.ndarray:
    """Floats in [0, 1], as uint8 where they are exactly k/255: smaller, and the same to the last bit."""
    odd = ~np.isfinite(pixels)
    if odd.any():
        touched = np.flatnonzero(odd.reshape(len(odd), -1).any(1))
        raise RobenchError(
            f"{named} hold NaN or infinity in {int(odd.sum())} pixels of {len(touched)} images, the first is image {int(touched[0])}; leave those "
            "images out, or mend them"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if -ROUNDING <= low <= high <= 1 + ROUNDING:
        pixels = pixels.clip(0, 1)
    elif low < 0 or high > 1:
        remedy = (
            "they look normalised already: use them as they were before, and give the normalisation with `mean` and `std`"
            if low < 0
            else "they look like 0 to 255: make them uint8, or divide by 255"
            if high <= 255 and high > 2
            else "clip or scale them"
        )
        raise RobenchError(f"{named} range from {low:g} to {high:g}, expected floats in [0, 1]: {remedy}")
    levels = np.rint(pixels * 255)
    exact = np.array_equal(levels.astype(np.float32) / np.float32(255), pixels)
    return np.ascontiguousarray(levels.astype(np.uint8) if exact else pixels)


def refuse_deep_images(mode: str, named: str) -> None:
    """Refuses images of more than 8 bits, which PIL cuts off where it makes RGB of them.

    Args:
        mode: as PIL names it.
        named: what they are called in messages.

    Raises:
        RobenchError: it is such a mode.
    """
    if mode in DEEP or mode.startswith("I;"):
        raise RobenchError(
            f"{named}: PIL images of mode {mode} have more than 8 bits, of which the largest value is not known; give arrays instead, floats in [0, 1], "
            "such as numpy.asarray(image) / 65535 for 16 bits"
        )


def to_labels(labels: np.ndarray, n: int, classes: tuple[str, ...], named: str, remedy: str = "store") -> Tensor:
    """Labels int64 (N,).

    Args:
        labels: integers, in a call also whole numbers in another type, (N,) or (N, 1).
        n: images.
        classes: names of the classes, empty where they are unknown.
        named: what they are called in messages.
        remedy: what to do with other ones: "store" in a file, "give" in a call.

    Raises:
        RobenchError: not one integer an image, or one that is no class.
    """
    import torch

    if labels.ndim > 1 and labels.shape[1] > 1:
        raise RobenchError(f"{named} have shape {labels.shape}: {_several(labels, remedy)}")
    flat = labels.reshape(len(labels)) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.shape != (n,):
        raise RobenchError(
            f"{named} have shape {labels.shape} for {n} images, expected ({n},): one label an image, in the same order"
        )
    flat = _whole(flat, named, remedy)
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or (classes and high >= len(classes)):
        from_one = "; they start at 1: subtract 1" if low == 1 and high == len(classes) else ""
        raise RobenchError(
            f"{named} range from {low} to {high}, expected 0 to {len(classes) - 1 if classes else 'the number of classes less 1'}"
            + (f" for the {len(classes)} classes {', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}" if classes else "")
            + from_one
        )
    return torch.from_numpy(flat.astype(np.int64))


def _several(labels: np.ndarray, remedy: str) -> str:
    """What labels with more than one number an image may be."""
    if labels.ndim > 2:
        return "a mask for every image? robench judges classifiers, which say one class an image: pick the one label that is to be judged"
    if labels.dtype.kind == "f" and not (labels == np.rint(labels)).all():
        return f"shares of classes? {remedy} the class that is to be judged, such as their argmax(1), one integer an image"
    counts = np.asarray(labels != 0).sum(1)
    if not (counts == 1).all():
        none = ", or none of them?" if (counts == 0).any() else "?"
        return f"several classes an image{none} robench judges classifiers that say one; pick the one label that is to be judged"
    return f"one-hot? {remedy} their argmax(1), one integer an image"


def _whole(labels: np.ndarray, named: str, remedy: str) -> np.ndarray:
    """Integers; in a call also where a list or a float tensor has them in another type."""
    if np.issubdtype(labels.dtype, np.integer):
        return labels
    expected = f"{named} are {labels.dtype}, expected integers"
    if np.issubdtype(labels.dtype, np.floating):
        odd = ~np.isfinite(labels) | (labels != np.rint(np.nan_to_num(labels)))
        if odd.any():
            place = int(np.flatnonzero(odd)[0])
            raise RobenchError(
                f"{expected}: {int(odd.sum())} of {len(labels)} are fractions or no numbers, the first is {labels[place]:g} at place {place}; {remedy} "
                "classes from 0, one an image"
            )
    elif labels.dtype != np.bool_:
        raise RobenchError(f"{expected}: {remedy} labels.astype('int64'), and names under `classes`")
    if remedy == "store":
        raise RobenchError(f"{expected}: store labels.astype('int64'), and names under `classes`")
    return labels.astype(np.int64)
