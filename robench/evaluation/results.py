"""A run folder's chunks as tables: everything that a report, an audit or a comparison may look at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robench.evaluation.run_folder import CLEAN, Chunk, ChunkVerdicts, RunFolder, attack_folder, read_chunk, read_run, split
from robench.types import Column, Outcome, RobenchError

if TYPE_CHECKING:
    import pandas as pd

# Where several attacks speak about one sample: broken by any is broken; else an attack that failed leaves it open; else robust.
_SAYS = {
    Outcome.SKIPPED: 0,
    Outcome.ROBUST: 1,
    Outcome.ERROR: 2,
    Outcome.INVALID: 2,
    Outcome.BROKEN: 3,
    Outcome.MISCLASSIFIED: 3,
}


@dataclass(frozen=True, eq=False)
class Examples:
    """Samples that a report may show, of one attack.

    Attributes:
        index: their places in the data set, int64 (S,).
        clean, adv: images, float32 (S, C, H, W) in [0, 1].
        confidence: float32 (S, 2), the softmax of the predicted class on each; NaN where it is not known.
    """

    index: np.ndarray
    clean: np.ndarray
    adv: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class Results:
    """One run, read from its folder.

    Attributes:
        path: the folder.
        description: run.json.
        verdicts: a row per sample and attack: attack, index, label, clean_pred, outcome, adv_pred, distance, margin, best, broken_at, chunk. Attacks
            are "clean", every column, and every stage of a cascade as "autoattack/apgd-ce"; outcome is about what an attack returned,
            best about everything that it came across.
        ledger: a row per attack that ran and chunk: attack, chunk, forwards, backwards, seconds, machine, message, ties, mode,
            peak_bytes.
        columns: the names that make the union, in order, without "clean".
        stages: column to the names of its stages, empty for a single attack.
        unfinished: columns of which chunks are missing, which no table shows.
        examples: attack to what the report may show.
    """

    path: Path
    description: dict[str, Any]
    verdicts: pd.DataFrame
    ledger: pd.DataFrame
    columns: list[str]
    stages: dict[str, list[str]]
    unfinished: list[str]
    examples: dict[str, Examples]


def read_results(path: Path, *, begun: bool = False) -> Results:
    """Reads the finished columns of a run.

    Args:
        path: the folder.
        begun: take a cascade that was stopped between two stages for what its finished stages say.

    Raises:
        RobenchError: it is no run folder, a file is damaged, or not even the clean predictions are finished.
    """
    import pandas as pd

    description = read_run(path)
    chunks = split(description["n"], description["spec"]["chunk"])

    def load(folder: str) -> list[ChunkVerdicts] | None:
        files = [Path(path) / "chunks" / folder / f"{chunk.name}.npz" for chunk in chunks]
        return [read_chunk(file) for file in files] if all(file.exists() for file in files) else None

    clean = load(CLEAN)
    if clean is None:
        raise RobenchError(f"{path} has no finished results yet; run the same `robench attack` again")
    loaded, columns, stages, unfinished = {CLEAN: clean}, [], {}, []
    for column in description["suites"]:
        loaded_stages = {stage["name"]: load(stage["folder"]) for stage in column["members"]}
        parts = {
            name: part for name, part in takewhile(lambda stage: stage[1] is not None, loaded_stages.items()) if part is not None
        }
        if len(parts) < len(loaded_stages) and not (begun and column["cascade"] and parts):
            unfinished.append(column["name"])
            continue
        columns.append(column["name"])
        named = {f"{column['name']}/{name}" if column["cascade"] else column["name"]: part for name, part in parts.items()}
        stages[column["name"]] = list(named) if column["cascade"] else []
        loaded |= named
    frames = {name: _verdict_frame(name, parts, chunks) for name, parts in loaded.items()}
    for name in columns:
        if stages[name]:
            frames[name] = decide([frames[each] for each in stages[name]], name)
    order = [CLEAN] + [row for name in columns for row in (name, *stages[name])]
    return Results(
        path=Path(path),
        description=description,
        verdicts=pd.concat([frames[name] for name in order], ignore_index=True),
        ledger=_ledger_frame(loaded, chunks),
        columns=columns,
        stages=stages,
        unfinished=unfinished,
        examples={name: _examples(parts) for name, parts in loaded.items() if len(parts[0].shown)},
    )


def is_complete(folder: RunFolder, columns: list[Column], n: int) -> bool:
    """Whether every chunk of every suite is there, whoever computed it."""
    wanted = [CLEAN, *(attack_folder(column, stage) for column in columns for stage in column.stages)]
    return all(folder.has(subfolder, chunk) for subfolder in wanted for chunk in split(n, folder.spec.chunk))


def failures(results: Results) -> list[str]:
    """What attacks failed with, and which images the model cannot classify without one, one line each; empty where every verdict stands."""
    failed = failing(results.ledger)
    return [f"{row.attack}, chunk {row.chunk}: {row.message}" for row in failed.itertuples()]


def announced(failure: str) -> str:
    """One line of ``failures`` with what it is about before it."""
    about_clean = re.match(rf"(.*: )?{CLEAN}, chunk ", failure)
    return f"{'not classified' if about_clean else 'attack failed'}: {failure}"


def failing(ledger: pd.DataFrame) -> pd.DataFrame:
    """The rows of a ledger with a message; what is said of the clean images of a chunk is no attack's failure, and stands there once."""
    said = ledger[ledger["message"] != ""]
    if CLEAN not in set(said["attack"]):
        return said
    clean = set(said.loc[said["attack"] == CLEAN, "message"])
    return said[(said["attack"] == CLEAN) | ~said["message"].isin(clean)]


