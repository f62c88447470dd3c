"""The audit: its statistics, its checks on verdicts known by hand, its verdicts, and its controls."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cases import LINF, BrightnessClassifier, brightness_data, linear_case
from click.testing import CliRunner
from torch import nn

import robench.audit
from robench.attacks.descent import LOSSES, descend
from robench.attacks.straight_through import StraightThrough
from robench.audit import AuditRequest, audit_subject
from robench.audit.cheats import Detached, NoGradient, Quantise
from robench.audit.checks import CHECKS, run_checks
from robench.audit.comparisons import black_box, loss_swap, noise_breaks, one_step, precision, silent_success, transfer_breaks
from robench.audit.controls import CONTROLS, Bench
from robench.audit.evidence import Evidence, ExternalImages
from robench.audit.panel import CALLABLE, called_for
from robench.audit.protocol import provenance, randomness, transfer_gap
from robench.audit.red_flags import above_natural, eps_zero
from robench.audit.rules import GRADIENT_FREE
from robench.audit.selftest import audit_control
from robench.audit.verdict import OPEN, REFUTED, REQUIRED, SUPPORTED, WEAKENED, judge_number
from robench.cli import main
from robench.evaluation.judge import judge, verdict_logits
from robench.evaluation.results import Results
from robench.models.classifier import Classifier
from robench.models.seeded import seeded
from robench.models.subject import classifier_of_module
from robench.report.paired import holm, paired
from robench.types import Finding, Level, Outcome, RobenchError, ThreatModel

N = 1000


def results_of(columns, *, failed=()):
    """A run whose attacks left the first so many of the samples robust; 900 of 1,000 are right without attack."""
    frames, suites = [], []
    for name, left in {"clean": 900, **columns}.items():
        robust = np.zeros(N, bool)
        robust[left if isinstance(left, np.ndarray) else np.arange(left)] = True
        outcome = np.where(np.arange(N) >= 900, Outcome.MISCLASSIFIED, np.where(robust, Outcome.ROBUST, Outcome.BROKEN))
        outcome = np.where((outcome == Outcome.ROBUST) & (name in failed), Outcome.ERROR, outcome)
        rows = {"attack": name, "index": np.arange(N), "outcome": outcome, "best": outcome, "distance": 0.1}
        frames.append(pd.DataFrame(rows))
        if name != "clean":
            suites.append({"name": name, "cascade": False, "members": [{"params": {}}]})
    ledger = pd.DataFrame(
        [(name, 0, 0, "", "it raised" if name in failed else "") for name in columns],
        columns=["attack", "forwards", "backwards", "mode", "message"],
    )
    description = {"suites": suites, "threat": {"eps": 0.1, "eps_text": "0.1"}, "n": N}
    names = [name for name in columns if "/" not in name]
    return Results(
        path=Path(), description=description, verdicts=pd.concat(frames), ledger=ledger, columns=names, stages={name: [] for name in names},
        unfinished=[], examples={},
    )  # fmt: skip


def finding_of(check, level, **more):
    """A finding of which the level alone matters."""
    return Finding(check=check, level=level, says="", evidence="", source="", **more)


def evidence_of(columns, *, probes=None, failed=(), **more):
    return Evidence(
        runs={"eps": results_of(columns, failed=failed)}, probes=probes or {}, model="mine", classes=10, dataset="digits", norm="Linf",
        eps_text="0.1", **more,
    )  # fmt: skip


def test_paired_difference_counts_discordant_samples_and_tests_them_exactly():
    first, second = np.array([1, 1, 1, 1, 1, 0, 1, 0], bool), np.array([0, 0, 0, 0, 0, 1, 1, 0], bool)
    found = paired(first, second)
    assert (found.only_first, found.only_second, found.difference) == (5, 1, 0.5)
    assert found.p == pytest.approx(2 * (1 + 6) / 2**6)  # two-sided binomial of 5 in 6
    assert found.low < 0.5 < found.high
    none = paired(first, first)
    assert (none.difference, none.p) == (0, 1)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 8))  # Clopper-Pearson's for none of eight


def test_holm_multiplies_by_what_is_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_a_step_that_beats_twenty_is_a_failure_and_the_reverse_is_not():
    assert one_step(evidence_of({"fgsm": 300, "pgd20": 500})).level == Level.FAIL
    assert one_step(evidence_of({"fgsm": 500, "pgd20": 300})).level == Level.PASS
    assert one_step(evidence_of({"fgsm": 500, "pgd20": 500})).level == Level.PASS


def test_what_was_not_measured_or_failed_is_unknown():
    assert one_step(evidence_of({"pgd20": 500})).level == Level.UNKNOWN
    found = one_step(evidence_of({"fgsm": 300, "pgd20": 500}, failed=("fgsm",)))
    assert found.level == Level.UNKNOWN
    assert "FGSM failed: it raised" in found.evidence
    assert {finding.level for finding in run_checks(evidence_of({})) if finding.check in REQUIRED} == {Level.UNKNOWN}


def test_a_loss_swap_of_three_points_is_reported_and_one_of_fifteen_fails():
    assert loss_swap(evidence_of({"pgd50-ce": 500, "pgd50-margin": 490})).level == Level.PASS
    assert loss_swap(evidence_of({"pgd50-ce": 500, "pgd50-margin": 470})).level == Level.WARN
    assert loss_swap(evidence_of({"pgd50-ce": 500, "pgd50-margin": 500, "pgd50-dlr": 350})).level == Level.FAIL


def test_square_is_compared_with_what_every_white_box_attack_left():
    columns = {"pgd20": 300, "autoattack-rest/apgd-ce": 280, "autoattack-rest/square": np.arange(20, 260)}
    found = black_box(evidence_of(columns))
    assert (found.level, found.statistic) == (Level.FAIL, 0.04)  # samples 0 to 19 and 260 to 279; 280 to 299 were broken before
    assert black_box(evidence_of(columns | {"autoattack-rest/square": np.arange(280)})).level == Level.PASS


def test_a_failure_that_the_correction_takes_away_becomes_a_warning():
    evidence = evidence_of({"fgsm": np.arange(94), "pgd20": np.arange(100), "pgd7": 100, "pgd50": 100, "pgd100": 100})
    alone = one_step(evidence)
    assert (alone.level, alone.p) == (Level.FAIL, pytest.approx(2 / 2**6))
    corrected = next(finding for finding in run_checks(evidence) if finding.check == "one-step")
    assert corrected.level == Level.WARN
    assert corrected.p_corrected > 0.05


def test_stored_images_must_come_from_the_judged_weights():
    def level(protocol="unknown", **stored):
        return provenance(evidence_of({"x": 5}, external=(ExternalImages("x", **stored),), protocol=protocol)).level

    assert level(weights="mine") == Level.PASS
    assert level(weights="other") == Level.FAIL
    assert level(weights="other", protocol="transfer") == Level.PASS
    assert level(weights="mine", heads=("coarse",)) == Level.FAIL
    assert level() == Level.UNKNOWN
    assert provenance(evidence_of({})).level == Level.PASS
    assert provenance(evidence_of({}, claimed=True)).level == Level.UNKNOWN  # of the claim's own images nothing is known


def test_stored_images_that_a_fresh_attack_beats_are_noticed_though_nobody_names_their_source():
    evidence = evidence_of({"adv@file": 600, "pgd20": 10}, external=(ExternalImages("adv@file"),))
    found = transfer_gap(evidence)
    assert (found.level, round(found.statistic, 3)) == (Level.FAIL, 0.59)


def test_a_random_model_is_reported_and_accused_only_where_averaging_breaks_more():
    probes = {"repeats": {"differs": 0.3, "flips": 0.1}}
    assert randomness(evidence_of({"pgd50-margin": 500}, probes=probes, draws=100)).level == Level.WARN
    assert randomness(evidence_of({"pgd50-margin": 500, "pgd50-eot": 498}, probes=probes, draws=100)).level == Level.WARN
    assert randomness(evidence_of({"pgd50-margin": 500, "pgd50-eot": 300}, probes=probes, draws=100)).level == Level.FAIL
    assert randomness(evidence_of({}, probes={"repeats": {"differs": 0.0, "flips": 0.0}})).level == Level.PASS


def passing():
    return [finding_of(name, Level.PASS) for name in CHECKS]


@pytest.mark.parametrize(
    ("claim", "word"),
    [(0.40, REFUTED), (0.35, WEAKENED), (0.31, SUPPORTED), (0.30, SUPPORTED), (0.20, OPEN)],  # 95 % interval of 300: 0.272 to 0.329
)
def test_a_claim_is_held_against_the_interval_of_the_union(claim, word):
    evidence = evidence_of({"pgd20": 400, "autoattack": 300})
    verdict = judge_number(evidence, passing(), claim, [])
    assert (verdict.word, verdict.robust, verdict.most) == (word, 300, 300)


def test_without_a_claim_the_plain_attacks_are_judged():
    verdict = judge_number(evidence_of({"fgsm": 600, "pgd20": 500, "autoattack": 300}), passing(), None, [])
    assert (verdict.claim, verdict.word) == (0.5, REFUTED)


def test_nothing_is_supported_while_an_experiment_is_missing_a_check_fails_or_the_budget_was_short():
    evidence = evidence_of({"pgd20": 300})
    gap = [*passing()[:-1], finding_of("noise", Level.UNKNOWN)]
    bad = [*passing()[:-1], finding_of("one-step", Level.FAIL)]
    for findings, not_run, why in (
        (gap, [], "missing: noise"),
        (bad, [], "checks fail: one-step"),
        (passing(), ["square20000"], "budget"),
    ):
        verdict = judge_number(evidence, findings, 0.3, not_run)
        assert verdict.word == OPEN
        assert any(why in reason for reason in verdict.why)


def test_a_failed_attack_leaves_the_union_open():
    evidence = evidence_of({"fgsm": 400, "pgd20": 300}, failed=("pgd20",))
    verdict = judge_number(evidence, passing(), 0.38, [])
    assert (verdict.robust, verdict.most) == (0, 300)
    assert judge_number(evidence, passing(), 0.31, []).word == OPEN
    assert (
        judge_number(evidence, passing(), 0.6, []).word == REFUTED
    )  # at most 300 are left, whatever the failed attack would have done


def test_a_claim_of_transfer_is_held_against_the_stored_images():
    evidence = evidence_of({"adv@file": 600, "pgd20": 10}, external=(ExternalImages("adv@file", "other"),), protocol="transfer")
    verdict = judge_number(evidence, passing(), 0.606, [])
    assert (verdict.word, verdict.robust, verdict.transfer) == (SUPPORTED, 10, 0.6)
    white_box = judge_number(
        evidence_of({"adv@file": 600, "pgd20": 10}, external=(ExternalImages("adv@file"),), protocol="white-box"),
        passing(),
        0.606,
        [],
    )
    assert white_box.word == REFUTED


@pytest.mark.parametrize(
    ("stored", "claim", "failing", "why"),
    [
        (ExternalImages("x"), 0.6, None, "nobody says what x was crafted on"),
        (ExternalImages("x", "mine"), 0.6, None, "crafted on the judged weights"),
        (ExternalImages("x", "other"), 0.6, "budget", "checks fail: budget"),
        (ExternalImages("x", "other"), None, None, "without a claim"),
    ],
)
def test_a_claim_of_transfer_needs_images_of_a_known_other_model_that_spend_their_radius(stored, claim, failing, why):
    evidence = evidence_of({"x": 600, "pgd20": 10}, external=(stored,), protocol="transfer")
    findings = [finding_of(name, Level.FAIL if name == failing else Level.PASS) for name in CHECKS]
    verdict = judge_number(evidence, findings, claim, [])
    assert verdict.word == OPEN
    assert any(why in reason for reason in verdict.why)


def test_stored_images_that_break_the_model_count_in_the_union():
    verdict = judge_number(evidence_of({"x": 300, "pgd20": 500}, external=(ExternalImages("x"),)), passing(), 0.5, [])
    assert (verdict.word, verdict.robust) == (REFUTED, 300)


def test_invalid_stored_images_widen_the_number_and_are_not_forgotten():
    evidence = evidence_of({"x": 600, "pgd20": 10}, external=(ExternalImages("x", "other"),), protocol="transfer", failed=("x",))
    verdict = judge_number(evidence, passing(), 0.3, [])
    assert verdict.low < 0.01
    assert verdict.high > 0.6


def test_an_attack_that_failed_supports_nothing_and_its_checks_are_unknown():
    columns = {"pgd20": 300, "noise": 300, "autoattack-rest/square": 300}
    evidence = evidence_of(columns, failed=("noise", "autoattack-rest/square"))
    assert noise_breaks(evidence).level == black_box(evidence).level == Level.UNKNOWN
    assert judge_number(evidence, passing(), 0.29, []).word == OPEN


def test_the_largest_of_several_comparisons_pays_for_its_choice():
    one = loss_swap(evidence_of({"pgd50-ce": 500, "pgd50-margin": 470}))
    two = loss_swap(evidence_of({"pgd50-ce": 500, "pgd50-margin": 470, "pgd50-dlr": 500}))
    assert two.p == pytest.approx(2 * one.p)


def test_on_a_random_model_our_steps_end_where_the_majority_errs_and_not_at_a_lucky_draw():
    class Noisy(BrightnessClassifier):
        def forward(self, images):
            shift = 0.1 * torch.randn(len(images), 1)
            return super().forward(images) + torch.cat([-shift, shift], 1)

    images, labels = brightness_data([0.05] * 40)
    classifier = Classifier(Noisy(), 2)
    classifier.settle_draws(images)
    threat = ThreatModel("Linf", 0.1)
    for how in ({"loss": "margin"}, {"loss": "margin", "draws": 20}):
        with seeded(0, images.device):
            adv_images = descend(classifier, images, labels, threat, 0, steps=20, step_size=0.025, **how)
        assert judge(classifier, images, labels, adv_images, threat).outcomes.count(Outcome.BROKEN) == 40


def test_a_tie_of_votes_is_no_majority_against_the_model():
    class Half(nn.Module):
        calls = 0

        def forward(self, images):
            Half.calls += 1
            return torch.tensor([[1.0, 0.0], [0.0, 1.0]])[[Half.calls % 2] * len(images)] + 0 * images.sum()

    classifier = Classifier(Half(), 2)
    classifier.draws = 100
    images, labels = brightness_data([0.1, 0.1])
    assert verdict_logits(classifier, images, labels).argmax(1).tolist() == [1, 1]
    assert verdict_logits(classifier, images, 1 - labels).argmax(1).tolist() == [0, 0]


def test_findings_call_for_attacks_within_the_budget_and_warnings_for_cheap_ones():
    grave = finding_of("x", Level.FAIL, calls_for=("square20000", "pgd50-bpda"))
    mild = finding_of("y", Level.WARN, calls_for=("pgd50-spsa", "pgd100-margin"))
    assert called_for([grave, mild], [], 3.0) == (["pgd50-bpda", "pgd100-margin", "square20000"], [])
    assert called_for([grave, mild], ["pgd100-margin"], 1.0) == (["pgd50-bpda"], ["square20000"])


def names_in_source():
    """(file, name) of every attack that the audit's source lets a finding call for."""
    for path in sorted(Path(robench.audit.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "calls_for":
                yield from ((path.name, each.value) for each in ast.walk(node.value) if isinstance(each, ast.Constant))


def test_every_attack_that_a_finding_may_call_for_is_on_the_panel_or_on_the_ladder():
    named = list(names_in_source())
    assert len(named) > 12
    assert not [(file, name) for file, name in [*named, *(("readings.py", name) for name in GRADIENT_FREE)] if name not in CALLABLE]


def test_a_name_that_is_on_neither_is_no_attack_that_goes_missing():
    typo = finding_of("x", Level.PASS, calls_for=("pgd50-bdpa",))
    with pytest.raises(AssertionError, match="pgd50-bdpa"):
        called_for([typo], [], 3.0)


def test_a_gain_of_float64_calls_for_float64_and_rescaling():
    finding = precision(evidence_of({"pgd50-ce": 800, "pgd50-float64": 300}))
    assert (finding.level, finding.calls_for) == (Level.FAIL, ("pgd50-float64", "pgd50-rescaled"))


def test_rescaled_cross_entropy_is_cross_entropy_where_margins_are_small():
    logits, labels = torch.tensor([[3.0, 1.0, 0.0], [4000.0, 0.0, -1.0]]), torch.tensor([0, 0])
    plain, rescaled = (LOSSES[name](logits, labels, logits) for name in ("ce", "rescaled"))
    assert rescaled[0] == plain[0]
    assert plain[1] == 0
    assert rescaled[1] == pytest.approx(np.log1p(np.exp(-10) + np.exp(-10.0025)), rel=1e-3)


@pytest.mark.parametrize("wrap", [lambda model: nn.Sequential(Quantise(4), model), Detached, NoGradient])
def test_gradients_go_straight_through_what_has_none_and_the_outputs_stay(wrap):
    model, images, _, _ = linear_case(0.02, "Linf", n=10)
    cheat = wrap(model)
    through = StraightThrough(cheat)
    assert torch.equal(through(images), cheat(images))
    free = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(through(free)[:, 0].sum(), free)
    assert torch.allclose(gradient.flatten(1), model.weight[0].expand(len(images), -1), atol=1e-6)


def test_a_broken_sample_rests_and_costs_nothing_more():
    model, images, labels, robust = linear_case(LINF.eps, "Linf", n=20)
    classifier = Classifier(model, 10)
    with classifier.counting() as passes:
        adv_images = descend(classifier, images, labels, LINF, 0, loss="margin", steps=50, step_size=LINF.eps / 4)
    assert torch.equal(classifier(adv_images).argmax(1) == labels, robust)
    assert passes.backwards < 50 * 20 * 0.7


@pytest.fixture(scope="session")
def bench(digits_train, digits_test, tmp_path_factory):
    return Bench(digits_train, digits_test, tmp_path_factory.mktemp("controls"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_every_cheat_is_called_out_and_no_honest_model_is_accused(name, bench, tmp_path):
    slow = "defended" in name or "adversarial" in name or name == "honest-noise"  # most of their samples see every attack
    outcome = audit_control(name, bench, tmp_path / "audit", n=16 if slow else 40)
    assert outcome.complaint == ""


@pytest.mark.slow
def test_an_interrupted_audit_goes_on_and_says_the_same(bench, tmp_path):
    def once(folder):
        subject = classifier_of_module(bench.undefended, 10, "cpu", "undefended")
        return audit_subject(subject, bench.test_set, AuditRequest(n=30, quick=True), folder, "cpu", show_progress=False)

    first = once(tmp_path / "a")
    assert once(tmp_path / "a").findings == first.findings
    for file in (tmp_path / "a" / "run" / "chunks").glob("pgd50-margin*/*.npz"):
        file.unlink()
    (tmp_path / "a" / "probes.json").unlink()
    again = once(tmp_path / "a")
    assert again.findings == first.findings
    assert again.verdict == first.verdict


@pytest.mark.slow
def test_a_finished_audit_called_again_says_the_same_whatever_was_asked_in_between(bench, tmp_path):
    model = bench.fitted(bench.network(nn.Identity, 0, 0))

    def once(**asked):
        subject = classifier_of_module(model, 10, "cpu", "linear")
        request = AuditRequest(eps="0.03", n=20, **asked)
        return audit_subject(subject, bench.test_set, request, tmp_path, "cpu", show_progress=False)

    first = once()
    assert 0 < first.verdict.robust < first.verdict.most + 1
    stored = tmp_path / "clean.pt"
    torch.save({"adv_inputs": bench.test_set.images[:20] / 255, "labels": bench.test_set.labels[:20]}, stored)
    assert once(adv=(str(stored),), claim=0.9).verdict.transfer is not None
    once(quick=True)
    again = once()
    assert (again.verdict, again.findings) == (first.verdict, first.findings)


@pytest.mark.slow
def test_the_command_exits_with_3_where_a_number_is_refuted(bench, tmp_path):
    bench.trained()
    ckpt = bench.folder / "single-none-0.safetensors"
    call = ["audit", "--ckpt", str(ckpt), "--quick", "-n", "20", "--out", str(tmp_path / "a"), "--threads", "1", "--claim", "0.6"]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 3
    assert "Refuted: 60.00 % (the claim (unknown))" in result.stdout
    content = json.loads((tmp_path / "a" / "findings.json").read_text())
    assert {finding["check"] for finding in content["findings"]} == set(CHECKS)
    assert content["verdict"]["word"] == REFUTED
    page = (tmp_path / "a" / "audit.md").read_text()
    assert page.index("Refuted") < page.index("What each step took away") < page.index("Findings that matter")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"claim": 60.6}, "`claim=60.6`: expected a robust accuracy as a fraction of all samples"),
        ({"protocol": "gray-box"}, "`protocol='gray-box'`: expected one of white-box, transfer, unknown"),
        ({"budget": -1}, "`budget=-1`: expected a multiple"),
    ],
)
def test_a_request_that_cannot_be_judged_is_refused(asked, message):
    with pytest.raises(RobenchError, match=message):
        AuditRequest(**asked)


