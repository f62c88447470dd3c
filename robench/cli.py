"""The command line: parse, one library call, print. Libraries are imported inside the commands, so that --help is instant."""

from __future__ import annotations

import functools
import os
import sys
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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "ROBENCH"})
@click.version_option(robench.__version__, prog_name="robench")
def main() -> None:
    """Train multi-head image classifiers, attack any classifier, and say whether the robustness number is real."""


def _shared(command):
    """Options that training and attacking have in common."""
    options = [
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores]."),
        click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets lie [default: $ROBENCH_DATA, else the cache]."),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@main.command()
@click.option("--arch", required=True, help="single, supervised or contrastive.")
@click.option("--dataset", required=True, help="A name of `robench list datasets`, or a folder with one sub-folder of images per class.")
@click.option("--recipe", default="paper", show_default=True, help="paper (its text) or authors (their code).")
@click.option("--adversarial", default="none", show_default=True, help="none, nfgsm or pgd: adversarial training, the positive control.")
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
@click.option("--precision", help="fp32 or bf16; bf16 is slow on processors that lack it [default: fp32].")
@click.option("--out", type=click.Path(path_type=Path), help="Checkpoint path [default: checkpoints/DATASET-ARCH[-ADVERSARIAL]-SEED.safetensors].")
@_shared
def train(arch, dataset, recipe, adversarial, out, device, threads, data_dir, **chosen) -> None:
    """Train one of the paper's variants; the same command continues after a kill."""
    from robench.data import load_dataset
    from robench.evaluation.device import use_device
    from robench.training import TrainSpec
    from robench.training import train as run_training

    train_set = load_dataset(dataset, "train", data_dir)
    spec = TrainSpec.of(arch, train_set, recipe=recipe, adversarial=adversarial, **chosen)
    with use_device(device, threads) as chosen_device:
        path = run_training(spec, train_set, load_dataset(dataset, "test", data_dir), out=out, device=chosen_device)
    print_clean_accuracy(path)


def print_clean_accuracy(path: Path) -> None:
    """The last line of ``robench train``: where the model is and how it does without attack."""
    from robench.checkpoint import read_description

    accuracy = read_description(path)["clean_accuracy"]
    click.echo(f"{path}  clean accuracy: " + ", ".join(f"{head} {value:.2%}" for head, value in accuracy.items()))


if __name__ == "__main__":
    sys.exit(main())
