"""The report of the reproduction: tables and pictures from the stored verdicts alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robench.files import write_atomically
from robench.report.accuracy import UNION, percent, title
from robench.report.markdown import table
from robench.report.trained import trained_short
from robench.reproduce.cells import cell_by_cell
from robench.reproduce.claims import claims
from robench.reproduce.measured import Measured, load_measured
from robench.reproduce.pictures import draw_protocols, draw_why
from robench.reproduce.plan import ATTACKS, AUTOATTACK, PUBLISHED, Trained
from robench.reproduce.provenance import provenance
from robench.reproduce.reasons import why
from robench.types import RobenchError

INTRODUCTION = (
    "Wang & Wang 2021 report that a ResNet-18 with a second, self-supervised head withstands PGD without adversarial training. Their code "
    "crafted the adversarial images on the single-task model, stored them, and evaluated the other models on the files. Per model, three rows: "
    "what they published; ours under **their protocol** (every test image is attacked on the single-task model of seed 0, the evaluated "
    "model never is); ours **white-box** (the same attacks on the evaluated model itself), with AutoAttack. Percent of all test samples; in "
    "brackets 95 % intervals over test samples."
)
FIGURES = {
    "protocols": "One model, three questions: PGD-20 images that were stored for the single-task model, PGD-20 on the model itself, AutoAttack. "
    "Grey marks: natural accuracy.",
    "why": "Left: accuracy on the stored images against their size; if the size decided, FGSM's (the weakest attack, the largest images) would "
    "break most. Middle: how often the stored perturbation has the sign of the evaluated model's own gradient. Right: the loss along the stored "
    "perturbation, and along the model's own.",
}


def write_page(out: Path, plan: list[Trained], commands: Mapping[str, str]) -> Path:
    """Writes report.md, summary.csv and figures/ about every model of the plan that is finished, and says which are not.

    Args:
        out: where the verdicts lie.
        plan: the models.
        commands: for each data set what completes it.

    Raises:
        RobenchError: verdicts do not belong together.
    """
    import pandas as pd

    measured = [each for model in plan if (each := load_measured(out, model)) is not None]
    sections = ["# The paper's experiment, done again", INTRODUCTION]
    shown: list[Measured] = []
    for dataset in dict.fromkeys(model.dataset for model in plan):
        models = [each for each in measured if each.model.dataset == dataset]
        if models:
            models = _of_one_source(dataset, models)
            sections += _of_dataset(out, dataset, models)
            shown += models
    missing = [model for model in plan if model.name not in {each.model.name for each in measured}]
    if missing:
        sections.append("## Not finished\n\n" + _missing(missing, commands))
    sections.append("## How it was obtained\n\n" + provenance(measured))
    rows = pd.DataFrame([row for each in shown for row in _rows(each)])
    write_atomically(out / "summary.csv", rows.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode())
    write_atomically(out / "report.md", ("\n\n".join(sections) + "\n").encode())
    return out / "report.md"


def _missing(missing: list[Trained], commands: Mapping[str, str]) -> str:
    lines = []
    for dataset in dict.fromkeys(model.dataset for model in missing):
        names = ", ".join(model.name for model in missing if model.dataset == dataset)
        lines.append(f"- {names}: `{commands[dataset]}` goes on with them.")
    return "\n".join(lines)


def _of_one_source(dataset: str, models: list[Measured]) -> list[Measured]:
    """The models of a table, without what was said of other stored images than those of its single-task model.

    Raises:
        RobenchError: there are several kinds of stored images, and that model is not there to say which are the table's.
    """
    source = next((measured for measured in models if measured.model.is_source), None)
    if source is not None:
        wanted = source.about["source digest"]
        return [measured if measured.about["source digest"] == wanted else measured.without_stored() for measured in models]
    if len({measured.about["source digest"] for measured in models}) > 1:
        names = ", ".join(f"{measured.model.name} {measured.about['source digest'][:12]}" for measured in models)
        raise RobenchError(
            f"{dataset}: the stored images are of different weights of the single-task model ({names}); delete the verdicts of one kind and run "
            "the same command again"
        )
    return models


def _of_dataset(out: Path, dataset: str, models: list[Measured]) -> Iterator[str]:
    yield f"## {dataset}"
    yield _table(dataset, models)
    if told := cell_by_cell(dataset, models):
        yield "### Published and ours, cell by cell\n\n" + told
    stated = list(claims(dataset, models))
    if stated:
        yield "### What the paper claims, and what holds\n\n" + "\n".join(f"- {claim}" for claim in stated)
    plain = [measured for measured in models if measured.about["mechanism"] and measured.model.adversarial == "none"]
    others = [measured for measured in plain if measured.model.seed == 0 or measured.model.role == "second seed"]
    for name, figure in {"protocols": draw_protocols(models), **({"why": draw_why(others)} if others else {})}.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
        write_atomically(out / "figures" / f"{dataset}-{name}.png", buffer.getvalue())
        yield f"![{FIGURES[name]}](figures/{dataset}-{name}.png)\n\n{FIGURES[name]}"
    if others:
        yield "### Why\n\n" + "\n\n".join(why(models))
    spread = _spread(models)
    if spread:
        yield "### Spread over training seeds\n\n" + spread


def _table(dataset: str, models: list[Measured]) -> str:
    """Three rows a model: published, the paper's protocol, white-box; and in columns of their own what trainings differ in."""
    lines, differing = [], _differing(models)
    for place, measured in enumerate(models):
        trained = [cells[place] for cells in differing.values()]
        published = PUBLISHED.get(dataset, {}).get(measured.model.arch) if measured.model.role == "paper" else None
        if published:
            lines.append(
                [
                    f"**{measured.model.title}**",
                    "published",
                    *(f"{value:.2f}" for value in published),
                    "",
                    "",
                    *("" for _ in trained),
                ]
            )
        name = "" if published else f"**{measured.model.title}**"
        if not measured.has_stored:
            lines.append(
                [
                    name,
                    "their protocol, ours",
                    _cell(measured, "clean"),
                    *("not evaluated" for _ in ATTACKS),
                    "",
                    f"{measured.n:,}",
                    *trained,
                ]
            )
            name = ""
        elif not measured.model.is_source:
            cells = [_cell(measured, attack, stored=True) for attack in ATTACKS]
            lines.append([name, "their protocol, ours", _cell(measured, "clean"), *cells, "", f"{measured.n:,}", *trained])
            name = ""
        cells = [_cell(measured, attack) for attack in (*ATTACKS, AUTOATTACK)]
        lines.append([name, "white-box, ours", _cell(measured, "clean"), *cells, f"{measured.n:,}", *trained])
    header = ["model", "protocol", "natural", *(title(attack) for attack in (*ATTACKS, AUTOATTACK)), "n", *differing]
    note = "The stored images are the single-task model's (seed 0), whose own row is white-box in the paper too."
    if not all(measured.has_stored for measured in models):
        note += (
            ' "Not evaluated": the weights of that model are not kept, and its verdicts on stored images were about those of an earlier '
            "single-task model."
        )
    return f"{table(header, lines)}\n\n{note}"


