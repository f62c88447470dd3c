"""How far attacks are from the exact truth on the network of tests/truth.py, and what they cost.

python benchmarks/truth.py
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

import robench

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from truth import EPS, ROBUST, UNKNOWN, WRONG, load_truth
from verdicts import CONTESTANTS, counted

from robench.attacks import SUITES, AttackOptions, parse_columns
from robench.data import load_dataset
from robench.evaluation.engine import ColumnGroup, Job, compute
from robench.evaluation.run_folder import CLEAN, Chunk
from robench.models.classifier import Classifier
from robench.types import Outcome, ThreatModel

ATTACKS = ["fgsm", "pgd7", "pgd20", "pgd50", "pgd50 x 10", "apgd-ce", "apgd-t", "fab-t", "square"]
PEERS = ["pyautoattack", "torchattacks AutoAttack", "adversarial-library APGD-CE, -T", "Foolbox PGD-50", "ART PGD-50"]


def survivors(classifier, images, labels, name):
    """Who is left of a column of ours, best queries counted, bool (n,)."""
    threat, chunk = ThreatModel("Linf", EPS), Chunk(0, len(images))
    name, _, more = name.partition(" x ")
    options = AttackOptions(budget=float(more)) if name == "fast" and more else AttackOptions(restarts=int(more or 1))
    (column,) = parse_columns(name, threat, 10, options)
    job, column = Job(classifier, threat, 0), replace(column, count_queries=True)
    known = {CLEAN: next(compute(job, ColumnGroup(()), images, labels, chunk, {}))[1]}
    *_, (_, last, _) = compute(job, ColumnGroup((column,)), images, labels, chunk, known)
    return torch.from_numpy(last.best == Outcome.ROBUST)


def rows(classifier, images, labels):
    """(name, who is left, passes) of every attack, suite and installed peer."""
    cascades = [name for name, entry in SUITES.items() if entry.is_cascade]
    for name in [*ATTACKS, *cascades, "fast x 1"]:
        with counted() as passes:
            left = survivors(classifier, images, labels, name)
        yield name, left, passes
    for name in PEERS:
        try:
            with counted() as passes, torch.random.fork_rng():
                left = CONTESTANTS[name](classifier, images, labels, ThreatModel("Linf", EPS), Chunk(0, len(images)))
        except ImportError as error:
            print(f"{name} is left out: {error}; pip install 'robench[peers]'", file=sys.stderr)
            continue
        yield name, torch.from_numpy(left), passes


def main():
    torch.set_num_threads(1)
    truth, data = load_truth(), load_dataset("digits", "test")
    n = len(truth.verdict)
    images, labels = data.images[:n] / 255, data.labels[:n]
    classifier = Classifier(truth.network, 10)
    proven, unknown = truth.verdict == ROBUST, truth.verdict == UNKNOWN
    breakable = int(((truth.verdict != WRONG) & ~proven & ~unknown).sum())
    print(
        f"robench {robench.__version__}, torch {torch.__version__}, scipy {truth.about['scipy']}, one thread; digits, n = {n}, Linf {EPS}, seed 0."
    )
    print(
        f"Clean {n - int((truth.verdict == WRONG).sum())}, proven robust {int(proven.sum())}, proven breakable {breakable}, undecided {int(unknown.sum())}.\n"
    )
    print(
        "| attack | left | left beyond the proven | of the breakable, found | proven ones broken | forwards | backwards | units |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, left, passes in rows(classifier, images, labels):
        beyond = int((left & ~proven & ~unknown).sum())
        print(
            f"| {name} | {int(left.sum())} | {beyond} | {breakable - beyond} of {breakable} | {int((proven & ~left).sum())} | "
            f"{passes.forwards:,} | {passes.backwards:,} | {passes.forwards + 2 * passes.backwards:,} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
