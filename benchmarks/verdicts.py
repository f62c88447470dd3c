"""What a verdict costs: robench and its peers on the same model and images, chunk by chunk in turn.

    pip install 'robench[peers]'; pip install --no-deps adv-lib
    python benchmarks/verdicts.py --ckpt FILE [--n 1000] [--only pyautoattack,fast] [--threads 2] [--data-dir DIR]

Every pass through the model is counted, whoever makes it, robench's own checks of each image included; a forward pass is 1 unit, a backward pass
2. Seconds are of one process, after imports and loading. The order of the contestants changes from chunk to chunk; a ratio is the median
over chunks.
"""

import json
import math
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from gpu_bench import limited

from robench.attacks import AttackOptions, parse_columns
from robench.data import load_dataset
from robench.data.augment import to_unit
from robench.evaluation.device import use_device
from robench.evaluation.engine import ColumnGroup, Job, compute
from robench.evaluation.run_folder import CLEAN, chunk_seed, split
from robench.models.subject import classifier_of_checkpoint
from robench.types import Outcome, PassOptions, ThreatModel

REFERENCE = "pyautoattack"


def robench_suite(name: str, **options) -> Callable:
    def run(classifier, images, labels, threat, chunk):
        (column,) = parse_columns(name, threat, classifier.n_classes, AttackOptions(**options))
        job = Job(classifier, threat, 0)
        known = {CLEAN: next(compute(job, ColumnGroup(()), images, labels, chunk, {}))[1]}
        verdicts = [each for _, each, _ in compute(job, ColumnGroup((column,)), images, labels, chunk, known)]
        return verdicts[-1].outcome == Outcome.ROBUST

    return run


def judged(attack: Callable) -> Callable:
    """A peer's attack on the correctly classified samples, its images judged by one more pass."""

    def run(classifier, images, labels, threat, chunk):
        with torch.no_grad():
            robust = classifier(images).argmax(1) == labels
        torch.manual_seed(chunk_seed(0, "peer", chunk) % 2**32)
        adv_images = attack(classifier, images[robust], labels[robust], threat).detach().float()
        with torch.no_grad():
            held = classifier(adv_images).argmax(1) == labels[robust]
        assert (threat.contains(images[robust], adv_images) | held).all(), "an image that counts left the ball"
        robust[robust.clone()] = held
        return robust.cpu().numpy()

    return run


def authors_driver(classifier, images, labels, threat, chunk):
    """run_standard_evaluation on one batch, which counts what it broke."""
    from pyautoattack import AutoAttack

    seed = chunk_seed(0, "autoattack", chunk)
    attack = AutoAttack(classifier, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=str(images.device))
    adv_images, _ = attack.run_standard_evaluation(images.clone(), labels.clone(), batch_size=len(images))
    with torch.no_grad():
        return (classifier(adv_images).argmax(1) == labels).cpu().numpy()


def torchattacks_attack(model, images, labels, threat, *, name, **settings):
    import torchattacks

    return getattr(torchattacks, name)(model, eps=threat.eps, **settings)(images, labels)


def torchattacks_autoattack(model, images, labels, threat):
    import torchattacks

    return torchattacks.AutoAttack(model, norm=threat.norm, eps=threat.eps, n_classes=model.n_classes, seed=0)(images, labels)


def advlib_apgd(model, images, labels, threat):
    """APGD on cross-entropy, then on targeted DLR for what is left, as AutoAttack's first two stages."""
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # it is imported for plots alone (adv-lib 0.2.8)
    from adv_lib.attacks import apgd, apgd_targeted

    adv_images = apgd(model, images, labels, threat.eps, float("inf"), loss_function="ce")
    with torch.no_grad():
        left = model(adv_images).argmax(1) == labels
    if left.any():
        adv_images[left] = apgd_targeted(
            model, images[left], labels[left], threat.eps, float("inf"), num_targets=min(9, model.n_classes - 1)
        )
    return adv_images


def foolbox_pgd(model, images, labels, threat):
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=threat.eps / 4, steps=50, random_start=True)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    return attack(wrapped, images, labels, epsilons=threat.eps)[1]


def art_pgd(model, images, labels, threat):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(
        model,
        torch.nn.CrossEntropyLoss(),
        tuple(images.shape[1:]),
        model.n_classes,
        clip_values=(0, 1),
        device_type=images.device.type,
    )
    attack = ProjectedGradientDescentPyTorch(
        wrapped, eps=threat.eps, eps_step=threat.eps / 4, max_iter=50, num_random_init=1, batch_size=len(images), verbose=False
    )
    return torch.from_numpy(attack.generate(images.cpu().numpy(), labels.cpu().numpy())).to(images.device)


