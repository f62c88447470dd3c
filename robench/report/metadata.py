"""What a report says besides its numbers: reservations, threat model, provenance. Plain text, laid out by each kind of page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robench.evaluation.results import Results, failing
from robench.evaluation.run_folder import CLEAN
from robench.norms import NORMS
from robench.report.trained import trained_and_evaluated, training_facts

READING = (
    "Robust accuracy measured by attacks is an upper bound: a stronger attack can only lower it. Samples misclassified without "
    "attack count as not robust. Intervals are Wilson's (Clopper-Pearson's at 0 and n) and cover the sampling of test images only. "
    "`broken` counts what an attack returned, `by best query` every image that it showed to the model inside the ball, each verified by "
    "robench. `union` counts a sample as robust only where no query of any attack broke it; a row `suite/stage` shows what is left "
    "after that stage. `attack@model` is a transfer attack: crafted on that other model. Passes "
    "are counted in samples; the check of every adversarial image by robench itself is not among them."
)


@dataclass(frozen=True)
class Note:
    """A reservation about a whole run: a word or two, a sentence, and what it is about, item by item."""

    title: str
    text: str
    items: tuple[str, ...] = ()


def notes(results: Results, summary: pd.DataFrame) -> list[Note]:
    """What a reader must know before believing a table."""
    run, notes_so_far = results.description, []
    if run["n"] < run["data"]["n"]:
        notes_so_far.append(Note("Partial", f"the first {run['n']:,} of {run['data']['n']:,} {run['data']['split']} samples."))
    messages = failing(results.ledger).groupby("attack", sort=False)["message"]
    clean = list(messages.get_group(CLEAN)) if CLEAN in messages.groups else []
    if clean:
        text = "samples that the model cannot classify even without attack count neither as robust nor as broken."
        notes_so_far.append(Note("Not classified", text, tuple(clean)))
    failed = tuple(f"{name}: {message}" for name, message in messages.first().items() if name != CLEAN)
    if failed and (summary["undecided"] > 0).any():
        text = "samples it failed on count neither as robust nor as broken, so that accuracies are given as bounds."
        notes_so_far.append(Note("An attack failed", text, failed))
    if results.unfinished:
        notes_so_far.append(Note("Unfinished, not shown", f"{', '.join(results.unfinished)}. The same command goes on."))
    machines = sorted(set(results.ledger["machine"]))
    if len(machines) > 1:
        notes_so_far.append(Note("Mixed machines", f"last bits may differ between them. {'; '.join(machines)}"))
    ties = results.ledger.groupby("attack", sort=False)["ties"].sum()
    if ties.any():
        listed = ", ".join(f"{name} {count}" for name, count in ties.items() if count)
        text = (
            f"{listed}. Samples that an attack saw misclassified, and robench's own pass over the same image in another "
            "batch did not; they count as robust."
        )
        notes_so_far.append(Note("Last-bit ties", text))
    return notes_so_far


def provenance(results: Results) -> list[tuple[str, str]]:
    """How the model was trained and on what it is evaluated, then data, machine and versions."""
    run = results.description
    preprocessing = preprocessing_text(run)
    return [
        *_training(run),
        *((f"model, {name}", inline({"": value}).strip()) for name, value in run["model"]["origin"].items()),
        ("digest of weights and code", run["spec"]["model"]),
        ("digest of the data", run["spec"]["data"]),
        *([("preprocessing of images", preprocessing)] if preprocessing else []),
        ("attack seed", str(run["spec"]["seed"])),
        ("samples a chunk", str(run["spec"]["chunk"])),
        ("machine", "; ".join(sorted(set(results.ledger["machine"])))),
        ("peak memory", f"{results.ledger['peak_bytes'].max() / 2**30:.1f} GiB"),
        ("environment", inline(run["environment"])),
    ]


def _training(run: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of a checkpoint of ours; of somebody else's model nothing is."""
    origin = run["model"]["origin"]
    if "recipe" not in origin:
        return []
    return [
        ("model", trained_and_evaluated(origin, run["spec"]["device_type"])),
        ("training", "; ".join(f"{name} {text}" for name, text in training_facts(origin))),
    ]


def attack_settings(results: Results) -> list[tuple[str, str, str, str]]:
    """Name, library, parameters and source of every attack and stage."""
    return [
        (
            f"{column['name']}/{stage['name']}" if column["cascade"] else column["name"],
            stage["library"],
            inline(stage["params"]),
            stage["source"],
        )
        for column in results.description["suites"]
        for stage in column["members"]
        if column["name"] in results.columns
    ]


def commands(results: Results) -> list[str]:
    """What to type to have the run again."""
    return results.description["commands"] or ["robench.evaluate(...), called from Python"]


def samples_text(run: dict[str, Any]) -> str:
    """On how many samples a run is, and of how many where it leaves some out."""
    n, all_of_them = run["n"], run["data"]["n"]
    return f"n = {n:,}" if n >= all_of_them else f"the first {n:,} of {all_of_them:,} samples"


def preprocessing_text(run: dict[str, Any]) -> str:
    """What was done to images before they were attacked, and where the threat model acts; "" where run.json says nothing of it."""
    how = run["data"].get("preprocessing")
    return f"{how}; the threat model acts on pixels in [0, 1] after it and before normalisation" if how else ""


def short(name: str, limit: int = 40) -> str:
    """A class's name, cut where it is longer than ``limit``."""
    return name if len(name) <= limit else name[: limit - 1].rstrip(" ,") + "…"


def threat_text(threat: dict[str, Any]) -> str:
    """What the adversary may do, in words."""
    norm = threat["norm"]
    moves = NORMS[norm].moves if norm in NORMS else f"the image may move by at most {{eps}} in {norm}"
    return moves.format(eps=threat["eps_text"])


def inline(values: dict[str, Any]) -> str:
    """Names and values on one line, or "none"."""
    return ", ".join(f"{name} {_text(value)}" for name, value in values.items()) or "none"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return inline(value)
    return value if isinstance(value, str) else json.dumps(value)
