"""The run folder: one small file per attack and chunk, which exists exactly when it is complete."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robench.files import PARTIAL, write_atomically
from robench.seeds import derive_seed
from robench.types import Attack, Column, Outcome, RobenchError, RunSpec

if TYPE_CHECKING:
    from robench.evaluation.packed_images import PackedImages

SCHEMA = 1
CLEAN = "clean"
BLIND = "the model passes no gradient"  # is part of the message of an attack that needs one
REFUSED = "RobenchError: "  # begins the message of an attack that is not for such a model
LEFT_OUT = "left out"  # begins the mode of a stage that a cascade did not need on a chunk
NO_MEMORY = (
    "out of memory",
    "outofmemoryerror",
    "can't allocate memory",
    "memoryerror",
)  # one of them is part of what is raised then
ON_DISK = {"broken_at": "found_at"}  # fields that have another name in the files, which version 0.1 writes and reads
NEEDED: dict[str, tuple[str, ...]] = {  # what every reader of run.json needs
    "spec": ("model", "data", "norm", "eps", "seed", "chunk"), "model": ("name", "origin"), "data": ("name", "n", "classes"), "threat": ("norm", "eps", "eps_text"),
    "n": (), "suites": (), "commands": (), "environment": (),
}  # fmt: skip
PLAIN = frozenset(("forwards", "backwards", "seconds", "machine", "message", "ties", "mode", "peak_bytes", "adv_digest"))


@dataclass(frozen=True, order=True)
class Chunk:
    """A range of sample indices: the unit of work, of random seed and of storage."""

    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.start:07d}-{self.stop:07d}"


def split(n: int, size: int) -> list[Chunk]:
    """The chunks of the first ``n`` samples; a shorter last range is a chunk of its own name."""
    return [Chunk(start, min(start + size, n)) for start in range(0, n, size)]


def chunk_seed(seed: int, family: str, chunk: Chunk) -> int:
    """The random seed of an attack family on a chunk, the same in every process and order; a non-negative int64."""
    return derive_seed(seed, family, chunk.name)


@dataclass(frozen=True, eq=False, kw_only=True)
class ChunkVerdicts:
    """What one attack did to one chunk. Arrays have one entry per sample of the chunk.

    Attributes:
        index: place of each sample in the data set.
        label, clean_pred: true class, and the class predicted without attack.
        outcome: values of ``Outcome``.
        adv_pred: class predicted for the adversarial image, -1 where there is none.
        distance: of the adversarial image, in the threat model's norm.
        margin: true class's logit minus the largest other on the adversarial image.
        forwards, backwards: passes of the attack, counted in samples; without the engine's own check.
        seconds: of the attack alone.
        machine: threads, processor capability and torch version that computed it.
        message: what went wrong, or "".
        best: values of ``Outcome`` when the adversarial images that the attack came across count, and not only those that it
            returned; as ``outcome`` where the attack is not watched.
        ties: samples that the attack saw misclassified, and the engine, in another batch, did not: a matter of last bits.
        mode: how the attack was run where that is not by itself: "prefix of pgd50".
        peak_bytes: the most memory that the process had used by then (on CUDA: that the device had).
        adv_digest: of the saved adversarial images, or "".
        broken_at: units that the call of the whole chunk had cost when a query first broke the sample, or in all where none did but what
            was returned; NaN where it is not broken. See ``Referee``.
        shown, shown_clean, shown_adv: indices and float32 images that the report may show; mostly empty.
        shown_confidence: float32 (S, 2), the softmax of the predicted class on their clean and adversarial images; NaN for a random model.
    """

    index: np.ndarray
    label: np.ndarray
    clean_pred: np.ndarray
    outcome: np.ndarray
    adv_pred: np.ndarray
    distance: np.ndarray
    margin: np.ndarray
    forwards: int
    backwards: int
    seconds: float
    machine: str
    message: str = ""
    best: np.ndarray = field(default_factory=lambda: np.zeros(0, "U13"))
    ties: int = 0
    mode: str = ""
    peak_bytes: int = 0
    adv_digest: str = ""
    broken_at: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    shown: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    shown_clean: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.float32))
    shown_adv: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.float32))
    shown_confidence: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))

    def __post_init__(self) -> None:
        if len(self.best) != len(self.outcome):
            object.__setattr__(self, "best", self.outcome)
        if len(self.broken_at) != len(self.outcome):  # a chunk of an earlier version
            object.__setattr__(self, "broken_at", np.full(len(self.outcome), np.nan, np.float32))
        if len(self.shown_confidence) != len(self.shown):  # a file of an earlier robench
            object.__setattr__(self, "shown_confidence", np.full((len(self.shown), 2), np.nan, np.float32))

    @property
    def undecided(self) -> np.ndarray:
        """Which samples that the model can classify without attack are neither robust nor broken, bool (N,)."""
        return np.isin(self.outcome, Outcome.UNDECIDED) & (self.clean_pred >= 0)

    @property
    def unmade(self) -> np.ndarray:
        """Which samples have no image because the attack raised, bool (N,). The distance of an image that was judged is known, also
        where the model raised on it."""
        return (self.outcome == Outcome.ERROR) & (self.clean_pred >= 0) & np.isnan(self.distance)

    @property
    def failed(self) -> bool:
        """Whether the attack raised, so that the next run tries it again: memory may suffice then, a disk or a device be there.

        What would be the same again stays: an image that the model cannot classify, an attack that refuses the model, and one by gradients
        of a model that passes none. An image for which memory did not suffice may fit the next time.
        """
        if bool(np.isin(self.outcome, Outcome.ERROR).any()) and any(sign in self.message.lower() for sign in NO_MEMORY):
            return True
        return bool(self.unmade.any()) and not self.message.startswith(REFUSED) and BLIND not in self.message


def attack_folder(column: Column, stage: Attack) -> str:
    """Where a stage's chunks lie below ``chunks/``: keyed by every parameter and the library's version."""
    stages = column.stages if column.is_cascade else (stage,)
    described = [[each.name, each.library, dict(each.params)] for each in stages]
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:10]
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in column.name)
    return f"{name}-{key}/{stage.name}" if column.is_cascade else f"{name}-{key}"


def keeps_images(verdicts: ChunkVerdicts, is_cascade: bool) -> bool:
    """Whether ``--save-adv`` keeps any image of a finished chunk: of every sample, in a cascade of those that the stage was given."""
    if (verdicts.best == Outcome.BROKEN).any():  # by a query, whatever was returned
        return True
    if verdicts.mode.startswith(LEFT_OUT):
        return False
    nothing = {Outcome.INVALID} | ({Outcome.MISCLASSIFIED, Outcome.SKIPPED} if is_cascade else set())
    made = (verdicts.clean_pred >= 0) & ~verdicts.unmade
    return not nothing.issuperset(verdicts.outcome[made])


def follows(verdicts: ChunkVerdicts, previous: ChunkVerdicts) -> bool:
    """Whether a stage's verdicts still hold behind those of the stage before it, which may have been computed again since: it skipped
    nothing that is open, and was not left out for want of what is broken, or undecided, now."""
    decided, skipped = np.isin(previous.outcome, (Outcome.BROKEN, Outcome.SKIPPED)), verdicts.outcome == Outcome.SKIPPED
    if (skipped & ~decided).any():
        return False
    if not verdicts.mode.startswith(LEFT_OUT):
        return True
    return not (decided & ~skipped).any() and (BLIND in verdicts.mode or not previous.undecided.any())


class RunFolder:
    """Chunk files and the description of one run.

    Args:
        path: the folder.
        spec: what it must be about.

    Raises:
        RobenchError: the folder is about something else; the difference is named and nothing is touched.
    """

    def __init__(self, path: Path, spec: RunSpec) -> None:
        self.path, self.spec = Path(path), spec
        # Listed first: whatever another process puts there meanwhile, it puts run.json there before anything else.
        present = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        if (self.path / "run.json").exists():
            earlier = read_run(self.path)["spec"]
            different = [name for name, value in asdict(spec).items() if earlier.get(name) != value]
            if different:
                named = "; ".join(
                    f"{name} is {_brief(earlier.get(name))} there{self._about(name)} and {_brief(getattr(spec, name))} here"
                    for name in different
                )
                raise RobenchError(f"{self.path} holds another run: {named}. Choose another `out`, or delete the folder")
        elif self.path.exists() and not self.path.is_dir():
            raise RobenchError(f"`out={self.path}` is a file; it takes a folder")
        elif any(not name.endswith(PARTIAL) for name in present):
            raise RobenchError(f"{self.path} is not empty and holds no run of robench (no run.json); choose another `out`")

    def _about(self, name: str) -> str:
        """What the data of the run that is there are, in words; nothing of anything else."""
        data = read_run(self.path).get("data", {}) if name == "data" else {}
        how = f", {data['preprocessing']}" if "preprocessing" in data else ""
        return f" ({data['name']}, {data['n']:,} samples{how})" if data.keys() >= {"name", "n"} else ""

    def describe(self, description: Mapping[str, Any]) -> None:
        """Writes run.json."""
        content = {"schema": SCHEMA, "spec": asdict(self.spec), **description}
        write_atomically(self.path / "run.json", (json.dumps(content, indent=2) + "\n").encode())

    def has(self, folder: str, chunk: Chunk) -> bool:
        """Whether a chunk is finished."""
        return (self.path / "chunks" / folder / f"{chunk.name}.npz").exists()

    def read(self, folder: str, chunk: Chunk) -> ChunkVerdicts | None:
        """A finished chunk, or None."""
        path = self.path / "chunks" / folder / f"{chunk.name}.npz"
        return read_chunk(path) if path.exists() else None

    def images_path(self, folder: str, chunk: Chunk) -> Path:
        """Where ``--save-adv`` keeps the adversarial images of a chunk."""
        return self.path / "adv" / folder / f"{chunk.name}.npz"

    def forget(self, folder: str, chunk: Chunk) -> None:
        """Removes a chunk that no longer holds, and its images, if they are there."""
        (self.path / "chunks" / folder / f"{chunk.name}.npz").unlink(missing_ok=True)
        self.images_path(folder, chunk).unlink(missing_ok=True)

    def write(self, folder: str, chunk: Chunk, verdicts: ChunkVerdicts, images: PackedImages | None = None) -> None:
        """Stores a finished chunk, atomically; its images, where there are any, before it. Images of an earlier try go."""
        if images is None:
            self.images_path(folder, chunk).unlink(missing_ok=True)
        else:
            write_atomically(self.images_path(folder, chunk), images.to_bytes())
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{ON_DISK.get(f.name, f.name): getattr(verdicts, f.name) for f in fields(verdicts)})
        write_atomically(self.path / "chunks" / folder / f"{chunk.name}.npz", buffer.getvalue())


def read_run(path: Path) -> dict[str, Any]:
    """The description of a run folder.

    Raises:
        RobenchError: there is none, or it is damaged or of another schema.
    """
    file = Path(path) / "run.json"
    if not file.is_file():
        raise RobenchError(f"{path} is no run folder (no run.json); `robench attack` makes one")
    damaged = f"{file} is damaged{{}}; delete it and run the same attack again, finished chunks are kept"
    try:
        description = json.loads(file.read_text())
        schema = description["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RobenchError(damaged.format("")) from None
    if schema != SCHEMA:
        raise RobenchError(f"{file} has schema {schema}, this robench reads {SCHEMA}; update robench or choose another `out`")
    lacking = _lacking(description)
    if lacking:
        raise RobenchError(damaged.format(f" (it lacks {', '.join(lacking)})"))
    return description


def _lacking(description: dict[str, Any]) -> list[str]:
    """What readers of run.json need and it has not."""
    lacking = []
    for name, inner in NEEDED.items():
        value = description.get(name)
        if value is None or (inner and not isinstance(value, dict)) or (name == "n" and not isinstance(value, int)):
            lacking.append(name)
        else:
            lacking += [f"{name}.{each}" for each in inner if each not in value]
    columns = description.get("suites")
    if columns is not None and not all(map(_is_column, columns if isinstance(columns, list) else [None])):
        lacking.append("a column's name or members")
    return lacking


def _is_column(column: Any) -> bool:
    return (
        isinstance(column, dict)
        and {"name", "cascade", "members"} <= column.keys()
        and isinstance(column["members"], list)
        and all(isinstance(stage, dict) and {"name", "folder"} <= stage.keys() for stage in column["members"])
    )


def read_chunk(path: Path) -> ChunkVerdicts:
    """One chunk file.

    Raises:
        RobenchError: it is damaged, which no interruption can do.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            of_field = {on_disk: name for name, on_disk in ON_DISK.items()}
            values = {of_field.get(name, name): arrays[name] for name in arrays.files}
        plain = {name: values[name].item() for name in values.keys() & PLAIN}
        return ChunkVerdicts(**(values | plain))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError):
        raise RobenchError(f"{path} is damaged; delete it and run the same attack again, the other chunks are kept") from None


def _brief(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
