"""How the numbers of the reproduction were obtained: on what each model was trained and evaluated, from its stored verdicts alone."""

from __future__ import annotations

from robench.report.markdown import table
from robench.report.trained import stored, trained_and_evaluated, trained_on
from robench.reproduce.measured import Measured

HEADER = [
    "model", "epochs", "seed", "trained on", "step", "training, min", "recipe", "trained with", "weights", "stored", "attacks, min", "forwards",
    "backwards", "attacked with", "processor",
]  # fmt: skip


def provenance(measured: list[Measured]) -> str:
    """Threat model, where models were trained and evaluated, a row about each, and the commands, in markdown."""
    threats = sorted({f"{found.about['threat']['norm']} {found.about['threat']['eps_text']}" for found in measured})
    notes = (
        f"Threat model {', '.join(threats)}; PGD steps of eps/4 from a random start; attack seed 0, chunks of "
        f"{', '.join(sorted({str(found.about['chunk']) for found in measured}))}. A row per test sample lies in `verdicts/MODEL.csv`, with "
        "everything about its model beside it, and the tables here are made of those files alone. Weights are rounded, as `stored` says, before "
        "they are evaluated; where a model's file is there, `robench attack --ckpt MODEL.safetensors --suite paper,autoattack -n N` repeats its "
        "white-box row. Minutes are by the wall clock, whatever else the machine did."
    )
    if not measured:
        return notes
    commands = "\n".join(dict.fromkeys(found.about["command"] for found in measured))
    return f"{notes}\n\n{_where(measured)}\n\n{table(HEADER, [_row(found) for found in measured])}\n\n```\n{commands}\n```"


def _where(measured: list[Measured]) -> str:
    """A line for each way in which models were trained and evaluated, with their names."""
    groups: dict[str, list[str]] = {}
    for found in measured:
        said = trained_and_evaluated(found.origin, found.about["device"])
        groups.setdefault(said[0].upper() + said[1:], []).append(f"`{found.model.name}`")
    return "\n".join(f"- {said}: {', '.join(names)}." for said, names in groups.items())


def _row(found: Measured) -> list[str]:
    about, recipe, versions = found.about, found.origin["recipe"], found.origin["versions"]
    return [
        f"`{found.model.name}`", str(recipe["epochs"]), str(recipe["seed"]), trained_on(found.origin), versions.get("step", ""),
        f"{found.origin['training seconds'] / 60:.0f}", recipe["recipe"], f"torch {versions['torch']}", f"`{found.origin['weights'][:12]}`",
        stored(found.origin), f"{about['seconds'] / 60:.0f}", f"{about['forwards']:,}", f"{about['backwards']:,}", "; ".join(about["machine"]),
        str(about["environment"]["processor"]),
    ]  # fmt: skip
