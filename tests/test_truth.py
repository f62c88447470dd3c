"""Attacks against the exact truth: samples that a mixed-integer program has proven robust or broken."""

import pytest
import torch
from truth import BROKEN, EPS, ROBUST, UNKNOWN, WRONG, load_truth, prove, to_images

from robench.attacks import ATTACKS, SUITES, parse_columns
from robench.evaluation.judge import judge
from robench.models.classifier import Classifier
from robench.models.seeded import seeded
from robench.types import Outcome, ThreatModel

THREAT = ThreatModel("Linf", EPS)
ALL = sorted(
    {name for entry in ATTACKS.values() for name in entry.shown} | {name for name, entry in SUITES.items() if entry.is_cascade}
)
DEAR = {"fab-t": 6, "square": 6, "apgd-t": 12, "autoattack": 4, "autoattack-screened": 4}  # proven samples they are tried on


@pytest.fixture(scope="module")
def truth():
    return load_truth()


def test_the_committed_truth_is_about_these_digits_and_decides_nearly_all(truth, digits_test):
    verdict = truth.verdict
    assert truth.about["data"] == digits_test.digest and len(verdict) == truth.about["n"] >= 200
    assert (verdict == UNKNOWN).float().mean() < 0.02
    assert 0.2 < (verdict == ROBUST).float().mean() < 0.8 and (verdict == BROKEN).sum() >= 20
    predicted = truth.network(digits_test.images[: len(verdict)] / 255).argmax(1)
    assert torch.equal(predicted != digits_test.labels[: len(verdict)], verdict == WRONG)


def cheapest(truth, verdict, count):
    """The samples furthest from the boundary, whose programs are solved soonest."""
    rows = (truth.verdict == verdict).nonzero().flatten()
    return rows[truth.bound[rows].abs().argsort(descending=True)[:count]].tolist()


@pytest.mark.slow
def test_the_program_gives_the_committed_truth_again(truth, digits_test):
    for sample in cheapest(truth, ROBUST, 1) + cheapest(truth, BROKEN, 2):
        verdict, bound = prove(truth.network, digits_test.images[sample : sample + 1] / 255, int(digits_test.labels[sample]))
        assert verdict == int(truth.verdict[sample])
        assert bound == pytest.approx(float(truth.bound[sample]), abs=0.05)


def test_no_point_of_the_ball_exceeds_the_proven_bound(truth, digits_test):
    """Random corners and images of the ball, and the bounds of the program: what the proof says holds where it is tried."""
    sample = cheapest(truth, ROBUST, 30)[-1]
    image, label = digits_test.images[sample : sample + 1] / 255, int(digits_test.labels[sample])
    values = image[0, 0, ::4, ::4].flatten()
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 2, (2000, 64), generator=generator) * 2 - 1
    logits = truth.network(to_images((values + EPS * corners).clamp(0, 1)))
    others = logits.clone()
    others[:, label] = float("-inf")
    assert (others.amax(1) - logits[:, label]).max() <= truth.bound[sample] + 1e-5


def attacked(truth, images, labels, name):
    """Outcome of each sample after an attack, or after the last stage of a cascade."""
    classifier = Classifier(truth.network, 10)
    left = torch.arange(len(images))
    for member in parse_columns(name, THREAT, 10)[0].stages:
        with seeded(0, images.device):
            adv_images = member.fn(classifier, images[left], labels[left], THREAT, 0)
        outcomes = judge(classifier, images[left], labels[left], adv_images, THREAT).outcomes
        assert Outcome.INVALID not in outcomes
        left = left[[outcome == Outcome.ROBUST for outcome in outcomes]]
        if not len(left):
            break
    return left


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_no_attack_breaks_a_sample_that_is_proven_robust(name, truth, digits_test):
    rows = (truth.verdict == ROBUST).nonzero().flatten()
    nearest = rows[truth.bound[rows].argsort(descending=True)][: DEAR.get(name)]
    images, labels = digits_test.images[nearest] / 255, digits_test.labels[nearest]
    assert attacked(truth, images, labels, name).tolist() == list(range(len(nearest)))


def test_an_attack_that_cheats_is_caught_by_the_truth(truth, digits_test):
    """The test above can fail: with a ball that is twice as large, proven samples break."""
    rows = (truth.verdict == ROBUST).nonzero().flatten()
    images, labels = digits_test.images[rows] / 255, digits_test.labels[rows]
    wide = ThreatModel("Linf", 2 * EPS)
    classifier = Classifier(truth.network, 10)
    with seeded(0, images.device):
        adv_images = parse_columns("pgd20", wide, 10)[0].stages[0].fn(classifier, images, labels, wide, 0)
    assert Outcome.BROKEN in judge(classifier, images, labels, adv_images, wide).outcomes


def test_iterative_attacks_find_most_of_what_is_breakable(truth, digits_test):
    rows = (truth.verdict == BROKEN).nonzero().flatten()
    images, labels = digits_test.images[rows] / 255, digits_test.labels[rows]
    assert len(attacked(truth, images, labels, "pgd50")) <= 0.25 * len(rows)