def test_images_of_a_sibling_that_break_what_is_left_are_noticed():
    columns = {"pgd20": 300, "pgd50@other": np.arange(50, 900)}
    assert transfer_breaks(evidence_of(columns)).level == Level.FAIL
    assert transfer_breaks(evidence_of({"pgd20": 300})).level == Level.UNKNOWN
    assert transfer_breaks(evidence_of(columns, external=(ExternalImages("pgd50@other"),))).level == Level.UNKNOWN


def test_a_sample_or_two_that_an_attack_lost_are_no_warning_and_twenty_of_a_hundred_are_a_failure():
    def found(lost):
        results = results_of({"pgd50": 300})
        rows = results.verdicts
        rows = rows[rows["index"] < 100].copy()
        rows.loc[(rows["attack"] == "pgd50") & (rows["index"] < lost), "best"] = Outcome.BROKEN
        evidence = evidence_of({})
        return silent_success(replace(evidence, runs={"eps": replace(results, verdicts=rows)}, _frames={}))

    assert [found(lost).level for lost in (0, 1, 2, 3, 5)] == [Level.PASS, Level.PASS, Level.PASS, Level.WARN, Level.WARN]
    assert found(20).level == Level.FAIL
    assert found(1).p == 1


@pytest.mark.parametrize(("claim", "level"), [(0.90, "pass"), (0.902, "pass"), (0.91, "warn"), (0.95, "fail"), (None, "pass")])
def test_a_claim_above_the_accuracy_without_attack_is_noticed(claim, level):
    assert above_natural(evidence_of({"pgd20": 300}, claim=claim)).level == level  # 900 of 1,000 are right: 0.880 to 0.917