CONTESTANTS: dict[str, Callable] = {
    REFERENCE: authors_driver,
    "autoattack": robench_suite("autoattack"),
    "autoattack(folded)": robench_suite("autoattack", pass_options=PassOptions(folded=True)),
    "autoattack-screened": robench_suite("autoattack-screened"),
    "autoattack-screened(folded)": robench_suite("autoattack-screened", pass_options=PassOptions(folded=True)),
    "fast": robench_suite("fast"),
    "fast(bf16)": robench_suite("fast", pass_options=PassOptions(folded=True, precision="bf16")),
    "fast(compiled)": robench_suite("fast", pass_options=PassOptions(folded=True, compiled=True)),
    "fast(budget=1)": robench_suite("fast", budget=1.0),
    "torchattacks AutoAttack": judged(torchattacks_autoattack),
    "adversarial-library APGD-CE, -T": judged(advlib_apgd),
    "pgd50": robench_suite("pgd50"),
    "pgd50(folded)": robench_suite("pgd50", pass_options=PassOptions(folded=True)),
    "torchattacks PGD-50": judged(partial(torchattacks_attack, name="PGD", steps=50)),
    "Foolbox PGD-50": judged(foolbox_pgd),
    "ART PGD-50": judged(art_pgd),
}


def counted():
    """Counts the samples that go through any classifier inside the block."""
    return limited(math.inf)


def in_turn(contestants, names, classifier, data, threat, chunks):
    """Runs every contestant on every chunk, in an order that changes: (place of the chunk, name, what it says, passes, seconds)."""
    for place, chunk in enumerate(chunks):
        images = to_unit(data.images[chunk.start : chunk.stop]).to(classifier.device)
        labels = data.labels[chunk.start : chunk.stop].to(classifier.device)
        shift = place % len(names)
        for name in names[shift:] + names[:shift]:
            started = time.perf_counter()
            with counted() as passes, torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
                said = contestants[name](classifier, images, labels, threat, chunk)
            yield place, name, said, passes, time.perf_counter() - started


def measure(classifier, data, threat, chunks, names, on_chunk):
    """For each contestant and chunk: who survives, forwards, backwards, seconds."""
    found = {name: [] for name in names}
    for place, name, robust, passes, seconds in in_turn(CONTESTANTS, names, classifier, data, threat, chunks):
        found[name].append(
            {"robust": robust.tolist(), "forwards": passes.forwards, "backwards": passes.backwards, "seconds": seconds}
        )
        on_chunk(f"chunk {place + 1} of {len(chunks)}: {name} {seconds:.1f} s, {int(robust.sum())} left")
    return found


def table(found, reference):
    """Rows of a markdown table; ratios are reference over contestant, so that more is better."""
    yield "| | robust | broken only here | only by the reference | units | seconds | units, ratio | seconds, ratio |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    theirs = np.concatenate([chunk["robust"] for chunk in found[reference]])
    for name, chunks in found.items():
        ours = np.concatenate([chunk["robust"] for chunk in chunks])
        units, seconds = [_units(chunk) for chunk in chunks], [chunk["seconds"] for chunk in chunks]
        by_units = sum(map(_units, found[reference])) / sum(units)
        by_seconds = np.median([other["seconds"] / own["seconds"] for other, own in zip(found[reference], chunks, strict=True)])
        yield (
            f"| {name} | {ours.sum()} | {(theirs & ~ours).sum()} | {(ours & ~theirs).sum()} | {sum(units):,} | {sum(seconds):.1f} | "
            f"{by_units:.2f} | {by_seconds:.2f} |"
        )


def growth(found, sizes):
    """Rows of a markdown table: seconds, and thousands of units, of the first chunks alone; n grows four times a step."""
    steps = [place for place in (1, 4, 16, 64) if place <= len(sizes)]
    if len(steps) < 2:
        return
    yield f"| seconds (thousand units) for n = | {' | '.join(f'{sum(sizes[:place]):,}' for place in steps)} |"
    yield "|---|" + "---:|" * len(steps)
    for name, chunks in found.items():
        cells = [
            f"{sum(chunk['seconds'] for chunk in chunks[:place]):.1f} ({sum(map(_units, chunks[:place])) / 1000:,.1f})"
            for place in steps
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def _units(chunk):
    return chunk["forwards"] + 2 * chunk["backwards"]


@click.command()
@click.option("--ckpt", required=True, type=click.Path(path_type=Path))
@click.option("--n", default=1000)
@click.option("--chunk", default=250)
@click.option("--only", help="Contestants, comma-separated [default: all]. The first is the reference of the ratios.")
@click.option("--threads", default=2)
@click.option("--device", default="cpu")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Everything as JSON, each sample's verdict included.")
def main(ckpt, n, chunk, only, threads, device, data_dir, out):
    names = [name.strip() for name in only.replace(", -T", "; -T").split(",")] if only else list(CONTESTANTS)
    names = [name.replace("; -T", ", -T") for name in names]
    data = load_dataset(classifier_of_checkpoint(ckpt, None, "cpu").origin["dataset"], "test", data_dir)
    with use_device(device, threads) as chosen:
        classifier = classifier_of_checkpoint(ckpt, data, chosen).classifier
        threat = ThreatModel.parse("Linf", data.default_eps["Linf"])
        found = measure(classifier, data, threat, split(n, chunk), names, partial(click.echo, err=True))
    processor = torch.cuda.get_device_name() if chosen.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    click.echo(f"torch {torch.__version__}, {processor}, {threads} threads, {ckpt.stem}, n = {n}, {threat}, seed 0\n")
    click.echo("\n".join(table(found, names[0])) + "\n")
    click.echo("\n".join(growth(found, [each.stop - each.start for each in split(n, chunk)])))
    if out:
        out.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
