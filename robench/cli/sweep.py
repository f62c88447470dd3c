"""``robench sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from robench.cli.data_options import data_options
from robench.cli.group import hint, main, norm_option, shared, warn
from robench.cli.model_options import model_options
from robench.types import ExternalData, ExternalModel


@main.command()
@click.option("--ckpt", type=click.Path(path_type=Path), help="A checkpoint of `robench train`.")
@model_options
@click.option(
    "--eps", help="Radii, such as 0,1/255,2/255,4/255,8/255,16/255 [default: 0, 1/8, 1/4, 1/2, 1 and 2 times the data set's]."
)
@click.option("--steps", help="Numbers of PGD steps at the data set's own radius [default: 1,2,5,10,20,50,100].")
@click.option("--suite", help="Attacks of the curve against eps, as for `robench attack` [default: pgd20; in L1 apgd-ce].")
@norm_option("Linf, L2 or L1 (AutoAttack and its stages alone, no steps).")
@click.option("-n", "--n", type=int, help="The first N test samples [default: all].")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the attacks.")
@click.option("--batch-size", "chunk", default="auto", show_default=True, help="Samples a chunk; auto: 250.")
@click.option(
    "--head", default="main", show_default=True, help="The head that is judged, or the output of --model with the logits."
)
@click.option("--save-adv", is_flag=True, help="Keep the adversarial images of every radius.")
@data_options("the checkpoint's own")
@click.option("--out", type=click.Path(path_type=Path), help="Folder [default: reports/sweep-CHECKPOINT].")
@click.option("--ray", is_flag=False, flag_value="local", help="Hand chunks to Ray, as for `robench attack`.")
@shared
def sweep(
    ckpt: Path | None, model: ExternalModel | None, eps: str | None, steps: str | None, dataset: ExternalData | None, data_dir: Path | None,
    device: str, threads: int | None, out: Path | None, ray: str | None, chunk: str, **asked: Any,
) -> None:  # fmt: skip
    """Draw robust accuracy against eps and against the steps of PGD.

    With --eps alone only the first curve, with --steps alone only the second. Every radius is a run folder of its own below the
    sweep's, with a verdict per sample; the same command continues after a kill. Writes curve.md, curve.csv and curve.png.
    """
    from robench.evaluation.results import announced
    from robench.run.request import AttackRequest, parse_chunk
    from robench.run.sweep import SweepRequest
    from robench.run.sweep import sweep as run_sweep

    request = SweepRequest(AttackRequest(**asked, chunk=parse_chunk(chunk)), eps, steps)
    curves = run_sweep(
        request, out=out, ckpt=ckpt, model=model, dataset=dataset, data_dir=data_dir, device=device, threads=threads, ray=ray, warn=warn
    )  # fmt: skip
    if curves is None:
        hint("this process's share is finished; whoever finishes last writes the curves")
        return
    click.echo(curves.table)
    for line in curves.failures:
        hint(announced(line))
    click.echo(curves.path)
    if curves.failures:
        click.get_current_context().exit(1)
