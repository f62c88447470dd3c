"""Everything that a GPU is asked about robench's speed, in one command of at most four minutes, on a machine without network.

    python benchmarks/gpu.py [--images FILE.png] [--libraries DIR] [--seconds 240]
    python benchmarks/gpu.py --device cpu --quick              # tiny numbers: tries the script, measures nothing
    python benchmarks/gpu.py --write-images FILE.png           # where CIFAR-10 is: the mosaic to send along

Prints markdown as it goes: computed as ever ("eager"), by recorded passes ("graphed"), and by recorded passes in TF32. What its share of the
time does not reach says so. ``benchmarks/README.md`` tells what to send where.
"""

import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import numpy as np
import torch
from gpu_attacks import THREAT, compiled, discordant, fast, pgd, whole_autoattack
from gpu_bench import WAYS, Bench, row
from gpu_steps import TILE, at_once, launches, passes, random_set, state, step_rate, training

from robench import load_dataset
from robench.adapters import autoattack, torchattacks
from robench.data.augment import to_unit
from robench.evaluation.device import use_device
from robench.evaluation.environment import describe_environment
from robench.models.classifier import Classifier
from robench.models.multihead import MAIN_HEAD, HeadLogits, MultiHead
from robench.models.subject import classifier_of_checkpoint
from robench.training.objectives import OBJECTIVES
from robench.training.recipes import RECIPES

TRAINED = Path(__file__).parents[1] / "checkpoints" / "paper" / "cifar10-single-nfgsm-0.safetensors"

# Each with the share of the time by whose end it is to be done; what one does not need is the next one's.
PARTS = (
    (fast, 0.24), (pgd, 0.30), (passes, 0.46), (training, 0.54), (at_once, 0.68), (state, 0.70), (launches, 0.80), (whole_autoattack, 0.96),
    (compiled, 1.0), (discordant, 1.0),
)  # fmt: skip


def read_mosaic(path):
    """Images uint8 (N, 3, 32, 32) of a picture of tiles, row by row, and labels int64 (N,) of the text file beside it."""
    from PIL import Image

    labels = torch.tensor([int(word) for word in path.with_suffix(".txt").read_text().split()])
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
    tiles = pixels.unfold(0, TILE, TILE).unfold(1, TILE, TILE).flatten(0, 1)  # (N, 3, 32, 32)
    return tiles[: len(labels)].contiguous(), labels


def write_mosaic(path, data, n):
    """The first n images of a data set as such a picture, 25 tiles a row, with its labels."""
    from PIL import Image

    images = data.images[:n]
    blank = images.new_zeros(-len(images) % 25, *images.shape[1:])
    tiles = torch.cat([images, blank]).view(-1, 25, 3, TILE, TILE).permute(0, 3, 1, 4, 2)
    Image.fromarray(tiles.reshape(-1, 25 * TILE, 3).numpy()).save(path)
    path.with_suffix(".txt").write_text(" ".join(map(str, data.labels[:n].tolist())) + "\n")


def material(images, ckpt, n, device, quick):
    """What makes a fresh classifier, the images and labels, and what they are, in words."""

    def make():
        if quick and ckpt is None:
            torch.manual_seed(0)
            model = MultiHead("small", OBJECTIVES["single"].heads(random_set(1), RECIPES["paper"]))
            return Classifier(HeadLogits(model, MAIN_HEAD, 10), 10).to(device)
        return classifier_of_checkpoint(ckpt or TRAINED, None, device).classifier

    named = "a small network with random weights" if quick and ckpt is None else (ckpt or TRAINED).stem
    if images is not None:
        pixels, labels = read_mosaic(images)
        pixels, labels = to_unit(pixels[:n]).to(device), labels[:n].to(device)
        return make, pixels, labels, f"{named}, {len(pixels):,} images of {images.name}"
    pixels = to_unit(load_dataset("digits", "train").images[:n]).to(device)
    with torch.no_grad():
        labels = make()(pixels).argmax(1)
    said = "no CIFAR given: digits scaled up, whose labels are what the model says of them"
    return make, pixels, labels, f"{named}, {len(pixels):,} images ({said})"


def bring(libraries):
    """Libraries from a folder, whose versions no installation tells."""
    if libraries is not None:
        sys.path.insert(0, str(libraries))

    def known(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return "of unknown version"

    autoattack.version = torchattacks.version = known
    return ", ".join(f"{package} {known(package)}" for package in ("torchattacks", "pyautoattack"))


@click.command()
@click.option("--device", default="cuda")
@click.option(
    "--images", type=click.Path(path_type=Path), help="A mosaic of 32x32 tiles, with their labels in FILE.txt beside FILE.png."
)
@click.option("--libraries", type=click.Path(path_type=Path), help="A folder that holds torchattacks/ and pyautoattack/.")
@click.option("--ckpt", type=click.Path(path_type=Path), help="[default: the adversarially trained ResNet-18 of checkpoints/paper]")
@click.option("--n", default=1000, help="Images, in one chunk.")
@click.option("--seconds", default=240.0, help="For all of it.")
@click.option("--threads", default=2)
@click.option("--quick", is_flag=True, help="Tiny numbers, to try the script.")
@click.option(
    "--write-images", type=click.Path(path_type=Path), help="Write the mosaic of the first CIFAR-10 test images, and end."
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Of CIFAR-10, for --write-images.")
@click.option("--train", hidden=True)
@click.option("--way", hidden=True)
@click.option("--begin", type=float, hidden=True)
def main(device, images, libraries, ckpt, n, seconds, threads, quick, write_images, data_dir, train, way, begin):
    began = time.perf_counter()
    if write_images is not None:
        write_mosaic(write_images, load_dataset("cifar10", "test", data_dir), n)
        return
    with use_device(device, threads) as chosen:
        if train is not None:
            click.echo(step_rate(chosen, train, *WAYS[way], quick, 3.0, begin)[0])
            return
        versions = bring(libraries)
        make, pixels, labels, about = material(images, ckpt, 8 if quick else n, chosen, quick)
        bench = Bench(make, pixels, labels, chosen, quick)
        there = describe_environment(chosen, threads)
        click.echo(
            f"{there['processor']}; {there['system']}; Python {there['python']}; torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN"
        )
        click.echo(f"{torch.backends.cudnn.version()}; robench {there['robench']} ({there['commit']}); {versions}")
        click.echo(
            f"{about}, {THREAT}, one chunk, seed 0; float32 exact, cuDNN deterministic"
            + "; tiny numbers, which measure nothing" * quick
        )
        for part, share in PARTS:
            bench.deadline = began + share * seconds
            try:
                part(bench)
            except Exception as error:  # one part that fails leaves the time to the others
                row(f"{part.__name__} failed: {type(error).__name__}: {str(error).splitlines()[:1]}")
                traceback.print_exc()
        click.echo(f"\n{time.perf_counter() - began:.0f} s in all, of {seconds:.0f}")


if __name__ == "__main__":
    main()
