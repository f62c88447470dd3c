"""How it was found, section by section: costs, settings, threat model."""

from __future__ import annotations

import pandas as pd

from robench.evaluation.results import Results
from robench.report.accuracy import in_autoattacks, is_stage, title
from robench.report.html.parts import Cell, Heading, Table, count, number
from robench.report.metadata import attack_settings, preprocessing_text, threat_text
from robench.types import AUTOATTACK_UNITS

UNIT = (
    f"1 is what AutoAttack spends on the same samples where all of them survive: {AUTOATTACK_UNITS:,} units each, a forward pass 1, "
    "a backward pass 2"
)


def ledger_table(summary: pd.DataFrame) -> Table:
    """What every attack cost."""
    columns = (
        Heading("attack", number=False), Heading("forwards"), Heading("backwards"), Heading("seconds"), Heading("ms per sample"),
        Heading("AutoAttacks", about=UNIT), Heading("how", number=False),
    )  # fmt: skip
    right = int(summary.iloc[0]["n"] - summary.iloc[0]["misclassified"])
    rows = []
    for _, row in summary.iterrows():
        units = in_autoattacks(row["forwards"], row["backwards"], right)
        each = Cell(
            "" if pd.isna(row["seconds_per_sample"]) else f"{1000 * row['seconds_per_sample']:,.1f}", row["seconds_per_sample"]
        )
        name = Cell(
            row["attack"].rpartition("/")[2] if is_stage(row["attack"]) else title(row["attack"]),
            kind="stage" if is_stage(row["attack"]) else "",
            note=row["attack"],
        )
        rows.append(
            [
                name,
                count(row["forwards"]),
                count(row["backwards"]),
                number(row["seconds"]),
                each,
                number(units, 4),
                Cell(row["mode"]),
            ]
        )
    return Table("ledger", "Passes in samples, seconds, and passes as a multiple of AutoAttack's", columns, rows)


def settings_table(results: Results) -> Table | None:
    """Library, parameters and source of every attack."""
    columns = tuple(Heading(name, number=False) for name in ("attack", "library", "parameters", "source"))
    rows = [
        [Cell(name), Cell(library), Cell(params), _source(source)] for name, library, params, source in attack_settings(results)
    ]
    return Table("settings", "How each attack was run", columns, rows, sortable=False) if rows else None


def _source(text: str) -> Cell:
    """A source, its address as a link."""
    before, scheme, address = text.partition("https://")
    return Cell(before.rstrip(", ") or address, href=scheme + address) if scheme else Cell(text)


def run_threat(results: Results) -> list[tuple[str, str]]:
    """The threat model as names and texts."""
    run = results.description
    threat, preprocessing = run["threat"], preprocessing_text(run)
    return [
        ("norm and radius", f"{threat['norm']}, eps {threat['eps_text']} in pixel units of [0, 1] ({threat['eps']:.6g}): {threat_text(threat)}, inside [0, 1]"),
        ("knowledge", "white box, but for attacks named `attack@model`".replace("`", "")),
        ("success", "any wrong class, on a fresh float32 pass of robench over the attack's image"),
        ("data", f"{run['data']['name']}, {run['data']['split']} split, first {run['n']:,} of {run['data']['n']:,}"),
        *([("preprocessing", preprocessing)] if preprocessing else []),
    ]  # fmt: skip
