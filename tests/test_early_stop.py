"""What the engine sees an attack ask: matching, proof, cutting short, and sharing one trajectory."""

from dataclasses import replace

import pytest
import torch
from cases import LINF, BrightnessClassifier, brightness_data, column, fake, linear_case
from test_engine import SPEC, outcomes, run
from torch import nn

from robench.attacks import AttackOptions, parse_columns
from robench.evaluation.early_stop import AllDecided, Referee
from robench.models.classifier import Classifier
from robench.models.seeded import seeded
from robench.report.accuracy import summarise
from robench.types import Column, Outcome, ReturnPolicy, ThreatModel

OFFSETS = [0.02, 0.05, 0.08, 0.3]  # at eps 0.1, all but the last can be broken
EPS = ThreatModel("Linf", 0.1)


def watched(offsets=OFFSETS, cut=ReturnPolicy.LAST, threat=EPS, taps=()):
    """A classifier with a referee on it, and what both were given."""
    images, labels = brightness_data(offsets)
    classifier = Classifier(BrightnessClassifier(), 2)
    referee = Referee(images, labels, threat, classify=BrightnessClassifier(), cut=cut, taps=taps)
    return classifier, referee, images, labels


def ask(classifier, referee, queries):
    with classifier.watched_by(referee):
        classifier(queries)


def test_a_misclassified_query_in_the_ball_decides_its_sample():
    classifier, referee, images, _ = watched()
    ask(classifier, referee, images - 0.06)
    assert referee.broken.tolist() == [True, True, False, False]
    ask(classifier, referee, images)  # what the attack does afterwards takes nothing back
    assert referee.broken.tolist() == [True, True, False, False]
    assert torch.allclose(referee.best[0], images[0] - 0.06)


@pytest.mark.parametrize("change", [lambda x: x - 0.1 - 1e-3, lambda x: torch.full_like(x, float("nan"))])
def test_a_query_outside_the_ball_or_not_finite_decides_nothing(change):
    classifier, referee, images, _ = watched()
    ask(classifier, referee, change(images))
    assert not referee.broken.any()


def test_a_query_outside_the_box_decides_nothing():
    classifier, referee, images, _ = watched([-0.45, 0.02], threat=ThreatModel("Linf", 0.6))
    referee.labels = torch.tensor([0, 1])
    outside = images.clone()
    outside[1, 0, 0, 0] = -0.05
    ask(classifier, referee, outside - torch.tensor([0.0, 0.06]).view(2, 1, 1, 1))
    assert not referee.broken.any()


class Infinite(nn.Module):
    """Sure without bound of the wrong class."""

    def forward(self, images):
        return torch.tensor([float("inf"), 0.0]).repeat(len(images), 1)


def test_a_query_whose_margin_is_not_finite_decides_nothing():
    images, labels = brightness_data(OFFSETS)
    referee = Referee(images, labels, EPS, classify=Infinite())
    ask(Classifier(Infinite(), 2), referee, images)
    assert not referee.broken.any()


def test_a_sample_is_found_when_it_is_broken_first():
    images, labels = brightness_data(OFFSETS)
    classifier = Classifier(BrightnessClassifier(), 2)
    with classifier.counting() as passes:
        referee = Referee(images, labels, EPS, classify=BrightnessClassifier(), passes=passes)
        for step in (0.03, 0.06, 0.09):
            ask(classifier, referee, images - step)
    assert torch.equal(referee.broken_at[:3], torch.tensor([4.0, 8.0, 12.0])) and referee.broken_at[3].isnan()


def test_the_most_wrong_query_is_kept():
    classifier, referee, images, _ = watched()
    for step in (0.06, 0.09, 0.07):
        ask(classifier, referee, images - step)
    assert torch.allclose(referee.best[0], images[0] - 0.09)


def test_of_two_queries_about_one_sample_in_a_batch_the_more_wrong_is_kept():
    classifier, referee, images, _ = watched()
    ask(classifier, referee, torch.stack([images[0] - 0.06, images[0] - 0.05]))
    assert referee.broken.tolist() == [True, False, False, False] and torch.allclose(referee.best[0], images[0] - 0.06)


