"""``robench report``, ``compare``, ``leaderboard`` and ``list``: what needs no model."""

from __future__ import annotations

from pathlib import Path

import click

from robench.cli.group import hint, in_options, main, print_run

KINDS = ("attacks", "suites", "datasets", "archs", "models")
CHECKPOINTS = "checkpoints"


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write a run's report.html, report.md, tables and figures again, from its verdicts alone."""
    from robench.report import write_report

    write_report(run)
    print_run(run)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write it to this file too: a page (.html), or a table in markdown (.md)."
)
@click.option("--anyway", is_flag=True, help="Compare runs on different data, samples or threat models; the page says so.")
@click.option(
    "--robustbench-info",
    "robustbench",
    type=click.Path(path_type=Path),
    help="The model_info folder of a clone of RobustBench: its entries, in grey, behind the models of the page.",
)
def compare(runs: tuple[Path, ...], out: Path | None, anyway: bool, robustbench: Path | None) -> None:
    """Put several runs on the same data and threat model side by side.

    Models in rows, paired exact tests on the same samples, and how many samples each attack alone breaks.
    """
    from robench.report.several_runs import compare_runs

    click.echo(compare_runs(list(runs), out, anyway=anyway, robustbench=robustbench))
    if out:
        click.echo(out)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write a page that sorts to this .html file too.")
def leaderboard(folder: Path, out: Path | None) -> None:
    """List all runs below FOLDER, by data and threat model, the most robust first."""
    from robench.report.several_runs import write_leaderboard

    click.echo(write_leaderboard(folder, out))
    if out:
        click.echo(out)


@main.command("list")
@click.argument("kind", type=click.Choice([*KINDS, CHECKPOINTS]), required=False)
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), required=False)
def list_names(kind: str | None, folder: Path | None) -> None:
    """Show what can be named: attacks, suites, datasets, archs, or the ways to name a model of your own; without KIND, all of them.

    `checkpoints` shows those below DIR (by default below checkpoints/): natural accuracy as trained, before any rounding, how each was
    trained, and how it is stored.
    """
    if kind == CHECKPOINTS:
        return _show_checkpoints(folder or Path("checkpoints"))
    if folder is not None:
        raise click.UsageError(f"a folder is listed by `robench list {CHECKPOINTS} DIR` only; leave {folder} out")
    for each in [kind] if kind else KINDS:
        if not kind:
            click.echo(f"{each}:")
        known = _known(each)
        width = max(16, *(len(name) + 2 for name in known))
        for name, about in known.items():
            click.echo(f"{name:<{width}}{about}")
        if not kind and each != KINDS[-1]:
            click.echo()
    return None


def _show_checkpoints(folder: Path) -> None:
    from robench.report.checkpoints import COLUMNS, list_checkpoints

    rows, unread = list_checkpoints(folder)
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    for row in [COLUMNS, *rows] if rows else []:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for why in unread:
        hint(f"not listed: {why}")


def _known(kind: str) -> dict[str, str]:
    if kind == "datasets":
        from robench.data import DATASETS, EXTERNAL_DATA

        return {name: entry.about for name, entry in {**DATASETS, **EXTERNAL_DATA}.items()}
    if kind == "models":
        from robench.models.sources import SOURCES

        return {shown: in_options(source.about, main.commands["attack"]) for shown, source in SOURCES.items()}
    if kind == "archs":
        from robench.training.objectives import OBJECTIVES

        return {name: entry.about for name, entry in OBJECTIVES.items()}
    from robench.attacks import ATTACKS, SUITES, installed_attacks, package_of

    if kind == "suites":
        return {name: f"{entry.about} ({', '.join(entry.attacks)})" for name, entry in SUITES.items()}
    ours = {shown: entry.about for entry in ATTACKS.values() for shown in entry.shown}
    theirs = {
        name: f"of {' and of '.join(map(package_of, entries))}: {entries[0].value}" for name, entries in installed_attacks().items()
    }
    return theirs | ours
