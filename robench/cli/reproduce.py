"""``robench reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from robench.cli.group import main, shared


@main.command()
@click.option("--table", type=click.Choice(["1", "2", "all"]), default="all", show_default=True, help="1: CIFAR-10, 2: CIFAR-100.")
@click.option("--epochs", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--adversarial-epochs", type=click.IntRange(min=1), help="Of the adversarially trained controls [default: --epochs].")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each of the paper's models.")
@click.option("--recipe", default="paper", show_default=True, help="paper (its text) or authors (their code).")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "bf16", "auto"]),
    default="fp32",
    show_default=True,
    help="Of the trainings that are still to be done, see `robench train --help`; finished models keep theirs.",
)
@click.option("-n", "--n", type=click.IntRange(min=1), help="Test samples [default: all].")
@click.option(
    "--ranks",
    type=click.IntRange(1, 4),
    default=4,
    show_default=True,
    help="1: the paper's models; 2: controls; 3: adversarial; 4: seeds.",
)
@click.option("--only", multiple=True, help="One of the models, such as cifar10-single-nfgsm-0; may be given again.")
@click.option("--quick", is_flag=True, help="The same pipeline on handwritten digits, in minutes.")
@click.option("--weights", type=click.Path(path_type=Path), help="Final models, rounded [default: checkpoints/paper].")
@click.option("--out", type=click.Path(path_type=Path), help="[default: reports/paper]")
@shared
def reproduce(
    table: str, epochs: int, adversarial_epochs: int | None, seeds: int, recipe: str, precision: str, n: int | None, ranks: int, quick: bool,
    weights: Path | None, out: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Do the paper's two experiments again, under its protocol and under the right one.

    Trains, attacks and reports whatever is missing; the same command continues after a kill.
    """
    if quick:
        _refuse_with_quick(["table", "epochs", "adversarial_epochs", "seeds", "recipe", "precision", "n", "ranks"])
    from robench.reproduce import QUICK, Settings
    from robench.reproduce import reproduce as run
    from robench.reproduce.plan import TABLES

    given = Settings(
        datasets=TABLES[table], epochs=epochs, adversarial_epochs=adversarial_epochs or epochs, seeds=seeds, recipe=recipe, n=n,
        ranks=ranks, precision=precision,
    )  # fmt: skip
    settings = QUICK if quick else given
    name = "quick" if quick else "paper"
    click.echo(run(settings, out=out or Path("reports") / name, weights=weights or Path("checkpoints") / name, **options))


def _refuse_with_quick(names: list[str]) -> None:
    context = click.get_current_context()
    given = [name for name in names if context.get_parameter_source(name) != click.core.ParameterSource.DEFAULT]
    if given:
        raise click.UsageError(f"--quick has settings of its own; leave --{given[0].replace('_', '-')} out")
