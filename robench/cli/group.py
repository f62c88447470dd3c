"""The command group: what every command shares, and how mistakes and interruptions end."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import click

import robench
from robench.types import RobenchError

INTERRUPTED = 130


class _Commands(click.Group):
    """Turns the user's mistakes into one line and exit code 1, and Ctrl-C into exit code 130."""

    def invoke(self, ctx: click.Context):
        # OpenMP's waiting threads otherwise spin, and take the cores from whatever else runs on the machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            return super().invoke(ctx)
        except RobenchError as error:
            click.echo(f"robench: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("\nrobench: interrupted; everything finished is kept, the same command goes on from there", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(robench.__version__, prog_name="robench")
def main() -> None:
    """Train multi-head image classifiers, attack any classifier, and say whether the robustness number is real."""


def shared(command):
    """Options that training and attacking have in common."""
    options = [
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores]."),
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Where data sets lie [default: $ROBENCH_DATA, else the cache]."
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def print_run(run: Path) -> None:
    """The table, what failed, and last the report's path; exit code 1 where an attack failed."""
    from robench.evaluation.results import failures, read_results
    from robench.report.markdown import terminal_table
    from robench.report.tables import summarise

    results = read_results(run)
    click.echo(terminal_table(summarise(results)))
    failed = failures(results)
    for line in failed:
        click.echo(f"robench: attack failed: {line}", err=True)
    click.echo(run / "report.html")
    click.echo(run / "report.md")
    if failed:
        click.get_current_context().exit(1)