def random_case(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 8, 8, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    classifier = Classifier(model, 10)
    return classifier, images, classifier(images).argmax(1), generator


def test_a_call_of_apgd_in_l1_is_not_ended_by_what_it_saw_early():
    """It begins in larger balls, and keeps nothing that it came across there."""
    from test_attacks import attack_of

    assert {name: attack_of(name, ThreatModel("L1", 12)).returns for name in ("apgd-ce", "apgd-t", "fab-t", "square")} == {
        "apgd-ce": ReturnPolicy.LATE, "apgd-t": ReturnPolicy.LATE, "fab-t": ReturnPolicy.FORWARD, "square": ReturnPolicy.ANY
    }  # fmt: skip
    classifier, referee, images, _ = watched(OFFSETS[:3], cut=ReturnPolicy.LATE)
    ask(classifier, referee, images - 0.09)
    assert referee.broken.all()  # and yet it goes on


def test_sparse_queries_are_matched_and_measured_in_l1():
    _, images, labels, generator = random_case()
    referee = Referee(images, labels, ThreatModel("L1", 12), classify=lambda x: x)
    subset = torch.randperm(40, generator=generator)[:25].sort().values
    queries = images[subset].flatten(1).clone()
    for row in queries:  # a few pixels from end to end, as an attack in L1 leaves them
        row[torch.randperm(192, generator=generator)[:12]] = (row.mean() < 0.5).float()
    assert referee._match(queries.view(-1, 3, 8, 8)).tolist() == subset.tolist()
    classifier, referee, images, _ = watched(
        [0.02, 0.02], threat=ThreatModel("L1", 1.0)
    )  # 48 pixels, 0.02 each: 0.96 to the boundary
    ask(classifier, referee, images - torch.tensor([0.0207, 0.0210]).view(2, 1, 1, 1))  # 0.9936 and 1.008 away
    assert referee.broken.tolist() == [True, False]
    image, threat = torch.full((1, 3, 32, 32), 0.5), ThreatModel("L1", 12)
    for more, inside in ((5e-5, True), (3e-4, False)):  # the roundings of 3,072 pixels may add up to 9.2e-5
        assert bool(threat.contains(image, image + (12 + more) / 3072)) == inside


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_queries_about_a_subset_are_matched_to_their_samples(norm):
    threat = ThreatModel(norm, 0.05)
    _, images, labels, generator = random_case()
    referee = Referee(images, labels, threat, classify=lambda x: x)
    for size in (25, 11, 11, 1):
        subset = torch.randperm(40, generator=generator)[:size].sort().values
        noise = 2 * torch.rand(size, 3, 8, 8, generator=generator) - 1
        queries = images[subset] + noise * (0.05 if norm == "Linf" else 0.05 / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        referee._places = None if size == 11 else referee._places
        assert referee._match(queries).tolist() == subset.tolist()


def test_a_new_subset_of_the_old_size_is_noticed():
    _, images, labels, _ = random_case()
    referee = Referee(images, labels, EPS, classify=lambda x: x)
    assert referee._match(images[:7]).tolist() == list(range(7))
    assert referee._match(images[20:27]).tolist() == list(range(20, 27))


def test_queries_about_no_sample_of_the_call_are_nobodys():
    _, images, labels, _ = random_case()
    referee = Referee(images[:10], labels[:10], ThreatModel("Linf", 0.01), classify=lambda x: x)
    assert referee._match(images[20:25]).tolist() == [-1] * 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_every_stage_of_autoattack_is_followed_query_by_query(name):
    """What a stage returns as broken, the referee has seen as well, whatever subsets the library asked about."""
    threat = ThreatModel("Linf", 0.02)
    model, images, labels, robust = linear_case(0.02, "Linf")
    classifier = Classifier(model, 10)
    attack = parse_columns(name, threat, 10)[0].stages[0]
    referee = Referee(images, labels, threat, classify=classifier)
    with seeded(0, images.device), classifier.watched_by(referee):
        adv_images = attack.fn(classifier, images, labels, threat, 0)
    returned = classifier(adv_images).argmax(1) != labels
    assert returned.any() and (referee.broken | ~returned).all()
    assert not (referee.broken & robust).any()


def test_a_call_ends_once_every_sample_is_decided():
    classifier, referee, images, _ = watched(OFFSETS[:3], cut=ReturnPolicy.ANY)
    ask(classifier, referee, images - 0.06)
    with pytest.raises(AllDecided):
        ask(classifier, referee, images - 0.09)


def test_only_queries_without_gradient_within_exact_eps_end_a_call_of_fab():
    classifier, referee, images, _ = watched([0.05], cut=ReturnPolicy.FORWARD)
    ask(classifier, referee, (images - 0.09).requires_grad_())
    assert referee.broken.all()
    with torch.no_grad():
        ask(classifier, referee, images - 0.1 - 5e-7)  # in the ball as the engine checks it, not to the last bit
    with pytest.raises(AllDecided), torch.no_grad():
        ask(classifier, referee, images - 0.09)


def test_what_another_batch_does_not_confirm_is_taken_back():
    images, labels = brightness_data(OFFSETS[:1])
    classifier = Classifier(BrightnessClassifier(), 2)
    referee = Referee(images, labels, EPS, classify=lambda x: BrightnessClassifier()(torch.full_like(x, 0.9)), cut=ReturnPolicy.ANY)
    ask(classifier, referee, images - 0.05)
    assert referee.ties == 1 and not referee.broken.any()


def wanders(model, images, labels, threat, seed):
    """Crosses the boundary on its way and returns the clean images."""
    model(images)
    model(images - threat.eps)
    return images


def test_returned_and_best_are_told_apart_and_the_union_counts_the_best(tmp_path):
    results = run(tmp_path, [column("wanders", wanders)], spec=replace(SPEC, chunk=10))
    rows = results.verdicts[results.verdicts["attack"] == "wanders"]
    assert (rows["outcome"] == Outcome.BROKEN).sum() == 0 and (rows["best"] == Outcome.BROKEN).sum() == 4
    summary = summarise(results).set_index("attack")
    assert summary.loc["wanders", "robust_accuracy"] == 0.8 and summary.loc["wanders", "best_broken"] == 4
    assert summary.loc["union", "robust_accuracy"] == 0.4


def test_a_cascade_that_counts_the_best_hands_on_what_no_query_broke(tmp_path):
    seen = []

    def count(model, images, labels, threat, seed):
        seen.append(len(images))
        return images

    members = (fake("wanders", wanders), fake("count", count))
    suite = Column("screened", members, is_cascade=True, count_queries=True)
    results = run(tmp_path, [suite], spec=replace(SPEC, chunk=10))
    assert seen == [4]
    assert list(outcomes(results, "screened").values()).count(Outcome.BROKEN) == 4


def test_an_attack_that_keeps_what_it_found_is_not_run_to_its_end(tmp_path):
    asked = []

    def stubborn(model, images, labels, threat, seed):
        for _ in range(100):
            asked.append(len(images))
            model(images - threat.eps)
        raise AssertionError("was to be cut short")

    suite = Column("stubborn", (replace(fake("stubborn", stubborn), returns=ReturnPolicy.ANY),), is_cascade=False)
    results = run(tmp_path, [suite], offsets=[0.02, 0.03, -0.1], spec=replace(SPEC, chunk=10))
    assert asked == [2] and results.ledger["forwards"].tolist() == [3, 2]
    assert outcomes(results, "stubborn") == {0: Outcome.BROKEN, 1: Outcome.BROKEN, 2: Outcome.MISCLASSIFIED}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_one_trajectory_gives_every_prefix_to_the_bit(norm):
    threat = ThreatModel(norm, 0.02 if norm == "Linf" else 0.1)
    model, images, labels, _ = linear_case(threat.eps, norm)
    classifier = Classifier(model, 10)
    suites = parse_columns("pgd3,pgd7,pgd12", threat, 10)
    alone = []
    for suite in suites:
        with seeded(5, images.device):
            alone.append(suite.stages[0].fn(classifier, images, labels, threat, 5))
    referee = Referee(images, labels, threat, classify=classifier, taps=(3, 7))
    with seeded(5, images.device), classifier.watched_by(referee):
        longest = suites[2].stages[0].fn(classifier, images, labels, threat, 5)
    assert torch.equal(referee.snapshots[3].queries, alone[0])
    assert torch.equal(referee.snapshots[7].queries, alone[1])
    assert torch.equal(longest, alone[2])


def test_shared_columns_have_the_verdicts_of_columns_by_themselves_and_pay_once(tmp_path):
    suites = parse_columns("pgd7,fgsm,pgd20,pgd12", LINF, 2)
    spec = replace(SPEC, eps=LINF.eps, chunk=4)
    shared = run(tmp_path / "shared", suites, spec=spec)
    alone = run(tmp_path / "alone", suites, spec=spec, share=False)
    columns = ["attack", "index", "outcome", "adv_pred", "distance", "margin", "best"]
    assert shared.verdicts[columns].equals(alone.verdicts[columns])
    costs = [summarise(results).set_index("attack")["forwards"].to_dict() for results in (shared, alone)]
    assert (costs[0]["pgd7"], costs[0]["pgd12"], costs[0]["pgd20"]) == (0, 0, 160)
    assert (costs[1]["pgd7"], costs[1]["pgd12"], costs[1]["pgd20"]) == (56, 96, 160)
    assert summarise(shared).set_index("attack")["mode"].to_dict()["pgd12"] == "prefix of pgd20"


def test_restarts_do_not_share_a_trajectory():
    options = AttackOptions(restarts=2)
    assert {suite.stages[0].prefix_of for suite in parse_columns("pgd7,pgd20", LINF, 10, options)} == {""}
    other = AttackOptions(step_size=0.01)
    apart = {parse_columns("pgd7", LINF, 10, chosen)[0].stages[0].prefix_of for chosen in (None, other)}
    assert len(apart) == 2
