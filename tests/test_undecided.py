"""What says nothing decides nothing: no class, a draw without one, an image on which the model raises; and it costs nobody else a verdict."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CLASSES, Centred, N, NoGradient
from click.testing import CliRunner
from torch import nn

import robench
from robench.attacks import parse_columns
from robench.audit import AuditRequest, audit_subject
from robench.cli import main
from robench.evaluation.attack_chunk import classify_chunk
from robench.evaluation.early_stop import Referee
from robench.evaluation.judge import answers, judge, verdict_logits
from robench.evaluation.replay import Replay, replay_run
from robench.evaluation.results import announced, failures, read_results
from robench.evaluation.run_folder import Chunk
from robench.evaluation.sanity_check import settle_randomness
from robench.models.classifier import Classifier
from robench.models.subject import classifier_of_module
from robench.report import write_report
from robench.report.compare import compare, comparison_text, remarks
from robench.run.execute import Place, execute
from robench.run.plan import Run
from robench.types import Column, Dataset, Outcome, ReturnPolicy, RobenchError, ThreatModel

THREAT = ThreatModel("Linf", 4 / 255)
BRIGHT = 0.99


def bright(images):
    return images[:, 0, 0, 0] > BRIGHT


class Says(Centred):
    """On a bright image every logit, or the first alone, is something that is no number."""

    def __init__(self, value, places=slice(None)):
        super().__init__()
        self.value, self.places = value, places

    def forward(self, images):
        logits = super().forward(images).clone()
        rows = bright(images)
        logits[rows, self.places] = torch.where(rows.new_ones(1), self.value, 0.0)
        return logits


class Raises(Centred):
    def forward(self, images):
        if bright(images).any():
            raise ValueError("too bright")
        return super().forward(images)


class RaisesAndNeedsTwo(Raises):
    def forward(self, images):
        if len(images) < 2:
            raise ValueError("Expected more than 1 value per channel when training")
        return super().forward(images)


NOTHING = {
    "all -inf": lambda: Says(-float("inf")),
    "all NaN": lambda: Says(float("nan")),
    "one NaN": lambda: Says(float("nan"), slice(0, 1)),
    "one +inf": lambda: Says(float("inf"), slice(0, 1)),
    "all +inf": lambda: Says(float("inf")),
    "raises": Raises,
}


@pytest.fixture
def images():
    return torch.rand(N, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1


@pytest.fixture
def labels(images):
    return Centred()(images).argmax(1)


@pytest.fixture(autouse=True)
def no_pages(monkeypatch):
    """Pages take longer than these runs."""
    monkeypatch.setattr("robench.run.evaluate.write_report", lambda path: None)


def quiet(*args, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return robench.evaluate(*args, **{"suite": "pgd7", "eps": "4/255", "device": "cpu", "batch_size": 8, **more})


def outcomes(result, attack="pgd7"):
    return result.verdicts[result.verdicts["attack"] == attack]["outcome"].tolist()


def brightened(images, *places, to=1.0):
    images = images.clone()
    images[list(places), 0, 0, 0] = to
    return images


@pytest.mark.parametrize("model", NOTHING)
@pytest.mark.parametrize("label", range(CLASSES))
def test_an_image_of_which_the_model_says_no_class_is_neither_robust_nor_broken(model, label, images):
    labels = torch.full((N,), label)
    adv_images = brightened(images, 3)
    judged = judge(Classifier(NOTHING[model](), CLASSES), images, labels, adv_images, ThreatModel("Linf", 1.0))
    assert judged.outcomes[3] in Outcome.UNDECIDED and judged.adv_pred[3] == -1
    assert not set(judged.outcomes[:3] + judged.outcomes[4:]) & set(Outcome.UNDECIDED)


@pytest.mark.parametrize("model", NOTHING)
@pytest.mark.parametrize("label", [0, 1])
def test_a_clean_image_of_which_the_model_says_no_class_is_an_error(model, label, images):
    classifier = Classifier(NOTHING[model](), CLASSES)
    clean = classify_chunk(classifier, brightened(images, 3), torch.full((N,), label), Chunk(0, N))
    assert clean.outcome[3] == Outcome.ERROR and clean.clean_pred[3] == -1
    assert "cannot classify 1 of 24 clean images (3)" in clean.message
    assert not set(np.delete(clean.outcome, 3)) & set(Outcome.UNDECIDED)


@pytest.mark.parametrize("model", [name for name in NOTHING if name != "raises"])
@pytest.mark.parametrize("label", [0, 1])
def test_the_referee_takes_no_answer_for_no_proof(model, label, images):
    classifier, labels = Classifier(NOTHING[model](), CLASSES), torch.full((N,), label)
    referee = Referee(images, labels, ThreatModel("Linf", 1.0), classify=classifier, cut=ReturnPolicy.ANY)
    queries = brightened(images, *range(N))
    referee(queries, classifier(queries))
    assert not referee.broken.any()


def test_the_referee_takes_back_what_says_no_class_when_it_is_asked_again(images):
    labels, classifier = torch.full((N,), 1), Classifier(Says(float("nan")), CLASSES)
    wrong = nn.functional.one_hot(torch.zeros(N, dtype=torch.int64), CLASSES).float()
    referee = Referee(images, labels, ThreatModel("Linf", 1.0), classify=classifier, cut=ReturnPolicy.ANY)
    referee(brightened(images, *range(N)), wrong)  # in the attack's batch they were class 0
    assert not referee.broken.any() and referee.ties == N


class SaysNothingSometimes(Centred):
    """Random: a share of the passes on an image says NaN, the others the right class or its neighbour."""

    def __init__(self, silent, right):
        super().__init__()
        self.silent, self.right = silent, right

    def forward(self, images):
        draw = torch.rand(len(images), 1)
        logits = torch.zeros(len(images), CLASSES)
        logits[:, 0] = 1.0
        logits[:, 1] = torch.where(draw < self.silent + self.right, 0.0, 2.0).flatten()
        return torch.where(draw < self.silent, float("nan"), logits)


@pytest.mark.parametrize(
    ("silent", "right", "outcome"),
    [
        (1.0, 0.0, Outcome.INVALID),
        (0.7, 0.3, Outcome.INVALID),
        (0.4, 0.3, Outcome.INVALID),  # the silent draws would decide
        (0.2, 0.8, Outcome.ROBUST),
        (0.2, 0.1, Outcome.BROKEN),
        (0.0, 0.9, Outcome.ROBUST),
        (0.0, 0.1, Outcome.BROKEN),
    ],
)
def test_a_draw_without_a_class_is_no_vote(silent, right, outcome, images):
    classifier = Classifier(SaysNothingSometimes(silent, right), CLASSES)
    classifier.draws = 100
    labels = torch.zeros(N, dtype=torch.int64)
    assert set(judge(classifier, images, labels, images, THREAT).outcomes) == {outcome}
    assert verdict_logits(classifier, images, labels).isnan().any(1).all() == (outcome == Outcome.INVALID)


def test_clean_images_of_a_random_model_that_mostly_says_nothing_are_errors(images):
    classifier = Classifier(SaysNothingSometimes(0.7, 0.3), CLASSES)
    classifier.draws = 100
    clean = classify_chunk(classifier, images, torch.zeros(N, dtype=torch.int64), Chunk(0, N))
    assert set(clean.outcome) == {Outcome.ERROR}


@pytest.mark.parametrize("places", [(0, 12, 23), (0, 1), (23,), tuple(range(0, 24, 2)), tuple(range(1, 24))])
def test_only_the_images_that_fail_alone_are_errors(places, images, labels):
    logits, raised = answers(Classifier(Raises(), CLASSES), brightened(images, *places), labels)
    assert tuple(sorted(raised)) == places
    assert logits.isnan().all(1).nonzero().flatten().tolist() == list(places)


def test_an_image_that_fails_hides_no_batch_size(images, labels):
    classifier = Classifier(RaisesAndNeedsTwo(), CLASSES)
    _, raised = answers(classifier, brightened(images, 0, 7), labels)
    assert sorted(raised) == [0, 7]
    assert judge(classifier, images[:1], labels[:1], images[:1], THREAT).outcomes == [Outcome.ROBUST]


@pytest.mark.parametrize("suite", ["pgd7", "pgd7-float64", "pgd7-bpda"])  # the last two attack a twin of the model
def test_an_attack_goes_on_where_the_model_raises_on_one_of_its_images(suite, images, labels):
    images = brightened(images, 5, to=BRIGHT - 1e-3)  # raises as soon as it is made brighter
    plain, result = (quiet(model(), images, labels, suite=suite) for model in (Centred, Raises))
    others = [place for place in range(N) if place != 5]
    assert [outcomes(result, suite)[place] for place in others] == [outcomes(plain, suite)[place] for place in others]
    assert suite != "pgd7" or (outcomes(result)[5] in Outcome.UNDECIDED and "raised on 1 of" in result.failures[0])


def test_an_image_that_fails_is_found_in_few_passes(images, labels):
    passes = []

    class Counted(Raises):
        def forward(self, images):
            passes.append(len(images))
            return super().forward(images)

    classifier, images = Classifier(Counted(), CLASSES), brightened(images, 5)
    answers(classifier, images, labels)
    passes.clear()
    answers(classifier, images, labels)
    assert len(passes) <= 2 * 5 + 1  # two of every half of 24, and no search for the size of a batch any more


def test_a_chunk_without_a_single_classifiable_image_is_errors_and_the_others_are_judged(images, labels, tmp_path):
    result = quiet(Raises(), brightened(images, *range(8, 16)), labels, out=tmp_path / "run", save_adv=True)
    found = outcomes(result)
    assert set(found[8:16]) == {Outcome.ERROR} and not set(found[:8] + found[16:]) & set(Outcome.UNDECIDED)
    assert any(
        "cannot classify 8 of 8 clean images (8, 9, 10, 11, 12, ...): it raised ValueError: too bright" in line
        for line in result.failures
    )


def test_clean_images_that_fail_are_not_called_a_failed_attack(images, labels):
    with pytest.warns(UserWarning) as said:
        robench.evaluate(Raises(), brightened(images, 3), labels, suite="pgd7", eps=0.1)
    (about,) = [str(each.message) for each in said if "clean images" in str(each.message)]
    assert (
        about.startswith("not classified: clean, chunk ")
        and announced("a: clean, chunk 1: b") == "not classified: a: clean, chunk 1: b"
    )
    assert announced("unclean, chunk 1: b") == "attack failed: unclean, chunk 1: b"


def test_a_model_is_asked_whether_it_is_random_on_images_that_it_can_classify():
    class Noisy(Raises):
        def forward(self, images):
            return super().forward(images) + 0.1 * torch.randn(len(images), CLASSES)

    many, honest = torch.rand(80, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1, Classifier(Raises(), CLASSES)
    many, random = brightened(many, *range(40)), Classifier(Noisy(), CLASSES)
    settle_randomness(random, many)
    settle_randomness(honest, many)
    assert (random.draws, honest.draws) == (100, 1)


@pytest.mark.parametrize(("model", "said"), [("raises", "too bright"), ("all NaN", "not finite"), ("all -inf", "not finite")])
def test_a_model_that_classifies_no_image_is_refused_in_one_line(model, said, images, labels, tmp_path):
    with pytest.raises(RobenchError, match=said) as refused:
        quiet(NOTHING[model](), brightened(images, *range(N)), labels, out=tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def times(folder):
    return {path: path.stat().st_mtime_ns for part in ("chunks", "adv") for path in (folder / part).rglob("*.npz")}


def short_fast(name="mine", blind=True):
    """A cascade of the kind of fast, with a shorter Square."""
    members = [suite.stages[0] for suite in parse_columns("pgd7,apgd-ce,square50", THREAT, CLASSES)]
    return Column(name, tuple(members), is_cascade=True, count_queries=True, blind=blind)


def computed(model, images, labels, suites, path, save=False):
    subject = classifier_of_module(model, CLASSES, "cpu", images=images)
    return execute(
        Run(subject, split_of(images, labels), len(images), suites, THREAT, path, chunk=8, save=save),
        Place("cpu", "cpu"),
        show_progress=False,
    )


RESUMED = {
    "raises on a clean image": (Raises, lambda images: brightened(images, 2, 9)),
    "a whole chunk": (Raises, lambda images: brightened(images, *range(8, 16))),
    "NaN on a clean image": (lambda: Says(float("nan")), lambda images: brightened(images, 2)),
    "raises on an adversarial image": (Raises, lambda images: brightened(images, 5, 6, 11, to=BRIGHT - 1e-3)),
    "no gradient": (NoGradient, lambda images: images),
}


@pytest.mark.slow
@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("case", RESUMED)
def test_the_same_command_again_computes_no_chunk(case, save, blind, images, labels, tmp_path):
    make, change = RESUMED[case]
    few, suites = change(images)[:16], [short_fast(blind=blind), *parse_columns("pgd7", THREAT, CLASSES)]
    first = computed(make(), few, labels[:16], suites, tmp_path / "run", save)
    assert first.verdicts["outcome"].isin(Outcome.UNDECIDED).any() or (blind and case == "no gradient")
    before = times(tmp_path / "run")
    second = computed(make(), few, labels[:16], suites, tmp_path / "run", save)
    assert times(tmp_path / "run") == before
    assert second.verdicts.equals(first.verdicts)


def test_a_suite_may_go_on_without_the_stages_that_the_model_passes_no_gradient_to(images, labels, tmp_path):
    suites = [short_fast(), short_fast("strict", blind=False)]
    results = computed(NoGradient(), images, labels, suites, tmp_path)
    said = {name: rows["outcome"].tolist() for name, rows in results.verdicts.groupby("attack")}
    assert set(said["strict"]) & set(Outcome.UNDECIDED)
    assert set(said["mine"]) == {Outcome.ROBUST, Outcome.BROKEN}
    assert [each == Outcome.BROKEN for each in said["mine"]] == [each == Outcome.BROKEN for each in said["strict"]]
    modes = results.ledger.groupby("attack")["mode"].unique().map(list)
    assert modes["mine/pgd7"] == modes["mine/apgd-ce"] == ["left out: the model passes no gradient"] and modes["mine/square50"] == [
        ""
    ]
    assert not any(line.startswith("mine") for line in failures(results)) and any(
        line.startswith("strict") for line in failures(results)
    )


def test_only_fast_goes_on_without_gradients():
    blind = {name: parse_columns(name, THREAT, CLASSES)[0].blind for name in ("fast", "autoattack", "autoattack-screened", "pgd7")}
    assert blind == {"fast": True, "autoattack": False, "autoattack-screened": False, "pgd7": False}


@pytest.mark.slow
def test_fast_decides_by_its_other_stages_where_the_model_passes_no_gradient(images, labels):
    result = quiet(NoGradient(), images[:8], labels[:8], suite="fast")
    assert not set(outcomes(result, "fast")) & set(Outcome.UNDECIDED) and not result.failures
    assert Outcome.BROKEN in outcomes(result, "fast")


def split_of(images, labels):
    return Dataset("images", "test", images, labels, tuple(map(str, range(CLASSES))))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["raises", "all -inf"])
def test_an_audit_goes_on_around_images_that_cannot_be_classified(model, images, labels, tmp_path):
    data = split_of(brightened(images, 4, 17), labels)
    subject = classifier_of_module(NOTHING[model](), CLASSES, "cpu", images=images)
    request = AuditRequest(quick=True, n=N, eps="4/255")
    found = audit_subject(subject, data, request, tmp_path / "audit", "cpu", show_progress=False)
    honest = classifier_of_module(Centred(), CLASSES, "cpu", images=images)
    plain = audit_subject(honest, split_of(images, labels), request, tmp_path / "plain", "cpu", show_progress=False)
    verdict = found.verdict
    assert verdict.most - verdict.robust == 2 and verdict.n == N
    assert any(
        "2 of 24 samples cannot be classified even without attack and count as undecided (4, 17)" in why for why in verdict.why
    )
    assert not any("attacks failed" in why for why in verdict.why)
    assert abs(verdict.robust - plain.verdict.robust) <= 2
    unknown = {finding.check for finding in found.findings if finding.level == "unknown"}
    assert unknown - {finding.check for finding in plain.findings if finding.level == "unknown"} <= {
        "unbounded"
    }  # all pixels are bright there


@pytest.mark.slow
def test_the_whole_audit_goes_on_as_well(images, labels, tmp_path):
    subject = classifier_of_module(Raises(), CLASSES, "cpu", images=images)
    few = split_of(brightened(images, 4)[:12], labels[:12])
    found = audit_subject(subject, few, AuditRequest(n=12, eps="4/255"), tmp_path, "cpu", show_progress=False)
    assert found.verdict.most - found.verdict.robust == 1


def test_an_undecided_sample_is_in_no_paired_test_and_the_reader_sees_how_many_there_are(images, labels, tmp_path):
    changed = brightened(images, 4, 17)
    quiet(Centred(), changed, labels, out=tmp_path / "plain", suite="pgd7,fgsm")
    quiet(Raises(), changed, labels, out=tmp_path / "raises", suite="pgd7,fgsm")
    found = compare([tmp_path / "plain", tmp_path / "raises"])
    for pair in found.pairs:
        assert (pair.undecided, pair.test.n) == (2, N - 2)
        assert pair.test.only_first == pair.test.only_second == 0
    assert any("left out of their paired test" in each for each in remarks(found))
    assert "| undecided |" in comparison_text(found)


def test_runs_without_an_undecided_sample_are_compared_as_ever(images, labels, tmp_path):
    quiet(Centred(), images, labels, out=tmp_path / "one")
    quiet(Raises(), images, labels, out=tmp_path / "two")
    found = compare([tmp_path / "one", tmp_path / "two"])
    assert {pair.undecided for pair in found.pairs} == {0} and "undecided" not in comparison_text(found)


def test_stored_images_that_the_model_cannot_classify_are_named_and_the_rest_is_verified(images, labels, tmp_path):
    run = tmp_path / "run"
    quiet(Centred(), images, labels, out=run, save_adv=True)
    broken = [place for place, each in enumerate(outcomes_of(run)) if each == Outcome.BROKEN]
    data = replace(split_of(images, labels), name="images")

    class RaisesOnOne(Centred):
        def forward(self, inputs):
            if ((inputs - images[broken[0]]).abs().amax((1, 2, 3)) < 0.02).any():
                raise ValueError("not this one")
            return super().forward(inputs)

    (honest,) = replay_run(run, Classifier(Centred(), CLASSES), data)
    (found,) = replay_run(run, Classifier(RaisesOnOne(), CLASSES), data)
    assert found.unclassified == (broken[0],) and "not this one" in found.said and not found.holds
    assert (found.float32, found.float64, found.single) == tuple(
        getattr(honest, name) - 1 for name in ("float32", "float64", "single")
    )
    assert honest.holds and honest.unclassified == ()


def outcomes_of(run):
    rows = read_results(run).verdicts
    return rows[rows["attack"] == "pgd7"]["outcome"].tolist()


def test_a_stored_image_of_which_the_model_says_no_class_is_not_broken_again(images, labels, tmp_path):
    quiet(Centred(), images, labels, out=tmp_path, save_adv=True)

    class Silent(Centred):
        def forward(self, inputs):
            return super().forward(inputs) * float("nan")

    (found,) = replay_run(tmp_path, Classifier(Silent(), CLASSES), split_of(images, labels))
    assert (found.float32, found.float64, found.single, found.rounded) == (0, 0, 0, 0)
    assert len(found.unclassified) == found.claimed


def test_verify_names_the_samples_that_it_could_not_classify(monkeypatch):
    found = Replay("pgd7", claimed=3, float32=2, float64=2, single=2, rounded=2, unclassified=(7,), said="ValueError: not this one")
    monkeypatch.setattr("robench.run.verify.verify", lambda run, **where: ([found], ""))
    result = CliRunner().invoke(main, ["verify", "run"])
    assert result.exit_code == 1
    assert "pgd7: the model cannot classify the stored images of 1 sample (7)" in result.output and "not this one" in result.output


def test_a_report_counts_what_cannot_be_classified_neither_as_right_nor_as_a_failed_attack(images, labels, tmp_path):
    quiet(Raises(), brightened(images, 4, 17), labels, suite="pgd7", out=tmp_path, batch_size=250)
    write_report(tmp_path)
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert "the model gets 22 right" in page and "On 2 more it says no class even without attack" in page
    assert "Not classified:" in text and "(4, 17)" in text and "An attack failed" not in text