def _differing(models: list[Measured]) -> dict[str, list[str]]:
    """What the trainings of a table differ in, a cell per model: epochs; device and precision."""
    columns = {
        "epochs": [str(measured.origin["recipe"]["epochs"]) for measured in models],
        "trained": [trained_short(measured.origin) for measured in models],
    }
    return {name: cells for name, cells in columns.items() if len(set(cells)) > 1}


def _cell(measured: Measured, attack: str, *, stored: bool = False) -> str:
    bounds = measured.bounds(attack, stored=stored)
    return f"{percent(measured.accuracy(attack, stored=stored))} [{100 * bounds.low:.1f}, {100 * bounds.high:.1f}]"


def _spread(models: list[Measured]) -> str:
    """Mean and range over seeds, of models that were trained with several."""
    lines = []
    for arch in dict.fromkeys(measured.model.arch for measured in models):
        of_arch = [each for each in models if each.model.arch == arch and each.model.role in ("paper", "second seed")]
        if len(of_arch) > 1:
            columns = [
                [100 * measured.accuracy("clean") for measured in of_arch],
                [
                    100 * measured.accuracy("pgd20", stored=True)
                    for measured in of_arch
                    if measured.has_stored and not measured.model.is_source
                ],
                [100 * measured.accuracy(UNION) for measured in of_arch],
            ]
            cells = [f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f}), {len(values)}" for values in columns]
            lines.append([arch, *cells])
    header = ["mean (range), trainings", "natural", "stored PGD-20", "white-box union"]
    return table(header, lines) if lines else ""


def _rows(measured: Measured) -> Iterator[dict[str, Any]]:
    """summary.csv: one row per model, protocol and attack."""
    cells = [("none", "clean", False)]
    cells += [] if measured.model.is_source or not measured.has_stored else [("paper", attack, True) for attack in ATTACKS]
    cells += [("white-box", attack, False) for attack in (*ATTACKS, AUTOATTACK, UNION)]
    for protocol, attack, stored in cells:
        bounds = measured.bounds(attack, stored=stored)
        yield {
            "dataset": measured.model.dataset, "model": measured.model.name, "role": measured.model.role, "seed": measured.model.seed,
            "protocol": protocol, "attack": attack, "n": measured.n, "accuracy": measured.accuracy(attack, stored=stored),
            "ci_low": bounds.low, "ci_high": bounds.high, "epochs": measured.origin["recipe"]["epochs"], "trained": trained_short(measured.origin),
        }  # fmt: skip
