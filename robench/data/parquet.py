"""People's own data: a folder of parquet files as the Hugging Face Hub keeps image sets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robench.data.arrays import to_labels
from robench.data.folder import balanced_order, read_image, stack
from robench.types import Dataset, RobenchError

IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class", "cls")
SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}


def parquet_files(root: Path) -> list[Path]:
    """Those of a folder, or of its ``data`` folder, in the order of their names."""
    return sorted(root.glob("*.parquet")) or sorted((root / "data").glob("*.parquet"))


def load_parquet(root: Path, split: str) -> Dataset:
    """``test-*.parquet`` (or validation) and ``train-*.parquet``; without such names all files are the test split.

    A row has an image (bytes of a file, alone or as the Hub's ``{bytes, path}``) and an integer label. Class names come from the Hub's
    note in the file. Samples are dealt class by class, as in a folder of images.

    Raises:
        RobenchError: pyarrow is not installed, no file of the split, no image or label column, an unreadable image.
    """
    rows, schema, source = _read(_of_split(parquet_files(root), split, root), root)
    names = schema.names
    image_column, label_column = (
        _column(names, known, what, root) for known, what in ((IMAGE_COLUMNS, "image"), (LABEL_COLUMNS, "label"))
    )
    classes = _class_names(schema.metadata or {}, label_column)
    values = rows.column(label_column).to_pylist()
    if None in values:
        raise RobenchError(f"{source}: {values.count(None)} of {len(values)} labels are missing")
    labels = to_labels(np.asarray(values), len(values), classes, f"{source}: {label_column}")
    pixels = [_decode(cell, f"{source}, row {row}") for row, cell in enumerate(rows.column(image_column).to_pylist())]
    order = balanced_order(labels.tolist())
    known = classes or tuple(map(str, range(int(labels.max()) + 1)))
    return Dataset(
        name=root.resolve().name, split=split, images=stack([pixels[i] for i in order], root), labels=labels[order], classes=known,
        path=str(root),
    )  # fmt: skip


def _of_split(files: list[Path], split: str, root: Path) -> list[Path]:
    """The files whose names begin with a name of the split, or all where no name says a split."""
    stems = {file: file.stem.lower().replace("_", "-").split("-")[0] for file in files}
    known = {name for names in SPLITS.values() for name in names}
    for name in SPLITS[split]:
        of_name = [file for file in files if stems[file] == name]
        if of_name:
            return of_name
    if split == "test" and not known & set(stems.values()):
        return files
    raise RobenchError(f"{root} has {', '.join(file.name for file in files[:4])}, but no {SPLITS[split][0]}-*.parquet")


class Rows(NamedTuple):
    """A ``pyarrow.Table`` of all rows, its ``pyarrow.Schema``, and what it is called in messages."""

    rows: Any
    schema: Any
    source: str


def _read(files: list[Path], root: Path) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RobenchError(f"{root} holds parquet files, which need pyarrow: pip install 'robench[parquet]'") from None
    try:
        tables = [pyarrow.parquet.read_table(file) for file in files]
        return Rows(pyarrow.concat_tables(tables), tables[0].schema, str(files[0] if len(files) == 1 else root))
    except (pyarrow.ArrowException, OSError) as error:
        raise RobenchError(f"{root}: its parquet files cannot be read: {error}") from None


def _column(names: list[str], known: tuple[str, ...], what: str, root: Path) -> str:
    matching = [name for name in known if name in names]
    if not matching:
        raise RobenchError(f"{root} has the columns {', '.join(names)}; expected the {what} in one of {', '.join(known)}")
    return matching[0]


def _class_names(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...]:
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return tuple(map(str, features.get(column, {}).get("names") or ()))
    except (ValueError, AttributeError):
        return ()


def _decode(cell: Any, named: str) -> np.ndarray:
    """uint8 (H, W, 3)."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise RobenchError(
            f"{named}: the image is {type(content).__name__}, expected the bytes of an image file in the parquet file"
        )
    return read_image(io.BytesIO(content), named)
