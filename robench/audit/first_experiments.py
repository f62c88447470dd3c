"""The experiments that every audit wants: the panel, the other radii, the probes; each with its forecast and the checks that it feeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from robench.attacks import parse_columns
from robench.audit.comparisons import TRANSFER
from robench.audit.evidence import AUDITED_RADIUS
from robench.audit.feeds import FEEDS_OF_PROBE, FEEDS_OF_RADIUS, PROBE_UNITS, feeds_of
from robench.audit.forecast import rests, units_of
from robench.audit.measurements import Measurements
from robench.audit.panel import grid, panel, rest
from robench.audit.probes import PROBE_SAMPLES, PROBES, Measured, Subjects, run_probe
from robench.audit.request import GRID_SAMPLES
from robench.audit.schedule import Experiment
from robench.data.augment import in_unit
from robench.evaluation.engine import ColumnGroup, group_columns
from robench.files import write_atomically
from robench.models.subject import classifier_of_checkpoint
from robench.report.accuracy import title
from robench.types import Column, Outcome, ThreatModel

PLAIN = ("fgsm", "pgd1", "pgd20")  # what would have been reported
EARLY = 0.1  # of its forecast, what a sample costs that breaks early


def panel_experiments(measured: Measurements, given: list[Column]) -> Iterator[list[Experiment]]:
    """The panel at the audited radius: what would have been reported, and then the others.

    Args:
        measured: the audit.
        given: columns of stored images.
    """
    threat, n_classes = measured.threat, measured.n_classes
    wanted = [*panel(threat, n_classes, quick=measured.request.quick), *given, *_siblings(measured)]
    if measured.draws > 1:
        wanted += parse_columns("pgd50-eot", threat, n_classes)
    groups = group_columns(wanted)
    plain = [group for group in groups if any(column.name in PLAIN for column in group.columns)]
    for some in (plain, [group for group in groups if group not in plain]):
        yield [_of_group(measured, group, wanted) for group in some]


def _of_group(measured: Measurements, group: ColumnGroup, wanted: list[Column]) -> Experiment:
    """A group of columns of the panel, which are kept in the panel's order."""
    names = [column.name for column in group.columns]
    each = max(units_of(column.stages[0], measured.n_classes) for column in group.columns) + measured.draws * len(names)
    some_rest = rests(group.columns[0].stages[0])

    def run() -> None:
        have = {column.name for column in (*measured.columns, *group.columns)}
        measured.take([column for column in wanted if column.name in have])

    def units() -> float:
        return 0.0 if measured.is_there(list(group.columns)) else each * (measured.left if some_rest else measured.n)

    return Experiment(name=", ".join(map(title, names)), changes=measured.open_text, run=run, feeds=feeds_of(names), units=units)


def _siblings(measured: Measurements) -> list[Column]:
    columns = []
    for path in measured.request.siblings:
        sources = {str(path): classifier_of_checkpoint(path, measured.data, measured.device, measured.task)}
        columns += parse_columns(f"{TRANSFER}{path}", measured.threat, measured.n_classes, sources=sources)
    return columns


def rest_experiment(measured: Measurements) -> Experiment:
    """AutoAttack on what the panel left."""
    column = rest(measured.threat, measured.n_classes, measured.decided())
    each = sum(units_of(stage, measured.n_classes) for stage in column.stages)
    return Experiment(
        name=title(column.name), changes="what gradients miss", run=lambda: measured.add([column]), feeds=("black-box",),
        units=lambda: 0.0 if measured.is_there([column]) else each * measured.left,
    )  # fmt: skip


def radius_experiments(measured: Measurements) -> list[Experiment]:
    """The panel's attacks at other radii."""
    experiments = []
    for at, (radius, names) in grid(measured.threat, measured.data.image_shape, quick=measured.request.quick).items():
        columns = parse_columns(",".join(names), radius, measured.n_classes)
        n = min(measured.n, GRID_SAMPLES)
        units = 0.0 if measured.is_there(columns, at, n) else sum(_units_at(measured, column, radius, n) for column in columns)
        experiments.append(
            Experiment(
                name=f"eps {radius.eps_text}",
                changes="whether attacks find their way",
                units=partial(float, units),
                run=partial(measured.measure, columns, at, radius, n),
                feeds=FEEDS_OF_RADIUS[at],
            )
        )
    return experiments


def _units_at(measured: Measurements, column: Column, radius: ThreatModel, n: int) -> float:
    """A column's forecast at another radius: where samples rest once they are broken, those that are broken in the smaller ball cost
    little in the larger one."""
    attack = column.stages[0]
    standing = min(n, measured.left + EARLY * n) if rests(attack) and radius.eps >= measured.threat.eps else n
    return units_of(attack, measured.n_classes) * standing + measured.draws * n


def probe_experiments(
    measured: Measurements, given: list[Column], tell: Callable[[dict[str, Measured]], None]
) -> list[Experiment]:  # fmt: skip
    """The probes; what those of an interrupted audit measured is kept.

    Args:
        measured: the audit.
        given: columns of stored images.
        tell: is given all that probes have measured by then, in the order of ``PROBES``.
    """
    main = measured.runs[AUDITED_RADIUS]
    clean = main.verdicts[main.verdicts["attack"] == "clean"].sort_values("index")
    index = torch.from_numpy(clean["index"][clean["outcome"] == Outcome.ROBUST].to_numpy()[:PROBE_SAMPLES].copy())
    if not len(index):
        return []
    subjects = _subjects(measured, given, index)
    key = f"{measured.subject.digest[:16]} {measured.threat} {measured.request.seed} {len(index)} {','.join(subjects.external)}"
    file = measured.path("probes").with_suffix(".json")
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    known = known if known.get("key") == key else {"key": key}

    def ask(name: str) -> None:
        if name not in known:
            known[name] = run_probe(name, subjects, measured.request.seed)
            write_atomically(file, (json.dumps(known, indent=2) + "\n").encode())
        tell({each: known[each] for each in PROBES if each in known})

    return [
        Experiment(
            name=f"the probe {name}", changes="what the model does with gradients, batches and chance",
            units=partial(float, 0 if name in known else PROBE_UNITS[name] * len(index)), run=partial(ask, name), feeds=FEEDS_OF_PROBE[name],
        )
        for name in PROBES
    ]  # fmt: skip


def _subjects(measured: Measurements, given: list[Column], index: torch.Tensor) -> Subjects:
    device = measured.subject.classifier.device
    images, labels = in_unit(measured.data.pixels(index)).to(device), measured.data.labels[index].to(device)
    external = {column.name: each[index].to(device) for column in given if (each := column.stages[0].external_images) is not None}
    return Subjects(measured.subject.classifier, images, labels, measured.threat, external)
