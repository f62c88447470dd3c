"""The paper's four columns, FGSM and PGD-7, -20, -50: robench against plain torchattacks on the same chunks and seeds.

torchattacks is measured twice: on torchvision's ResNet-18 as it is, which is what the paper ran, and on the same weights in robench's
backbone, which skips the taps that only ever multiply padding.

python benchmarks/columns.py --ckpt FILE [--n 1000] [--threads 2] [--data-dir DIR]
"""

import copy
from pathlib import Path

import click
import numpy as np
import torch
import torchattacks
from verdicts import in_turn

from robench.attacks import AttackOptions, parse_columns
from robench.data import load_dataset
from robench.evaluation.device import use_device
from robench.evaluation.engine import ColumnGroup, Job, compute, group_columns
from robench.evaluation.run_folder import CLEAN, chunk_seed, split
from robench.models.backbones import SmallMapConv2d
from robench.models.seeded import seeded
from robench.models.subject import classifier_of_checkpoint
from robench.types import Outcome, PassOptions, ThreatModel

COLUMNS = {"fgsm": None, "pgd7": 7, "pgd20": 20, "pgd50": 50}


def plain(classifier, images, labels, threat, chunk):
    """Four calls of torchattacks on the correctly classified samples, from robench's seeds; the images judged by one more pass each."""
    with torch.no_grad():
        right = classifier(images).argmax(1) == labels
    robust = {}
    for name, steps in COLUMNS.items():
        family = "fgsm" if steps is None else "pgd"
        with seeded(chunk_seed(0, family, chunk), images.device):
            if steps is None:
                attack = torchattacks.FGSM(classifier, eps=threat.eps)
            else:
                attack = torchattacks.PGD(classifier, eps=threat.eps, alpha=threat.eps / 4, steps=steps, random_start=True)
            adv_images = attack(images[right], labels[right])
        held = right.clone()
        with torch.no_grad():
            held[right] = classifier(adv_images).argmax(1) == labels[right]
        robust[name] = held.cpu().numpy()
    return robust


def ours(pass_options):
    def run(classifier, images, labels, threat, chunk):
        columns = parse_columns("paper", threat, classifier.n_classes, AttackOptions(pass_options=pass_options))
        job = Job(classifier, threat, 0)
        known = {CLEAN: next(compute(job, ColumnGroup(()), images, labels, chunk, {}))[1]}
        found = {}
        for group in group_columns(columns):
            for folder, verdicts, _ in compute(job, group, images, labels, chunk, known):
                found[folder.partition("_")[0].partition("-")[0]] = verdicts.outcome == Outcome.ROBUST
        return found

    return run


def as_torchvision_has_it(classifier):
    """The same weights in plain convolutions, channels first."""
    module = copy.deepcopy(classifier.module).to(memory_format=torch.contiguous_format)
    for layer in module.modules():
        if type(layer) is SmallMapConv2d:
            layer.__class__ = torch.nn.Conv2d
    return classifier.twin(module)


def plain_on_torchvision(classifier, images, labels, threat, chunk):
    if PLAIN not in classifier.twins:
        classifier.twins[PLAIN] = as_torchvision_has_it(classifier)
    return plain(classifier.twins[PLAIN], images, labels, threat, chunk)


PLAIN, SAME = "torchattacks, torchvision's resnet18", "torchattacks, robench's resnet18"
CONTESTANTS = {
    PLAIN: plain_on_torchvision,
    SAME: plain,
    "robench": ours(PassOptions()),
    "robench (folded)": ours(PassOptions(folded=True)),
}


def measure(classifier, data, threat, chunks):
    """For each contestant: verdicts by column, units and seconds by chunk."""
    found = {name: {"robust": {column: [] for column in COLUMNS}, "units": 0, "seconds": []} for name in CONTESTANTS}
    for _, name, robust, passes, seconds in in_turn(CONTESTANTS, list(CONTESTANTS), classifier, data, threat, chunks):
        found[name]["seconds"].append(seconds)
        found[name]["units"] += passes.forwards + 2 * passes.backwards
        for column in COLUMNS:
            found[name]["robust"][column].append(robust[column])
    return found


@click.command()
@click.option("--ckpt", required=True, type=click.Path(path_type=Path))
@click.option("--n", default=1000)
@click.option("--chunk", default=250)
@click.option("--threads", default=2)
@click.option("--device", default="cpu")
@click.option("--data-dir", type=click.Path(path_type=Path))
def main(ckpt, n, chunk, threads, device, data_dir):
    data = load_dataset(classifier_of_checkpoint(ckpt, None, "cpu").origin["dataset"], "test", data_dir)
    with use_device(device, threads) as chosen:
        classifier = classifier_of_checkpoint(ckpt, data, chosen).classifier
        threat = ThreatModel.parse("Linf", data.default_eps["Linf"])
        chunks = split(n, chunk)
        measure(classifier, data, threat, split(min(n, 16), 16))  # warm
        found = measure(classifier, data, threat, chunks)
    click.echo(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads, {ckpt.stem}, n = {n}, {threat}\n"
    )
    click.echo(
        f"| | {' | '.join(COLUMNS)} | verdicts that differ | units | seconds | units, ratio | seconds, ratio | to torchvision's |"
    )
    click.echo("|---|" + "---:|" * (len(COLUMNS) + 6))
    theirs = found[SAME]
    for name, row in found.items():
        left = {column: np.concatenate(parts) for column, parts in row["robust"].items()}
        differ = sum(int((left[column] != np.concatenate(theirs["robust"][column])).sum()) for column in COLUMNS)
        click.echo(
            f"| {name} | {' | '.join(str(left[column].sum()) for column in COLUMNS)} | {differ} | {row['units']:,} | "
            f"{sum(row['seconds']):.1f} | {theirs['units'] / row['units']:.2f} | {ratio(theirs, row)} | {ratio(found[PLAIN], row)} |"
        )


def ratio(theirs, row):
    """The median over chunks of their seconds over a contestant's."""
    return f"{np.median([other / own for other, own in zip(theirs['seconds'], row['seconds'], strict=True)]):.2f}"


if __name__ == "__main__":
    main()
