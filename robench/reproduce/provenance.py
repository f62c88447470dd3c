"""How the numbers of the reproduction were obtained: on what each model was trained and evaluated, from its stored verdicts alone."""

from __future__ import annotations

from robench.report.markdown import table
from robench.report.trained import trained_and_evaluated, trained_on, weights_format
from robench.reproduce.measured import Measured

HEADER = [
    "model", "epochs", "seed", "trained on", "step", "training, min", "recipe", "trained with", "weights", "stored", "attacks, min", "forwards",
    "backwards", "attacked with", "processor",
]  # fmt: skip


def provenance(measured: list[Measured]) -> str:
    """Threat model, where models were trained and evaluated, a row about each, and the commands, in markdown."""
    threats = sorted({f"{each.about['threat']['norm']} {each.about['threat']['eps_text']}" for each in measured})
    notes = (
        f"Threat model {', '.join(threats)}; PGD steps of eps/4 from a random start; attack seed 0, chunks of "
        f"{', '.join(sorted({str(each.about['chunk']) for each in measured}))}. A row per test sample lies in `verdicts/MODEL.csv`, with "
        "everything about its model beside it, and the tables here are made of those files alone. Weights are rounded, as `stored` says, before "
        "they are evaluated; where a model's file is there, `robench attack --ckpt MODEL.safetensors --suite paper,autoattack -n N` repeats its "
        "white-box row. Minutes are by the wall clock, whatever else the machine did."
    )
    if not measured:
        return notes
    commands = "\n".join(dict.fromkeys(each.about["command"] for each in measured))
    return f"{notes}\n\n{_where(measured)}\n\n{table(HEADER, [_row(each) for each in measured])}\n\n```\n{commands}\n```"


def _where(measured: list[Measured]) -> str:
    """A line for each way in which models were trained and evaluated, with their names."""
    groups: dict[str, list[str]] = {}
    for each in measured:
        sentence = trained_and_evaluated(each.origin, each.about["device"])
        groups.setdefault(sentence[0].upper() + sentence[1:], []).append(f"`{each.model.name}`")
    return "\n".join(f"- {sentence}: {', '.join(names)}." for sentence, names in groups.items())


def _row(measured: Measured) -> list[str]:
    about, recipe, versions = measured.about, measured.origin["recipe"], measured.origin["versions"]
    return [
        f"`{measured.model.name}`", str(recipe["epochs"]), str(recipe["seed"]), trained_on(measured.origin), versions.get("step", ""),
        f"{measured.origin['training seconds'] / 60:.0f}", recipe["recipe"], f"torch {versions['torch']}", f"`{measured.origin['weights'][:12]}`",
        weights_format(measured.origin), f"{about['seconds'] / 60:.0f}", f"{about['forwards']:,}", f"{about['backwards']:,}", "; ".join(about["machine"]),
        str(about["environment"]["processor"]),
    ]  # fmt: skip
