"""``robench audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from robench.cli.data_options import data_options
from robench.cli.group import main, norm_option, shared, warn
from robench.cli.model_options import model_options
from robench.types import ExternalData, ExternalModel


@main.command()
@click.option("--ckpt", type=click.Path(path_type=Path), help="A checkpoint of `robench train`.")
@model_options
@click.option("--claim", type=float, help="Robust accuracy to judge, such as 0.606 [default: what FGSM and PGD-20 report].")
@click.option("--claim-protocol", "protocol", default="unknown", show_default=True, help="white-box, transfer or unknown.")
@click.option(
    "--adv", multiple=True, help="Stored images that the number came from: a .pt file, or RUN:ATTACK of a run with --save-adv."
)
@click.option("--source", type=click.Path(path_type=Path), help="The checkpoint that the .pt files of --adv were crafted on.")
@click.option(
    "--sibling",
    "siblings",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A checkpoint of the same classes, to transfer images from.",
)
@norm_option("Linf or L2.")
@click.option("--eps", help="Radius in pixel units, such as 8/255 [default: the data set's own].")
@click.option("-n", "--n", type=int, help="The first N test samples [default: 1000, with --quick 200].")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the attacks.")
@click.option(
    "--budget",
    type=float,
    default=3.0,
    show_default=True,
    help="Of the stronger attacks that findings call for, in multiples of AutoAttack's cost a surviving sample.",
)
@click.option(
    "--head",
    default="main",
    show_default=True,
    help="The head that is judged; of a --model that returns several outputs, the place (0) or name (logits) of the logits.",
)
@click.option(
    "--minutes",
    type=float,
    help="Minutes that the audit may take; inf for no limit [default: 10 for 1,000 samples, with --quick 1.5 for 200, of a model whose "
    "forward and backward pass takes 1.5 ms an image, as a ResNet-18's on two cores; up to four times that for a slower one, by a timed "
    "pass]. What does not fit is unknown, with the command that runs it.",
)
@click.option("--quick", is_flag=True, help="A first answer from few samples and attacks: it can refute, not support.")
@click.option(
    "--self-test",
    is_flag=True,
    help="Audit models that are built to cheat, and honest ones, instead: on digits, or wrapped around --ckpt.",
)
@data_options("the checkpoint's own")
@click.option("--out", type=click.Path(path_type=Path), help="Folder [default: reports/audit-NAME].")
@shared
def audit(
    ckpt: Path | None, model: ExternalModel | None, dataset: ExternalData | None, data_dir: Path | None, device: str, threads: int | None,
    out: Path | None, self_test: bool, **asked: Any,
) -> None:  # fmt: skip
    """Judge a robustness number: is it real, and why not?

    Runs a panel of attacks and checks, follows what they find with stronger attacks, and writes audit.md and findings.json. Exits with
    3 where a check fails or the number is refuted; the same command continues after a kill. Ctrl-C writes the page of what is known by
    then, a second one ends.
    """
    if self_test:
        _run_self_test(
            out or Path("reports/audit"), n=asked["n"], seed=asked["seed"], threads=threads, ckpt=ckpt, data_dir=data_dir
        )
        return
    from robench.audit import AuditRequest
    from robench.audit import audit as run_audit
    from robench.audit.verdict import REFUTED, verdict_line
    from robench.types import Level

    judged = run_audit(
        AuditRequest(**asked), ckpt=ckpt, model=model, dataset=dataset, data_dir=data_dir, device=device, threads=threads, out=out, warn=warn
    )  # fmt: skip
    click.echo(verdict_line(judged.verdict).replace("**", ""))
    for finding in judged.findings:
        if finding.level in (Level.FAIL, Level.WARN):
            click.echo(f"{finding.level}: {finding.check}: {finding.says} ({finding.evidence})")
    click.echo(judged.path)
    if judged.verdict.word == REFUTED or any(finding.level == Level.FAIL for finding in judged.findings):
        click.get_current_context().exit(3)


def _run_self_test(out: Path, *, n: int | None, seed: int, threads: int | None, ckpt: Path | None, data_dir: Path | None) -> None:
    """The audit's controls; exit code 1 where it is wrong about one."""
    from robench.audit.selftest import SAMPLES, self_test
    from robench.evaluation.device import use_device

    with use_device("cpu", threads):
        found = self_test(out, n=SAMPLES if n is None else n, seed=seed, ckpt=ckpt, data_dir=data_dir)
    for complaint in found.complaints:
        click.echo(f"robench: {complaint}", err=True)
    click.echo(found.page)
    if found.complaints:
        click.get_current_context().exit(1)