@pytest.mark.parametrize(("gained", "level"), [(0, "pass"), (2, "pass"), (4, "warn"), (50, "fail")])
def test_stored_images_that_are_more_often_right_than_clean_ones_are_noticed(gained, level):
    evidence = evidence_of({"x": 900}, external=(ExternalImages("x", "other"),))
    rows = evidence.runs["eps"].verdicts
    rows["label"] = 1
    rows["clean_pred"] = np.where(rows["outcome"] == Outcome.MISCLASSIFIED, 0, 1)
    rows["adv_pred"] = np.where(rows["index"] < 900 + gained, 1, 0)
    assert above_natural(evidence).level == level


@pytest.mark.parametrize(("changed", "level"), [(0, "pass"), (2, "pass"), (5, "warn"), (60, "fail")])
def test_images_that_are_right_only_when_asked_first_are_noticed(changed, level):
    again = results_of({"pgd20": 0})
    rows = again.verdicts
    rows.loc[(rows["attack"] == "clean") & (rows["index"] < changed), "outcome"] = Outcome.MISCLASSIFIED
    evidence = evidence_of({"pgd20": 300})
    assert eps_zero(evidence).level == Level.UNKNOWN
    assert eps_zero(replace(evidence, runs={**evidence.runs, "x2": again}, _frames={})).level == level


def test_a_sample_or_two_that_another_attack_adds_are_no_failure():
    def level(added):
        columns = {"pgd20": 300, "autoattack-rest/square": np.arange(added, 300)}
        return black_box(evidence_of(columns)).level

    assert [level(added) for added in (0, 1, 2, 5, 20)] == [Level.PASS, Level.WARN, Level.WARN, Level.WARN, Level.FAIL]
