"""How far attacks are from the exact truth on the network of tests/truth.py, and what they cost.

python benchmarks/truth.py
"""

import sys
from pathlib import Path

import torch

import robench

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from truth import EPS, ROBUST, UNKNOWN, WRONG, load_truth

from robench.attacks import SUITES, AttackOptions, parse_suites
from robench.data import load_dataset
from robench.evaluation.chunk import ChunkData, Conditions, attack_chunk, classify_chunk
from robench.evaluation.guard import Guard
from robench.evaluation.store import Chunk, chunk_seed
from robench.models.classifier import Classifier
from robench.types import Outcome, ThreatModel

ATTACKS = ["fgsm", "pgd7", "pgd20", "pgd50", "pgd50 x 10", "apgd-ce", "apgd-t", "fab-t", "square"]


def survivors(classifier, images, labels, name):
    """(which samples are left, forwards, backwards) of a column, best queries counted."""
    threat, chunk = ThreatModel("Linf", EPS), Chunk(0, len(images))
    name, _, restarts = name.partition(" x ")
    (suite,) = parse_suites(name, threat, 10, AttackOptions(restarts=int(restarts)) if restarts else None)
    clean = classify_chunk(classifier, images, labels, chunk)
    data, before, forwards, backwards = ChunkData(chunk, images, labels, clean), clean.outcome, 0, 0
    for member in suite.members:
        conditions = Conditions(threat, chunk_seed(0, member.family, chunk), counts_best=True)
        ((_, verdicts, _),) = attack_chunk(classifier, Guard(classifier), member, data, before, conditions)
        before, forwards, backwards = verdicts.outcome, forwards + verdicts.forwards, backwards + verdicts.backwards
    return torch.from_numpy(before == Outcome.ROBUST), forwards, backwards


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
    for name in [*ATTACKS, *(name for name, entry in SUITES.items() if entry.cascade)]:
        left, forwards, backwards = survivors(classifier, images, labels, name)
        beyond = int((left & ~proven & ~unknown).sum())
        print(
            f"| {name} | {int(left.sum())} | {beyond} | {breakable - beyond} of {breakable} | {int((proven & ~left).sum())} | {forwards:,} | "
            f"{backwards:,} | {forwards + 2 * backwards:,} |"
        )


if __name__ == "__main__":
    main()
