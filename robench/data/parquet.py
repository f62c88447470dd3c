"""People's own data: a folder of parquet files as the Hugging Face Hub keeps image sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robench.data.arrays import to_labels
from robench.data.folder import balanced_order, held_if_small
from robench.data.packed_pictures import PackedPictures, pack_pictures
from robench.data.reading import AS_THEY_ARE, Reading
from robench.types import Dataset, RobenchError

IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class", "cls")
ROWS = 64  # pictures in memory at a time while they are unpacked
SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}


def parquet_files(root: Path) -> list[Path]:
    """Those of a folder, or of its ``data`` folder, in the order of their names."""
    return sorted(root.glob("*.parquet")) or sorted((root / "data").glob("*.parquet"))


def load_parquet(root: Path, split: str, reading: Reading = AS_THEY_ARE) -> Dataset:
    """``test-*.parquet`` (or validation) and ``train-*.parquet``; without such names all files are the test split.

    A row has an image (bytes of a file, alone or as the Hub's ``{bytes, path}``) and an integer label. Class names come from the Hub's
    note in the file. Samples are dealt class by class, as in a folder of images. The pictures are unpacked once into robench's cache.

    Raises:
        RobenchError: pyarrow is not installed, no file of the split, no image or label column, an unreadable image; images of unequal
            size, and nothing says what to make of them.
    """
    reading.refuse_subset(str(root))
    table = _open(_of_split(parquet_files(root), split, root), root)
    values = table.column(table.label)
    if None in values:
        raise RobenchError(f"{table.source}: {values.count(None)} of {len(values)} labels are missing")
    labels = to_labels(np.asarray(values), len(values), table.classes, f"{table.source}: {table.label}")
    order = balanced_order(labels.tolist())
    named, version = (
        hashlib.sha256("\n".join(map(how, table.files)).encode()).hexdigest()[:16]
        for how in (lambda file: str(file.resolve()), _stamp)
    )
    packed, facts = pack_pictures(
        named, version, table.pictures(labels.tolist()), table.source, expected=sum(file.stat().st_size for file in table.files),
        check=reading.check,
    )  # fmt: skip
    settled = reading.settled(facts.sizes(), str(root))
    stored = PackedPictures(
        file=packed, source=table.source, facts=facts, order=np.array(order), size=settled.size, preprocessing=settled.preprocessing
    )  # fmt: skip
    known = table.classes or tuple(map(str, range(int(labels.max()) + 1)))
    return Dataset(
        name=root.resolve().name, split=split, images=held_if_small(stored, settled.preprocessing), labels=labels[order], classes=known,
        path=str(root), reading=settled.described,
    )  # fmt: skip


def _stamp(file: Path) -> str:
    """What changes whenever a file does."""
    facts = file.stat()
    return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"


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


@dataclass(frozen=True)
class Table:
    """The rows of parquet files, which are read part by part.

    Attributes:
        files: in their order.
        source: what they are called in messages.
        image, label: names of the columns.
        classes: names of the classes, empty where the files have none.
    """

    files: list[Path]
    source: str
    image: str
    label: str
    classes: tuple[str, ...]

    def column(self, name: str) -> list[Any]:
        """All values of a column that is small."""
        import pyarrow.parquet

        with _readable(self.source):
            return [
                value for file in self.files for value in pyarrow.parquet.read_table(file, columns=[name]).column(name).to_pylist()
            ]

    def pictures(self, labels: list[int]) -> Iterator[tuple[bytes, int]]:
        """Contents and labels, row by row, few of them in memory at a time."""
        import pyarrow.parquet

        row = 0
        for file in self.files:
            with _readable(self.source), pyarrow.parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(batch_size=ROWS, columns=[self.image]):
                    for cell in batch.column(0).to_pylist():
                        yield _content(cell, f"{self.source}, row {row}"), labels[row]
                        row += 1


def _open(files: list[Path], root: Path) -> Table:
    try:
        import pyarrow.parquet
    except ImportError:
        raise RobenchError(f"{root} holds parquet files, which need pyarrow: pip install 'robench[parquet]'") from None
    with _readable(str(root)):
        schema = pyarrow.parquet.read_schema(files[0])
    image, label = (
        _column(schema.names, known, what, root) for known, what in ((IMAGE_COLUMNS, "image"), (LABEL_COLUMNS, "label"))
    )
    source = str(files[0] if len(files) == 1 else root)
    return Table(files, source, image, label, _class_names(schema.metadata or {}, label))


@contextmanager
def _readable(source: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise RobenchError(f"{source}: its parquet files cannot be read: {error}") from None


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


def _content(cell: Any, named: str) -> bytes:
    """The bytes of a picture file."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise RobenchError(
            f"{named}: the image is {type(content).__name__}, expected the bytes of an image file in the parquet file"
        )
    return content
