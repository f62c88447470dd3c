"""The audit's time: what is run first, what does not fit, what an interruption and somebody's exception leave."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import BrightnessClassifier, brightness_data
from test_audit import evidence_of, passing

from robench.attacks import parse_columns
from robench.audit import AuditRequest, audit_subject, first_experiments
from robench.audit.checks import run_checks
from robench.audit.experiments import Experiments
from robench.audit.feeds import PANEL_UNITS, feeds_of
from robench.audit.follow_up import FollowUp
from robench.audit.forecast import (
    LARGEST_FACTOR,
    TIMED_IMAGES,
    allowed_seconds,
    fitting_samples,
    images_to_time,
    random_order,
    step_seconds,
    units_of,
    units_of_name,
)
from robench.audit.measurements import Measurements
from robench.audit.panel import AVERAGED, LADDER
from robench.audit.probes import run_probe
from robench.audit.schedule import Deadline, Experiment, Missed, Schedule, Unfinished, with_minutes
from robench.audit.verdict import OPEN, REFUTED, judge_number, verdict_line
from robench.models.classifier import Classifier
from robench.models.subject import classifier_of_module
from robench.types import Dataset, Level, RobenchError, ThreatModel

pytestmark = pytest.mark.slow  # a minute together; `make test-all` and CI run them


class FakeClock:
    """Seconds that pass only where a test says so."""

    now = 0.0

    def __call__(self):
        return self.now


CLOCK = FakeClock()


class Slow(BrightnessClassifier):
    """Every image that it is asked about takes a hundredth of a second."""

    def forward(self, images):
        CLOCK.now += 0.01 * len(images)
        return super().forward(images)


@pytest.fixture(autouse=True)
def at_zero():
    CLOCK.now = 0.0


def gray(n=40):
    """Gray images of both classes, some so near to one half that eps 0.1 breaks them."""
    images, labels = brightness_data(np.linspace(0.02, 0.3, n).tolist())
    return Dataset("gray", "test", images, labels, ("dark", "bright"), {"Linf": "0.1"})


class OnDisk:
    """Images as if they were stored, and how many were read."""

    def __init__(self, images):
        self.images, self.shape, self.digest, self.n_read = images, tuple(images.shape), "on disk", 0

    def __len__(self):
        return len(self.images)

    def read(self, places):
        self.n_read += len(places)
        return self.images[list(places)]

    def name(self, place):
        return f"image {place}"

    def is_here(self):
        return True


def audited(module, folder, *, n=40, data=None, command="robench audit --quick --minutes 1", **asked):
    CLOCK.now = 0.0  # what a module reads is part of its digest
    subject = classifier_of_module(module, 2, "cpu", "gray")
    request = AuditRequest(n=n, quick=True, budget=0, **asked)
    return audit_subject(subject, data or gray(n), request, Path(folder), "cpu", command=command, show_progress=False, clock=CLOCK)


def experiment(name, units, run=lambda: None, feeds=()):
    return Experiment(name=name, changes="", units=lambda: units, run=run, feeds=feeds)


def test_the_cheapest_comes_first_and_what_does_not_fit_is_missed_with_its_forecast():
    schedule, ran = Schedule(Deadline(10.0, CLOCK), pace=0.5, show=False), []

    def run(name, seconds):
        ran.append(name)
        CLOCK.now += seconds

    schedule.run(
        [experiment("dear", 12, lambda: run("dear", 6)), experiment("long", 30), experiment("cheap", 2, lambda: run("cheap", 5))]
    )
    assert ran == ["cheap"]  # five seconds are left, of which dear would take six
    assert [(each.name, each.seconds) for each in schedule.missed] == [("dear", 6), ("long", 15)]
    assert schedule.minutes == math.ceil(1.2 * (5 + 6 + 15) / 6) / 10


def test_what_only_says_more_waits_for_what_changes_the_number():
    schedule, ran = Schedule(Deadline(10.0, CLOCK), pace=1.0, show=False), []
    schedule.run(
        [experiment("says more", 4, lambda: ran.append(4)), experiment("free", 0, lambda: ran.append(0))], lambda needs: 7.0
    )
    assert ran == [0] and not schedule.missed
    schedule.run_waiting()
    assert ran == [0, 4] and not schedule.missed and not schedule.waiting


def test_what_somebodys_model_raises_ends_its_experiment_alone_and_a_mistake_of_the_users_ends_the_audit():
    def fail(error):
        raise error

    schedule = Schedule(Deadline(math.inf, CLOCK), pace=1.0, show=False)
    done = []
    schedule.run(
        [
            experiment("bad", 1, lambda: fail(ValueError("Expected more than 1 value per channel"))),
            experiment("good", 2, lambda: done.append(1)),
        ]
    )
    assert done and schedule.missed == [Missed("bad", "ended with ValueError: Expected more than 1 value per channel")]
    with pytest.raises(RobenchError, match="disk"):
        schedule.run([experiment("full", 1, lambda: fail(RobenchError("the disk is full")))])


def test_an_interruption_leaves_what_is_known_and_runs_nothing_more():
    def interrupt():
        raise KeyboardInterrupt

    schedule, done = Schedule(Deadline(math.inf, CLOCK), pace=1.0, show=False), []
    schedule.run(
        [
            experiment("first", 1, lambda: done.append("first")),
            experiment("second", 2, interrupt),
            experiment("third", 3, lambda: done.append(3)),
        ]
    )
    assert done == ["first"] and schedule.interrupted
    assert [each.name for each in schedule.missed] == ["second", "third"]


def test_the_time_is_as_asked_or_grows_with_the_model_up_to_four_times():
    assert allowed_seconds(2, 1.0, 200, quick=True) == 120
    assert allowed_seconds(None, 1e-6, 200, quick=True) == 90
    assert allowed_seconds(None, 3e-3, 200, quick=True) == pytest.approx(180)
    assert allowed_seconds(None, 1.5e-3, 1000, quick=False) == 600
    assert allowed_seconds(None, 1.0, 1000, quick=False) == 600 * LARGEST_FACTOR


def test_a_slow_model_is_timed_by_few_images_and_a_fast_one_by_more():
    images, _ = brightness_data([0.1] * 40)
    assert step_seconds(Classifier(Slow(), 2), images, CLOCK) == pytest.approx(0.01)
    assert CLOCK.now == pytest.approx(0.04 + 0.32)


@pytest.mark.parametrize(("seconds", "samples"), [(math.inf, 200), (100, 200), (60, 100), (1, 10)])
def test_samples_are_halved_until_the_panel_comes_to_an_end(seconds, samples):
    assert fitting_samples(seconds, 150.0, 200) == samples


def test_an_attack_costs_what_it_is_known_to_cost_at_most():
    threat = ThreatModel("Linf", 0.1)
    names = ("pgd50-ce", "pgd100", "noise", "square", "fgsm", "pgd50-spsa")
    costs = {name: units_of(parse_columns(name, threat, 10)[0].stages[0], 10) for name in names}
    assert costs == {
        "pgd50-ce": 150,
        "pgd100": 300,
        "noise": 50,
        "square": 5000,
        "fgsm": 3,
        "pgd50-spsa": next(each.cost for each in LADDER if "spsa" in each.name),
    }


def test_the_command_for_more_time_is_the_one_that_was_called():
    assert with_minutes("robench audit --ckpt a --minutes 1 --quick", 4.5) == "`robench audit --ckpt a --quick --minutes 4.5`"
    assert with_minutes("robench audit", 2) == "`robench audit --minutes 2`"
    assert with_minutes("", 2) == "give `minutes=2`"


@pytest.mark.parametrize("minutes", [0.05, 1])
def test_an_audit_keeps_its_time_and_names_the_command_for_what_is_unknown(minutes, tmp_path):
    found = audited(Slow(), tmp_path, minutes=minutes)
    assert 0 < found.seconds <= 60 * minutes * 1.2 + 1
    waiting = [finding for finding in found.findings if "did not fit" in finding.evidence]
    assert waiting and {finding.level for finding in waiting} == {Level.UNKNOWN}
    assert all("`robench audit --quick --minutes " in finding.evidence for finding in waiting)
    assert found.verdict.word in (OPEN, REFUTED) and any("did not fit" in reason for reason in found.verdict.why)
    assert "gave nothing" in found.path.read_text()


@pytest.mark.slow
def test_with_time_enough_nothing_is_missed_and_more_time_says_the_same(tmp_path):
    one, two = (audited(Slow(), tmp_path / str(minutes), n=12, minutes=minutes) for minutes in (60, math.inf))
    assert one.findings == two.findings and one.verdict == two.verdict
    assert not [finding for finding in one.findings if "did not fit" in finding.evidence]


@pytest.mark.slow
def test_what_is_there_already_takes_no_time_however_little_there_is(tmp_path):
    whole = audited(Slow(), tmp_path, n=12, minutes=math.inf)
    again = audited(Slow(), tmp_path, n=12, minutes=0.2)
    assert (again.findings, again.verdict) == (whole.findings, whole.verdict)


@pytest.mark.slow
def test_an_interrupted_audit_gives_its_page_and_goes_on_where_it_was(tmp_path, monkeypatch):
    def interrupted(name, *rest):
        if name == "differences":
            raise KeyboardInterrupt
        return run_probe(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(first_experiments, "run_probe", interrupted)
        first = audited(BrightnessClassifier(), tmp_path, minutes=math.inf)
    assert any("the audit was interrupted" in reason for reason in first.verdict.why) and first.path.exists()
    unknown = {finding.check for finding in first.findings if "interrupted" in finding.evidence}
    assert {"finite-differences", "continuity", "incomplete", "unbounded"} <= unknown
    again = audited(BrightnessClassifier(), tmp_path, minutes=math.inf)
    assert not any("interrupted" in finding.evidence for finding in again.findings)


@pytest.mark.slow
def test_a_model_that_learning_images_are_too_much_for_leaves_the_surrogate_unknown(tmp_path):
    class Picky(BrightnessClassifier):
        def forward(self, images):
            logits = super().forward(images.detach()) + 0 * images.flatten(1).sum(1, keepdim=True)
            return torch.where(images.flatten(1).mean(1, keepdim=True) > 0.95, float("nan"), logits)

    data = gray(20)
    white = replace(data, images=torch.ones(30, 3, 4, 4), labels=torch.ones(30, dtype=torch.int64))
    subject = classifier_of_module(Picky(), 2, "cpu", "picky")
    request = AuditRequest(n=20, quick=True, minutes=math.inf, eps="0.01", budget=1)
    found = audit_subject(subject, data, request, tmp_path, "cpu", learn_from=white, show_progress=False)
    assert any("surrogate" in reason and "ended with" in reason for reason in found.verdict.why)


def test_a_number_is_judged_on_the_random_part_that_every_attack_saw_where_that_says_more():
    evidence = evidence_of({"pgd20": 500, "part of square20000": np.arange(50, 500)})
    seen = np.arange(1000) % 20 == 0
    whole = judge_number(evidence, passing(), 0.5, [])
    assert (whole.n, whole.most) == (1000, 450)
    seen = np.zeros(1000, bool)
    seen[:60] = True
    part = judge_number(replace(evidence, covered=seen, _frames={}), passing(), 0.5, [])
    assert (part.n, part.most) == (60, 10)
    assert "a random 60 of the 1,000 samples" in part.against


def test_an_attack_that_does_not_fit_on_all_takes_samples_in_a_fixed_random_order_and_says_which_it_saw(tmp_path, monkeypatch):
    """Twenty samples survive; the attack takes ten seconds a sample by its forecast, and a second in fact."""
    subject = classifier_of_module(BrightnessClassifier(), 2, "cpu", "gray")
    images, labels = brightness_data([0.3] * 20)
    data = Dataset("gray", "test", images, labels, ("dark", "bright"), {"Linf": "0.1"})
    schedule = Schedule(Deadline(100.0, CLOCK), pace=10 / units_of_name("pgd100-margin"), show=False)
    request = AuditRequest(n=20, quick=True)
    measured = Measurements(
        subject=subject,
        data=data,
        request=request,
        folder=tmp_path,
        device="cpu",
        command="",
        show_progress=False,
        schedule=schedule,
    )
    audit = Experiments(measured, FollowUp(measured, data))
    measured.classify()
    sizes = []

    def attack(name, names, besides):
        sizes.append(int((~besides).sum()))
        CLOCK.now += sizes[-1]

    monkeypatch.setattr(audit.stronger, "_attack", attack)
    found = audit.follow(["pgd100-margin"])
    assert sizes == [9, 8, 3] and found.covered is None and not found.missed  # 95 s, then 86 of 91, then what is left
    CLOCK.now, sizes[:] = 40.0, []
    found = audit.follow(["pgd100-margin"])
    assert sizes == [5, 5] and [each.name for each in found.missed] == ["PGD-100-margin on 10 samples"]
    assert set(np.flatnonzero(found.covered)) == set(random_order(20, 0)[:10].tolist())


def test_a_random_part_of_stored_images_is_audited_as_that_of_a_tensor_and_the_page_names_the_command_for_all(tmp_path):
    data = gray()
    stored = replace(data, images=OnDisk(data.images))
    one, two = (audited(Slow(), tmp_path / name, data=each, minutes=0.05) for name, each in (("held", data), ("stored", stored)))
    assert (one.findings, one.verdict) == (two.findings, two.verdict) and one.verdict.n == 10
    page = two.path.read_text()
    assert "test split, a random 10 of the first 40, for want of time; `robench audit --quick --minutes " in page
    minutes = float(re.search(r"--minutes ([0-9.]+)` takes all", page)[1])
    assert fitting_samples(60 * minutes, 0.01 / 3 * 40 * PANEL_UNITS[True], 40) == 40


def test_to_time_a_pass_no_more_images_are_read_than_it_takes():
    stored = OnDisk(torch.zeros(1000, 3, 4, 4, dtype=torch.uint8))
    data = Dataset("many", "test", stored, torch.zeros(1000, dtype=torch.int64), ("a", "b"))
    assert len(images_to_time(data, 1000, torch.device("cpu"))) == stored.n_read == TIMED_IMAGES


def test_a_column_that_was_stopped_is_told_of_once_and_is_no_result(tmp_path):
    data = gray(8)
    measured = Measurements(
        subject=classifier_of_module(BrightnessClassifier(), 2, "cpu", "gray"), data=data, request=AuditRequest(n=8), folder=tmp_path,
        device="cpu", command="", show_progress=False, schedule=Schedule(Deadline(0.0, CLOCK), pace=1.0, show=False),
    )  # fmt: skip
    measured.classify()
    columns = parse_columns("pgd7", measured.threat, 2)
    with pytest.raises(Unfinished, match="pgd7 was stopped"):
        measured.add(columns)
    assert not measured.columns and measured.left == 8
    measured.take(columns)  # what comes behind it is not blamed
    assert not measured.columns


@pytest.mark.parametrize(
    ("check", "left", "missed", "level"),
    [
        ("steps", {"pgd7": 500, "pgd20": 400}, "pgd100", "unknown"),
        ("steps", {"pgd7": 400, "pgd20": 500}, "pgd100", "fail"),
        ("noise", {"fgsm": 500, "noise": 300}, "pgd20", "unknown"),  # PGD-20 might have broken them too
        ("noise", {"pgd20": 500, "noise": 300}, "pgd100", "fail"),
        ("loss-swap", {"pgd50-ce": 500, "pgd50-margin": 500}, "pgd50-dlr", "unknown"),
    ],
)
def test_a_check_that_lacks_an_experiment_passes_never_and_fails_only_where_that_cannot_clear_the_model(check, left, missed, level):
    evidence = replace(evidence_of(left), missed=(Missed(missed, "did not fit", 1.0, feeds_of([missed])),), remedy="ask again")
    found = next(finding for finding in run_checks(evidence) if finding.check == check)
    assert found.level == level and (level == "fail" or found.evidence == f"{missed}: did not fit; ask again")


def test_a_verdict_counts_the_attacks_that_ran_and_says_so():
    evidence = replace(evidence_of({"pgd20": 500}), missed=(Missed("pgd100", "did not fit", 1.0),))
    assert "survive every attack on the model itself that was run" in verdict_line(judge_number(evidence, passing(), 0.5, []))
    assert "that was run" not in verdict_line(judge_number(evidence_of({"pgd20": 500}), passing(), 0.5, []))


@pytest.mark.parametrize(("followed", "missed"), [([], ["PGD-30-averaged"]), ([AVERAGED], [])])
def test_what_waited_is_run_at_the_end_and_an_attack_that_only_it_calls_for_is_missed(followed, missed, tmp_path):
    schedule = Schedule(Deadline(100.0, CLOCK), pace=1e-6, show=False)
    measured = Measurements(
        subject=classifier_of_module(BrightnessClassifier(), 2, "cpu", "gray"), data=gray(8), request=AuditRequest(n=8), folder=tmp_path,
        device="cpu", command="", show_progress=False, schedule=schedule,
    )  # fmt: skip
    audit = Experiments(measured, FollowUp(measured, measured.data))
    measured.classify()
    schedule.waiting.append(experiment("secants", 1, lambda: audit.probes.update(secants={"astray": 1.0, "n": 100})))
    assert [each.name for each in audit.catch_up(followed).missed] == missed
