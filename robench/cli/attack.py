"""``robench attack`` and ``robench verify``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from robench.cli.data_options import data_options
from robench.cli.group import hint, main, norm_option, print_run, shared, warn
from robench.cli.model_options import model_options
from robench.types import ExternalData, ExternalModel, parse_norm


@main.command()
@click.option("--ckpt", type=click.Path(path_type=Path), help="A checkpoint of `robench train`.")
@model_options
@click.option(
    "--suite",
    help="Names of `robench list attacks` and `suites`, comma-separated; NAME@FILE crafts on another checkpoint (transfer) "
    "[default: pgd20,autoattack; in L1 autoattack].",
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    help="A function of your own, FILE.py:FUNCTION: a column behind those of --suite, or alone; see `robench check-attack`.",
)
@norm_option("Linf, L2 or L1 (AutoAttack and its stages alone).")
@click.option("--eps", help="Radius in pixel units, such as 8/255 [default: the data set's own].")
@click.option("-n", "--n", type=int, help="The first N test samples [default: all]; under torchrun write -n.")
@click.option("--step-size", help="Of PGD, such as 2/255 [default: eps/4].")
@click.option("--restarts", type=int, default=1, show_default=True, help="Random starts of PGD.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the attacks.")
@click.option(
    "--batch-size",
    "chunk",
    default="auto",
    show_default=True,
    help="Samples a chunk; auto: 250, on a GPU as many as fit, up to 4000, and what a run began with. Where memory runs out, a chunk goes through "
    "the model in smaller passes.",
)
@click.option("--attack-heads", help="Craft on another head than the judged one, or on all: main, joint, coarse, projection.")
@click.option(
    "--head",
    default="main",
    show_default=True,
    help="The head that is judged; of a --model that returns several outputs, the place (0) or name (logits) of the logits.",
)
@click.option("--save-adv", is_flag=True, help="Keep the adversarial images in the run folder, for `robench verify` and --adv.")
@click.option("--adv", multiple=True, help="Evaluate stored images too: a .pt file, or RUN:ATTACK of a run with --save-adv.")
@click.option(
    "--budget",
    type=float,
    help="Of the fast suite, in multiples of what AutoAttack costs a surviving sample [default: 0.03]; from 0.5 on APGD is part of it, from 1.24 on all of AutoAttack.",
)
@click.option(
    "--passes",
    default="own",
    show_default=True,
    help="own, or folded: attacks search with BatchNorm folded into convolutions, as fast does anyway; last bits differ. Verdicts are the "
    "model's own.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="Of the search: fp32, tf32 (NVIDIA GPUs since Ampere), bf16, or auto for what this processor does faster. Verdicts are float32's.",
)
@click.option("--compile", "compiled", is_flag=True, help="Search with passes compiled by torch.compile.")
@click.option(
    "--graphs/--no-graphs",
    "graphed",
    default=True,
    show_default=True,
    help="On CUDA, search with passes that are recorded as CUDA graphs once and replayed, where a model's can be; a check at every recording.",
)
@click.option("--share/--no-share", default=True, show_default=True, help="Let the steps of pgd50 serve pgd7 and pgd20 too.")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    help="Hand chunks to Ray: the address of a cluster, or nothing for one on this machine (pip install 'robench[ray]').",
)
@data_options("the checkpoint's own")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder [default: reports/CHECKPOINT-NORM-EPS].")
@click.option(
    "--fail-under",
    type=click.FloatRange(0, 1),
    help="For a CI pipeline: exit with 3 where the upper 95 % bound of what survives every attack lies below this fraction.",
)
@shared
def attack(
    ckpt: Path | None, model: ExternalModel | None, dataset: ExternalData | None, data_dir: Path | None, device: str, threads: int | None,
    out: Path | None, ray: str | None, chunk: str, fail_under: float | None, suite: str | None, attacks: tuple[str, ...], **asked: Any,
) -> None:  # fmt: skip
    """Attack a checkpoint, or anybody's model; the same command continues after a kill.

    \b
    robench attack --ckpt checkpoints/cifar10-single-0.safetensors
    robench attack --model my_model.py:make --dataset cifar10
    robench attack --model my_model.py:make --dataset cifar10 --attack my_attack.py:shift
    robench attack --model torchvision:resnet18 --weights w.safetensors --mean .49,.48,.45 --std .25,.24,.26 --dataset images.npz

    Exits with 1 where an attack failed on samples: the rest of the table stands.
    """
    from robench.attacks import Asked, attack_of_file
    from robench.run.attack import attack as run_attack
    from robench.run.request import AttackRequest, parse_chunk

    asked_for: Asked | None = (*([suite] if suite else []), *map(attack_of_file, attacks)) if attacks else suite
    _warn_of_clash()
    request = AttackRequest(asked_for, **asked, chunk=parse_chunk(chunk), auto_chunk=chunk == "auto")
    run = run_attack(
        request, ckpt=ckpt, model=model, dataset=dataset, data_dir=data_dir, device=device, threads=threads, out=out, ray=ray, warn=warn
    )  # fmt: skip
    if run is None:
        hint("this process's share is finished; whoever finishes last writes the tables")
    else:
        print_run(run, fail_under, _next_step(ckpt, model, dataset, data_dir=data_dir, **asked))


def _next_step(
    ckpt: Path | None,
    model: ExternalModel | None,
    dataset: ExternalData | None,
    *,
    data_dir: Path | None,
    norm: str,
    eps: str | None,
    head: str,
    seed: int,
    **_: Any,
) -> str:
    """What to do with a number: an attack says what it could not break, an audit whether to believe it."""
    if not parse_norm(norm).has_pgd:
        return "verdicts, figures and the command to repeat it lie beside the report; `robench report RUN` writes them again"
    named = ["--ckpt", str(ckpt)] if ckpt is not None else model.options if model is not None else []
    named += [] if dataset is None else dataset.options
    given = {
        "--data-dir": data_dir,
        "--norm": norm if norm != "Linf" else None,
        "--eps": eps,
        "--head": head if head != "main" else None,
        "--seed": seed or None,
    }
    named += [part for option, value in given.items() if value is not None for part in (option, str(value))]
    return f"is the number real? {shlex.join(['robench', 'audit', *named])}"


def _warn_of_clash() -> None:
    from robench.adapters.robustbench import clash_warning

    warning = clash_warning()
    if warning:
        click.echo(f"robench: warning: {warning}", err=True)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--ckpt", type=click.Path(path_type=Path), help="The model [default: where the run found it].")
@model_options
@data_options("the run's")
@shared
def verify(run: Path, **options: Any) -> None:
    """Replay the stored adversarial images of a run, or of a bundle of one, against the model, without any attack.

    Says what still holds in float32, in float64, one image at a time, and as images of 8 bits a pixel inside the ball. Exits with 1
    where the weights or the images are not those of the run, an attack's images were not kept, or a claim does not hold in float32.
    """
    from robench.report.markdown import replay_table
    from robench.run.verify import verify as replay

    replays, changed = replay(run, **options)
    click.echo(replay_table(replays))
    unkept = [each.attack for each in replays if each.unkept]
    failed = [each.attack for each in replays if not each.holds and not each.unkept]
    if changed:
        click.echo(f"robench: this is not the model that was attacked: {changed}", err=True)
    if failed:
        click.echo(f"robench: not confirmed: {', '.join(failed)}; see the columns tampered, missing and float32", err=True)
    for each in replays:
        if each.unclassified:
            hint(f"{each.attack}: {_unclassified(each.unclassified)}: {each.said}")
    if unkept:
        hint(
            f"cannot be confirmed, since no images were kept: {', '.join(unkept)}; the `robench attack` of the run with --save-adv crafts them"
        )
    if changed or failed or unkept:
        click.get_current_context().exit(1)
    click.echo(f"{run}: every broken sample is broken again, by the stored images and the weights that the run names")


def _unclassified(places: tuple[int, ...]) -> str:
    """The samples whose stored images the model cannot classify, in words."""
    named = ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")
    many = f"{len(places)} sample{'s' * (len(places) > 1)}"
    return f"the model cannot classify the stored images of {many} ({named}), which counts neither as broken nor as robust"
