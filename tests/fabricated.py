"""Run folders of random verdicts: as large as real ones of big data sets, and made in seconds."""

from dataclasses import dataclass

import numpy as np
from cases import described

from robench.evaluation.run_folder import CLEAN, Chunk, ChunkVerdicts, RunFolder, split
from robench.types import Outcome, RunSpec


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large a run is.

    Attributes:
        n, classes: samples, and how many classes their labels are of.
        attacks: columns of one attack each.
        chunk: samples a chunk.
        side, shown: pixels a side of the examples, and how many each attack keeps.
        cascade: whether there is a column of three stages as well, which noted when samples broke.
        data: what run.json says of the data besides.
    """

    n: int
    classes: int = 10
    attacks: tuple[str, ...] = ("fgsm", "pgd20")
    chunk: int = 250
    side: int = 32
    shown: int = 0
    cascade: bool = False
    data: tuple[tuple[str, object], ...] = ()


def fabricate(path, shape, seed=0):
    """Writes a run of random verdicts, chunk by chunk as an engine does, and returns its folder."""
    rng = np.random.default_rng(seed)
    spec = RunSpec(model=f"model{seed}", data="data", norm="Linf", eps=4 / 255, seed=0, chunk=shape.chunk, device_type="cpu")
    folder = RunFolder(path, spec)
    members = {name: [(name, name)] for name in shape.attacks}
    if shape.cascade:
        members["autoattack"] = [(stage, f"autoattack/{stage}") for stage in ("apgd-ce", "fab-t", "square")]
    columns = [
        {
            "name": name, "cascade": name == "autoattack",
            "members": [{"name": stage, "folder": where, "params": {}, "library": "tests", "source": ""} for stage, where in stages],
        }
        for name, stages in members.items()
    ]  # fmt: skip
    about = described(shape.n, columns)
    names = [f"class {k} of a name so long that no table has the room, n{k:08d}" for k in range(shape.classes)]
    about["data"] |= {"classes": names} | dict(shape.data)
    about["model"]["name"] = f"fabricated {seed}"
    folder.describe(about | {"threat": {"norm": "Linf", "eps": 4 / 255, "eps_text": "4/255"}})
    for chunk in split(shape.n, shape.chunk):
        clean = _clean(chunk, shape, rng)
        folder.write(CLEAN, chunk, clean)
        for stages in members.values():
            given = clean.outcome == Outcome.ROBUST
            for _, where in stages:
                verdicts = _attacked(clean, given, shape, rng)
                given = given & (verdicts.outcome == Outcome.ROBUST)
                folder.write(where, chunk, verdicts)
    return path


def _clean(chunk: Chunk, shape, rng):
    size = chunk.stop - chunk.start
    label = rng.integers(0, shape.classes, size)
    right = rng.random(size) < 0.75
    pred = np.where(right, label, (label + 1) % shape.classes)
    return ChunkVerdicts(
        index=np.arange(chunk.start, chunk.stop), label=label, clean_pred=pred,
        outcome=np.where(right, Outcome.ROBUST, Outcome.MISCLASSIFIED).astype("U13"), adv_pred=pred,
        distance=np.zeros(size, np.float32), margin=np.where(right, 1, -1).astype(np.float32), forwards=size, backwards=0, seconds=1.0,
        machine="none",
    )  # fmt: skip


def _attacked(clean, given, shape, rng):
    """Breaks a third of what it is given."""
    size = len(clean.label)
    broken = given & (rng.random(size) < 0.33)
    wrong = clean.outcome == Outcome.MISCLASSIFIED
    outcome = np.select([wrong, broken, given], [Outcome.MISCLASSIFIED, Outcome.BROKEN, Outcome.ROBUST], Outcome.SKIPPED).astype(
        "U13"
    )
    shown = np.flatnonzero(given)[: shape.shown] if clean.index[0] == 0 else np.zeros(0, int)
    images = rng.integers(0, 256, (len(shown), 3, shape.side, shape.side)).astype(np.float32) / 255
    noise = rng.choice(np.array([-4, 4], np.float32) / 255, images.shape)
    return ChunkVerdicts(
        index=clean.index, label=clean.label, clean_pred=clean.clean_pred, outcome=outcome,
        adv_pred=np.where(broken, (clean.label + rng.integers(1, 4, size)) % shape.classes, np.where(outcome == Outcome.SKIPPED, -1, clean.clean_pred)),
        distance=np.where(given, np.float32(4 / 255), np.nan).astype(np.float32), margin=rng.standard_normal(size).astype(np.float32),
        forwards=20 * int(given.sum()), backwards=20 * int(given.sum()), seconds=1.0, machine="none", peak_bytes=1 << 30,
        broken_at=np.where(broken, rng.integers(1, 2000, size), np.nan).astype(np.float32), shown=clean.index[shown], shown_clean=images,
        shown_adv=np.clip(images + noise, 0, 1), shown_confidence=np.full((len(shown), 2), 0.5, np.float32),
    )  # fmt: skip