def decide(frames: list[pd.DataFrame], name: str) -> pd.DataFrame:
    """What several attacks together say per sample, as rows of an attack called ``name``.

    Each sample takes the row of the attack that decided it; of equals, the last. ``best`` is decided by itself.
    """
    import pandas as pd

    deciding = _deciding(frames, "outcome")
    best = np.stack([frame["best"].to_numpy() for frame in frames])[_deciding(frames, "best"), np.arange(len(deciding))]
    together = pd.concat([frame.reset_index(drop=True).assign(place=place) for place, frame in enumerate(frames)])
    chosen = together[together["place"].to_numpy() == deciding[together.index]]
    return chosen.sort_index().drop(columns="place").assign(attack=name, best=best)


def _deciding(frames: list[pd.DataFrame], which: str) -> np.ndarray:
    """For each sample the place of the attack whose word counts."""
    ranks = np.stack([frame[which].map(_SAYS).to_numpy() for frame in frames])
    return len(frames) - 1 - ranks[::-1].argmax(0)


def _verdict_frame(name: str, parts: list[ChunkVerdicts], chunks: list[Chunk]) -> pd.DataFrame:
    import pandas as pd

    fields = ("index", "label", "clean_pred", "outcome", "adv_pred", "distance", "margin", "best", "broken_at")
    frame = pd.DataFrame({field: np.concatenate([getattr(part, field) for part in parts]) for field in fields})
    frame["chunk"] = np.concatenate([np.full(len(part.index), chunk.name) for chunk, part in zip(chunks, parts, strict=True)])
    frame.insert(0, "attack", name)
    return frame


def _ledger_frame(loaded: dict[str, list[ChunkVerdicts]], chunks: list[Chunk]) -> pd.DataFrame:
    import pandas as pd

    fields = ["forwards", "backwards", "seconds", "machine", "message", "ties", "mode", "peak_bytes"]
    return pd.DataFrame(
        [
            (name, chunk.name, *(getattr(part, field) for field in fields))
            for name, parts in loaded.items()
            for chunk, part in zip(chunks, parts, strict=True)
        ],
        columns=["attack", "chunk", *fields],
    )


def _examples(parts: list[ChunkVerdicts]) -> Examples:
    return Examples(parts[0].shown, parts[0].shown_clean, parts[0].shown_adv, parts[0].shown_confidence)
