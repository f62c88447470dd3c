"""``robench doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robench.cli.group import main

if TYPE_CHECKING:
    from robench.doctor import Diagnosis


@main.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets lie [default: $ROBENCH_DATA, else the cache].")
@click.option("--measure/--no-measure", default=True, show_default=True, help="Time a ResNet-18, about two seconds.")
@click.option("--json", "as_json", is_flag=True, help="The same for programs: a list of topic, name, says and repair.")
def doctor(data_dir: Path | None, measure: bool, as_json: bool) -> None:
    """Say what is installed, what clashes, what this machine can do, where data lies, and how to repair what is broken.

    Exits with 1 where something must be repaired.
    """
    from robench.doctor import diagnose

    diagnoses = diagnose(data_dir, measure=measure)
    broken = [each for each in diagnoses if each.repair]
    if as_json:
        click.echo(json.dumps([asdict(each) for each in diagnoses], indent=2))
    else:
        _show(diagnoses)
        click.echo(f"{len(broken)} to repair" if broken else "nothing to repair")
    if broken:
        click.get_current_context().exit(1)


def _show(diagnoses: list[Diagnosis]) -> None:
    """Topic by topic, and under what is broken how to repair it."""
    width = max(len(each.name) for each in diagnoses)
    for topic in dict.fromkeys(each.topic for each in diagnoses):
        click.echo(topic)
        for each in (each for each in diagnoses if each.topic == topic):
            click.echo(f"{'!' if each.repair else ' '} {each.name:<{width}}  {each.says}")
            if each.repair:
                click.echo(f"  {'':<{width}}  repair: {each.repair}")
