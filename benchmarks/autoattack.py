"""robench's autoattack and autoattack-screened against the authors' driver, chunk by chunk in turn: verdicts, passes, seconds.

    python benchmarks/autoattack.py --ckpt FILE [--n 1000] [--threads 2] [--data-dir DIR]

Passes are all that went through the model, robench's own checks of every adversarial image included.
"""

import json
import time
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
import torch

from robench.attacks import parse_suites
from robench.data import load_dataset
from robench.data.augment import to_unit
from robench.evaluation.device import use_device
from robench.evaluation.engine import Job, Unit, compute
from robench.evaluation.store import CLEAN, chunk_seed, split
from robench.models.loading import classifier_of_checkpoint
from robench.types import Outcome, ThreatModel

SUITES = ("autoattack", "autoattack-screened")
AUTHORS = "pyautoattack"


def by_the_authors(classifier, images, labels, threat, seed):
    """Which samples survive run_standard_evaluation on one batch."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(classifier, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=str(images.device))
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        adv_images, _ = attack.run_standard_evaluation(images.clone(), labels.clone(), batch_size=len(images))
    with torch.no_grad():
        return (classifier(adv_images).argmax(1) == labels).cpu().numpy()


def by_robench(classifier, images, labels, threat, chunk, suite, seed):
    """The same by one of our suites, from nothing."""
    job = Job(classifier, threat, seed)
    known = {CLEAN: next(compute(job, Unit(()), images, labels, chunk, {}))[1]}
    before = None
    for _, verdicts, _ in compute(job, Unit((suite,)), images, labels, chunk, known):
        before = verdicts
    return before.outcome == Outcome.ROBUST


def measure(ckpt, n, size, data_dir, device, on_chunk):
    """For each contestant: survivors (n,), forwards, backwards and seconds, summed over chunks."""
    described = classifier_of_checkpoint(ckpt, None, "cpu").origin["dataset"]
    data = load_dataset(described, "test", data_dir)
    classifier = classifier_of_checkpoint(ckpt, data, device).classifier
    threat = ThreatModel.parse("Linf", data.default_eps["Linf"])
    suites = {suite.name: suite for suite in parse_suites(",".join(SUITES), threat, len(data.classes))}
    totals = defaultdict(lambda: {"robust": [], "forwards": 0, "backwards": 0, "seconds": 0.0})
    for place, chunk in enumerate(split(n, size)):
        images = to_unit(data.images[chunk.start : chunk.stop]).to(device)
        labels = data.labels[chunk.start : chunk.stop].to(device)
        order = [AUTHORS, *SUITES]
        for name in order[place % 3 :] + order[: place % 3]:
            started = time.perf_counter()
            with classifier.counting() as passes:
                if name == AUTHORS:
                    robust = by_the_authors(classifier, images, labels, threat, chunk_seed(0, "autoattack", chunk))
                else:
                    counted = Tally(classifier)
                    robust = by_robench(counted, images, labels, threat, chunk, suites[name], 0)
                    passes.forwards, passes.backwards = counted.total.forwards, counted.total.backwards
            row = totals[name]
            row["seconds"] += time.perf_counter() - started
            row["forwards"] += passes.forwards
            row["backwards"] += passes.backwards
            row["robust"].append(robust)
        on_chunk(place, totals)
    return {name: row | {"robust": np.concatenate(row["robust"])} for name, row in totals.items()}


def Tally(classifier):
    """A classifier of the same module that counts every pass in ``total``, also those that nobody attributes to an attack."""
    from robench.models.classifier import Classifier, Passes

    counted = Classifier(classifier.module, classifier.n_classes)
    counted.mean, counted.std, counted._normalises = classifier.mean, classifier.std, classifier._normalises
    counted.total = Passes()

    def count(module, inputs, logits):
        counted.total.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(count_backward)

    def count_backward(gradient):
        counted.total.backwards += len(gradient)

    counted.register_forward_hook(count)
    return counted


@click.command()
@click.option("--ckpt", required=True, type=click.Path(path_type=Path))
@click.option("--n", default=1000)
@click.option("--chunk", default=250)
@click.option("--threads", default=2)
@click.option("--device", default="cpu")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The numbers as JSON, and each sample's verdict.")
def main(ckpt, n, chunk, threads, device, data_dir, out):
    def say(place, totals):
        done = ", ".join(f"{name} {row['seconds']:.0f} s" for name, row in totals.items())
        click.echo(f"chunk {place + 1}: {done}", err=True)

    with use_device(device, threads) as chosen:
        rows = measure(ckpt, n, chunk, data_dir, chosen, say)
    theirs = rows[AUTHORS]
    click.echo(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads, {ckpt.stem}, n = {n}\n")
    click.echo(
        "| | robust | forwards | backwards | seconds | forwards, ratio | seconds, ratio | broken only here | broken only by theirs |"
    )
    click.echo("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in (AUTHORS, *SUITES):
        row = rows[name]
        only_here, only_theirs = (
            int((first & ~second).sum()) for first, second in ((theirs["robust"], row["robust"]), (row["robust"], theirs["robust"]))
        )
        click.echo(
            f"| {name} | {int(row['robust'].sum())} | {row['forwards']:,} | {row['backwards']:,} | {row['seconds']:.1f} | "
            f"{theirs['forwards'] / row['forwards']:.1f} | {theirs['seconds'] / row['seconds']:.2f} | {only_here} | {only_theirs} |"
        )
    if out:
        out.write_text(json.dumps({name: row | {"robust": row["robust"].tolist()} for name, row in rows.items()}) + "\n")


if __name__ == "__main__":
    main()
