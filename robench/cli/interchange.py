"""``robench bundle`` and ``robench export``."""

from __future__ import annotations

from pathlib import Path

import click

from robench.cli.group import hint, main


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--audit", type=click.Path(path_type=Path), help="A folder of `robench audit` of the same model, to put its findings in."
)
@click.option("--out", type=click.Path(path_type=Path), help="The file [default: RUN.zip].")
def bundle(run: Path, audit: Path | None, out: Path | None) -> None:
    """Pack a run into one file that anybody can verify.

    Holds run.json, the verdicts, the tables, the compact adversarial images of --save-adv, the digest of every file, and the command
    that verifies it. The same run makes the same bytes: publish the digest beside the claim.
    """
    from robench.interchange.bundle import command_to_verify, write_bundle

    made = write_bundle(run, out, audit)
    hint(f"sha256 {made.sha256}")
    hint(f"whoever has the model verifies it: {command_to_verify(made.path, run)}")
    click.echo(made.path)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["robustbench", "model-card", "adv"]),
    help="robustbench: a model_info entry; model-card: a Hugging Face evaluation block; adv: a .pt file of the adversarial images.",
)
@click.option("--attack", default="union", show_default=True, help="Of --format adv: whose images.")
@click.option("--dataset", help="Of --format adv: one of `robench list datasets`, a folder, or a .npz file [default: the run's].")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets lie [default: $ROBENCH_DATA, else the cache].")
@click.option("--out", type=click.Path(path_type=Path), help="The file [default: below RUN/export].")
def export(run: Path, form: str, attack: str, dataset: str | None, data_dir: Path | None, out: Path | None) -> None:
    """Write a run in a format of others: only what was measured, null for what a run cannot know."""
    from robench.interchange.export import export_run

    click.echo(export_run(run, form, attack=attack, dataset=dataset, data_dir=data_dir, out=out))
