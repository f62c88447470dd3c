"""``robench train``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from robench.cli.group import hint, main, shared

OWN_VARIANT = (
    "A variant of your own is an Objective that your file puts into OBJECTIVES before it calls robench.cli.main(); the file is then the command: python "
    "rotation.py train --arch rotation. See docs/adding-a-variant.md."
)


class _Archs(click.Option):
    """Its help names the variants, with those of the user's own program that is running."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        loaded = sys.modules.get("robench.training.objectives")  # imports torch, which help is too short a word for
        if loaded is not None:
            self.help = f"{', '.join(map(_with_options, loaded.OBJECTIVES.items()))}: what `robench list archs` names."
        return super().get_help_record(ctx)


def _with_options(entry: tuple[str, Any]) -> str:
    name, objective = entry
    options = [f"--{option.replace('_', '-')}" for option in sorted(objective.options)]
    return f"{name} (takes {' '.join(options)})" if options else name


@main.command(epilog=OWN_VARIANT)
@click.option("--arch", cls=_Archs, required=True, help="single, supervised, contrastive: what `robench list archs` names.")
@click.option(
    "--dataset", required=True, help="A name of `robench list datasets`, or a folder with one sub-folder of images per class."
)
@click.option("--recipe", default="paper", show_default=True, help="paper (its text) or authors (their code).")
@click.option(
    "--adversarial", default="none", show_default=True, help="none, nfgsm or pgd: adversarial training, the positive control."
)
@click.option("--train-eps", help="Linf radius of adversarial training [default: the data set's].")
@click.option("--backbone", help="resnet18, resnet18-cifar or small [default: resnet18].")
@click.option("--views", help="standard (crop, flip) or simclr [default: the variant's].")
@click.option("--lambda-main", type=float, help="Weight of the main task's loss [default: the recipe's].")
@click.option("--lambda-aux", type=float, help="Weight of the second head's loss [default: the recipe's].")
@click.option("--temperature", type=float, help="Of the contrastive loss [default: 0.07].")
@click.option("--epochs", type=int, help="[default: 100]")
@click.option("--batch-size", type=int, help="[default: 256]")
@click.option("--lr", type=float, help="[default: 3e-4]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option(
    "--precision",
    help="fp32, tf32 (NVIDIA GPUs since Ampere), bf16, or auto for which of fp32 and bf16 this processor does faster: one without bf16 "
    "emulates it slowly [default: fp32].",
)
@click.option(
    "--captured/--no-captured",
    default=True,
    help="On an NVIDIA GPU, the step as one CUDA graph, where a first step of it ends as one without [default: --captured].",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Checkpoint path [default: checkpoints/DATASET-ARCH[-ADVERSARIAL]-SEED.safetensors].",
)
@shared
def train(
    arch: str,
    dataset: str,
    recipe: str,
    adversarial: str,
    captured: bool,
    out: Path | None,
    device: str,
    threads: int | None,
    data_dir: Path | None,
    **chosen: Any,
) -> None:
    """Train one of the paper's variants; the same command continues after a kill.

    Under torchrun, several processes share each batch.
    """
    from robench.checkpoint import read_description
    from robench.data import load_dataset
    from robench.evaluation.device import device_of_rank, threads_of_rank, use_device
    from robench.processes import Processes
    from robench.training import TrainSpec, check_names, joined
    from robench.training import train as run_training

    check_names(arch, recipe, adversarial)  # before anything is downloaded
    train_set = load_dataset(dataset, "train", data_dir)
    spec = TrainSpec.of(arch, train_set, recipe=recipe, adversarial=adversarial, **chosen)
    test_set, processes = load_dataset(dataset, "test", data_dir), Processes.here()
    with (
        use_device(device_of_rank(device, processes), threads or threads_of_rank(processes)) as chosen_device,
        joined(processes, chosen_device) as ranks,
    ):
        path = run_training(spec, train_set, test_set, out=out, device=chosen_device, ranks=ranks, captured=captured)
    if processes.rank == 0:
        folder = [] if dataset == read_description(path)["dataset"] else ["--dataset", dataset]
        hint(f"attack it: {shlex.join(['robench', 'attack', '--ckpt', str(path), *folder])}")
        print_clean_accuracy(path)


def print_clean_accuracy(path: Path) -> None:
    """The last line of ``robench train``: where the model is and how it does without attack."""
    from robench.checkpoint import read_description

    accuracy = read_description(path)["clean_accuracy"]
    click.echo(f"{path}  clean accuracy: " + ", ".join(f"{head} {value:.2%}" for head, value in accuracy.items()))
