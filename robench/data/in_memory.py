"""What people hold in a notebook: tensors, arrays, lists, PIL images, loaders and data sets, read into one form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robench.data.arrays import ROUNDING, refuse_deep_images, to_images, to_labels
from robench.data.spool import Spool
from robench.types import RobenchError

if TYPE_CHECKING:
    from robench.types import Labels

HELD_BYTES = 2**29  # of pixels as they are brought: what yields more is kept in a file
BLOCK_BYTES = 2**26  # of pixels that go there at a time
IMAGE_NAMES = ("image", "img", "images", "pixel_values", "x")
LABEL_NAMES = ("label", "labels", "fine_label", "target", "y")


@dataclass(frozen=True, eq=False)
class Held:
    """Images and labels in memory of their own.

    Attributes:
        images: uint8, or float32 in [0, 1], (N, C, H, W), contiguous.
        labels: int64 (N,).
        classes: their names where the data set has them, else empty.
    """

    images: Tensor
    labels: Labels
    classes: tuple[str, ...] = ()


def gather(images: Any, labels: Any = None) -> Held:
    """Whatever holds images and labels.

    Args:
        images: (N, C, H, W) or (N, H, W, C) as a tensor, an array or a list of images (also PIL ones, all of one size); or what brings
            its labels: a ``DataLoader``, a data set of (image, label) pairs, or a Hugging Face data set.
        labels: (N,), (N, 1) or one-hot (N, n_classes), as tensor, array or list; None where ``images`` brings them.

    Raises:
        RobenchError: it is none of these, or ambiguous; says what would be read.
    """
    classes: tuple[str, ...] = ()
    if labels is None:
        classes = _names(images)
        items = _items(images)
        first, is_all = _first(items, HELD_BYTES)
        if not is_all:
            return _spooled(first, items, classes)
        images, labels = _together(first)
    _refuse_other_dimensions(images)
    pixels = _images(images)
    return Held(pixels, _labels(labels, len(pixels)), classes)


def _refuse_other_dimensions(images: Any) -> None:
    """One image too few brackets, or one pair too many."""
    shape = tuple(images.shape) if isinstance(images, Tensor | np.ndarray) else ()
    if len(shape) == 3 and (shape[0] in (1, 3) or shape[2] in (1, 3)):
        raise RobenchError(f"images have shape {shape}: one image? give images[None], and its label in a list")
    if len(shape) == 5:
        raise RobenchError(
            f"images have shape {shape}, expected (N, C, H, W): a batch of batches? give images.flatten(0, 1), and labels.flatten()"
        )


def _images(images: Any) -> Tensor:
    if isinstance(images, Tensor):
        if images.is_meta or images.is_complex():
            what = "on the device meta, without values" if images.is_meta else str(images.dtype).removeprefix("torch.")
            raise RobenchError(f"images are {what}; expected uint8, or floats in [0, 1]")
        return _of_tensor(images.detach().cpu())
    if isinstance(images, np.ndarray):
        return to_images(images, "images")
    if isinstance(images, Sequence) and not isinstance(images, str):
        if not len(images):
            raise RobenchError("there are no images to evaluate")
        return _of_list(images)
    raise RobenchError(
        f"images are a {type(images).__name__}; expected a tensor or an array (N, C, H, W) or (N, H, W, C), a list of images, a DataLoader or "
        "a data set"
    )


def _of_tensor(images: Tensor) -> Tensor:
    """A tensor is channels first, as torch has it, unless only its last axis can be the channels; gray images may have none."""
    images = images.dequantize() if images.is_quantized else images.to_dense() if images.layout != torch.strided else images
    images = images[:, None] if images.ndim == 3 else images
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] in (1, 3):
        raise RobenchError(
            f"images have shape {tuple(images.shape)}: expected (N, C, H, W), but the first and the last axis of an image could both be the channels; "
            "images of 1 or 3 pixels in width are not read"
        )
    if images.ndim == 4 and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    images = images.float() if images.dtype in (torch.float16, torch.bfloat16, torch.float64) else images
    if images.ndim == 4 and images.dtype != torch.uint8 and not images.is_floating_point():
        return to_images(images.contiguous().numpy(), "images")  # integers of 0 to 255
    images = images.clone(memory_format=torch.contiguous_format)
    return _without_rounding(images) if images.is_floating_point() else images


def _without_rounding(images: Tensor) -> Tensor:
    """Pixels that a resize has left a rounding error outside [0, 1], brought back."""
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 1.0)
    return images.clamp_(0, 1) if -ROUNDING <= low <= high <= 1 + ROUNDING else images


def _of_list(images: Sequence[Any]) -> Tensor:
    parts = [_array(each) for each in images]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1 and len({shape[:2] for shape in shapes}) == 1 and {len(shape) for shape in shapes} == {2, 3}:
        raise RobenchError(
            "some images are gray and some have colours; convert all to one mode first, such as image.convert('RGB')"
        )
    if len(shapes) > 1:
        some = ", ".join(map(str, sorted(shapes)[:3]))
        raise RobenchError(f"images differ in size: {some}; resize or crop them to one size first")
    stacked = np.stack(parts)
    return _of_tensor(torch.from_numpy(stacked)) if isinstance(images[0], Tensor) else to_images(stacked, "images")


def _array(image: Any) -> np.ndarray:
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        return (image.float() if image.dtype == torch.bfloat16 else image).numpy()  # NumPy has none
    if hasattr(image, "getbands"):  # PIL: gray or RGB, whatever it was
        refuse_deep_images(image.mode, "images")
        return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    try:
        return np.asarray(image)
    except ValueError as error:
        raise RobenchError(f"an image is a {type(image).__name__} that is no array: {error}") from None


def _labels(labels: Any, n: int) -> Labels:
    if not n:
        raise RobenchError("there are no images to evaluate")
    array = _label_array(labels)
    if array.dtype == object or array.dtype.kind in "US":
        raise RobenchError(
            f"labels are {type(array.flat[0]).__name__.rstrip('_') if array.size else 'nothing'}; expected integers, and names under `classes`"
        )
    if array.ndim == 2 and array.shape[1] > 1 and len(array) == n and _is_one_hot(array):
        array = array.argmax(1)
    return to_labels(array, n, (), "labels", remedy="give")


def _label_array(labels: Any) -> np.ndarray:
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        return np.asarray(labels.float() if labels.dtype == torch.bfloat16 else labels)
    try:
        return np.asarray(
            [each.item() if isinstance(each, Tensor) and each.ndim == 0 else each for each in labels]
            if isinstance(labels, list)
            else labels
        )
    except ValueError:  # rows of unequal length
        raise RobenchError(
            "labels are lists of unequal length: several classes an image? robench judges classifiers that say one; pick the one label that is to be "
            "judged"
        ) from None


def _is_one_hot(array: np.ndarray) -> bool:
    return bool(((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all())


class Labelled(NamedTuple):
    """Images and labels as they were brought: one of each, a batch, or all."""

    images: Any
    labels: Any


def _first(items: Iterator[Labelled], at_most: int) -> tuple[list[Labelled], bool]:
    """The first items that a data set yields, up to so many bytes of pixels, and whether there are no more."""
    taken, size = [], 0
    for item in items:
        taken.append(item)
        size += _bytes_of(item.images)
        if size > at_most:
            return taken, False
    return taken, True


def _bytes_of(image: Any) -> int:
    """Of the pixels of an image or a batch."""
    if isinstance(image, Tensor):
        return image.numel() * image.element_size()
    if hasattr(image, "getbands"):
        return image.width * image.height * len(image.getbands())
    return np.asarray(image).nbytes if isinstance(image, np.ndarray | np.generic | list | tuple) else 0


def _spooled(first: list[Labelled], items: Iterator[Labelled], classes: tuple[str, ...]) -> Held:
    """What is more than memory should hold, block by block into a file."""
    spool, labels, block = Spool(), [], first
    while block:
        images, given = _together(block)
        pixels = _images(images)
        spool.add(pixels)
        labels.append(_labels(given, len(pixels)))
        block, _ = _first(items, BLOCK_BYTES)
    return Held(spool.images(), torch.cat(labels), classes)


def _together(items: list[Labelled]) -> Labelled:
    """Of single images or batches, all in one."""
    if not items:
        raise RobenchError("there are no images to evaluate")
    images, labels = [each.images for each in items], [each.labels for each in items]
    if not all(isinstance(image, Tensor | np.ndarray) and image.ndim == 4 for image in images):
        return Labelled(images, labels)
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) > 1:
        raise RobenchError(
            f"images differ in size from batch to batch: {', '.join(map(str, sorted(sizes)[:3]))}; resize or crop them to one size first"
        )
    arrays = [np.atleast_1d(_label_array(label)) for label in labels]
    for place, (image, array) in enumerate(zip(images, arrays, strict=True)):
        if len(image) != len(array):
            raise RobenchError(f"batch {place} has {len(image)} images and {len(array)} labels, expected one label an image")
    whole = torch.cat(images) if isinstance(images[0], Tensor) else np.concatenate([_array(image) for image in images])
    return Labelled(whole, np.concatenate(arrays))


def _items(source: Any) -> Iterator[Labelled]:
    """What a data set yields, batch by batch or one by one; its own code may raise anything."""
    if isinstance(source, Tensor | np.ndarray) or (not isinstance(source, Iterable) and not hasattr(source, "__getitem__")):
        raise RobenchError(f"labels are missing: a {type(source).__name__} brings none; give `labels`")
    try:
        for item in source if isinstance(source, Iterable) else (source[place] for place in range(len(source))):
            yield _sample(item)
    except RobenchError:
        raise
    except Exception as error:
        raise RobenchError(
            f"the {type(source).__name__} that brings images and labels raised {type(error).__name__}: {error}; mend it, or give images and labels as "
            "tensors"
        ) from error


def _sample(item: Any) -> Labelled:
    if isinstance(item, Mapping):
        image = next((item[name] for name in IMAGE_NAMES if name in item), None)
        label = next((item[name] for name in LABEL_NAMES if name in item), None)
        if image is None or label is None:
            raise RobenchError(
                f"a sample has the columns {', '.join(map(str, item))}; expected one of {', '.join(IMAGE_NAMES)} and one of {', '.join(LABEL_NAMES)}"
            )
        return Labelled(image, label)
    if isinstance(item, tuple | list) and len(item) == 2:
        return Labelled(item[0], item[1])
    raise RobenchError(
        f"a sample is a {type(item).__name__}; expected a pair (image, label); give `labels` where the data has none"
    )


def _names(source: Any) -> tuple[str, ...]:
    """Names of the classes, where a data set knows them."""
    source = getattr(source, "dataset", source)  # of a DataLoader
    names = getattr(source, "classes", None)
    features = getattr(source, "features", None)
    if names is None and isinstance(features, Mapping):
        names = next((getattr(features[name], "names", None) for name in LABEL_NAMES if name in features), None)
    return tuple(map(str, names)) if isinstance(names, Sequence) else ()
