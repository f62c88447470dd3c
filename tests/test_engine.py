"""The engine on attacks whose tables are known by hand."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from cases import BrightnessClassifier, brightness_data, column, darken, described, fake
from torch import nn

from robench.attacks import parse_columns
from robench.evaluation.engine import evaluate_columns
from robench.evaluation.results import read_results
from robench.evaluation.run_folder import BLIND, Chunk, ChunkVerdicts, RunFolder, attack_folder, chunk_seed, follows, split
from robench.models.classifier import Classifier
from robench.models.subject import classifier_of_module
from robench.report import write_report
from robench.run.evaluate import evaluate
from robench.run.execute import settle_randomness
from robench.run.plan import settled_precision
from robench.run.request import DEFAULT_CHUNK, AttackRequest
from robench.types import Column, Dataset, Outcome, RobenchError, RunSpec, ThreatModel

# Of ten samples two are misclassified; at eps 0.1 darkening breaks those below 0.1, four of the other eight.
OFFSETS = [-0.05, 0.02, 0.2, 0.06, 0.3, -0.01, 0.08, 0.15, 0.04, 0.25]
THREAT = ThreatModel("Linf", 0.1)
SPEC = RunSpec(model="model", data="data", norm=THREAT.norm, eps=THREAT.eps, seed=0, chunk=4, device_type="cpu")


def run(path, suites, *, offsets=OFFSETS, spec=SPEC, model=None, **how):
    """Runs suites and describes the folder as ``robench attack`` does."""
    images, labels = brightness_data(offsets)
    folder = RunFolder(path, spec)
    columns = [
        {
            "name": suite.name,
            "cascade": suite.is_cascade,
            "members": [
                {"name": m.name, "folder": attack_folder(suite, m), "params": {}, "library": "tests", "source": ""}
                for m in suite.stages
            ],
        }
        for suite in suites
    ]
    folder.describe(described(len(images), columns) | {"threat": {"norm": spec.norm, "eps": spec.eps, "eps_text": "0.1"}})
    classifier = Classifier(model or BrightnessClassifier(), 2)
    settle_randomness(classifier, images)
    threat = ThreatModel(spec.norm, spec.eps)
    evaluate_columns(classifier, images, labels, suites, threat=threat, folder=folder, show_progress=False, **how)
    return read_results(path)


def outcomes(results, attack):
    rows = results.verdicts[results.verdicts["attack"] == attack]
    return dict(zip(rows["index"], rows["outcome"], strict=True))


def test_verdicts_are_the_ones_known_by_hand(tmp_path):
    results = run(tmp_path, [column("darken", darken)])
    expected = {
        index: Outcome.MISCLASSIFIED if offset < 0 else Outcome.BROKEN if offset < 0.1 else Outcome.ROBUST
        for index, offset in enumerate(OFFSETS)
    }
    assert outcomes(results, "darken") == expected
    rows = results.verdicts.set_index(["attack", "index"])
    assert rows.loc[("darken", 1), "adv_pred"] == 0 and rows.loc[("darken", 2), "adv_pred"] == 1
    assert rows.loc[("darken", 2), "distance"] == pytest.approx(0.1, abs=1e-6)
    assert rows.loc[("darken", 2), "margin"] == pytest.approx(2 * (0.2 - 0.1), abs=1e-5)
    assert rows.loc[("clean", 0), "outcome"] == Outcome.MISCLASSIFIED


def test_the_attack_sees_only_correct_samples_chunk_by_chunk(tmp_path):
    seen = []

    def record(model, images, labels, threat, seed):
        seen.append([round(float(image.mean()) - 0.5, 3) for image in images])
        return images

    run(tmp_path, [column("record", record)])
    assert seen == [[0.02, 0.2, 0.06], [0.3, 0.08, 0.15], [0.04, 0.25]]


def test_a_cascade_gives_each_stage_the_survivors_and_is_one_column(tmp_path):
    seen = []

    def darken_all(model, images, labels, threat, seed):
        seen.append(len(images))
        return darken(model, images, labels, threat, seed)

    def nothing(model, images, labels, threat, seed):
        seen.append(len(images))
        return images

    suite = Column("both", (fake("first", darken_all), fake("second", nothing)), is_cascade=True)
    results = run(tmp_path, [suite], spec=replace(SPEC, chunk=10))
    assert seen == [8, 4]
    assert results.columns == ["both"] and results.stages["both"] == ["both/first", "both/second"]
    stage = outcomes(results, "both/second")
    assert [stage[index] for index in (0, 1, 2)] == [Outcome.MISCLASSIFIED, Outcome.SKIPPED, Outcome.ROBUST]
    assert outcomes(results, "both") == outcomes(run(tmp_path / "other", [column("darken", darken)]), "darken")


def test_passes_are_counted_in_samples(tmp_path):
    def two_forwards_one_backward(model, images, labels, threat, seed):
        with torch.no_grad():
            model(images)
        inputs = images.clone().requires_grad_()
        model(inputs).sum().backward()
        return images

    ledger = run(tmp_path, [column("count", two_forwards_one_backward)]).ledger
    counted = ledger[ledger["attack"] == "count"]
    assert (counted["forwards"].sum(), counted["backwards"].sum()) == (16, 8)


def raises(model, images, labels, threat, seed):
    raise ValueError("out of ideas")


def returns_nan(model, images, labels, threat, seed):
    return torch.full_like(images, float("nan"))


def leaves_the_ball(model, images, labels, threat, seed):
    return (images - threat.eps - 1e-3).clamp(0, 1)


def leaves_the_box(model, images, labels, threat, seed):
    return images - 0.0 + torch.where(torch.arange(4) == 0, 2.0, 0.0)


def wrong_shape(model, images, labels, threat, seed):
    return images[:1]


@pytest.mark.parametrize(
    ("attack", "outcome", "message"),
    [
        (raises, Outcome.ERROR, "ValueError: out of ideas"),
        (returns_nan, Outcome.INVALID, "with NaN or infinity"),
        (leaves_the_ball, Outcome.INVALID, "outside the ball (up to 0.101"),
        (leaves_the_box, Outcome.INVALID, "outside [0, 1]"),
        (wrong_shape, Outcome.INVALID, "returned shape (1, 3, 4, 4) for images of shape"),
    ],
)
def test_an_attack_that_fails_is_neither_robust_nor_broken_and_the_others_go_on(tmp_path, attack, outcome, message):
    results = run(tmp_path, [column("bad", attack), column("darken", darken)], spec=replace(SPEC, chunk=10))
    bad = outcomes(results, "bad")
    assert {bad[index] for index, offset in enumerate(OFFSETS) if offset > 0} == {outcome}
    assert message in " ".join(results.ledger["message"])
    summary = write_report(tmp_path).set_index("attack")
    assert summary.loc["bad", "undecided"] == 8 and np.isnan(summary.loc["bad", "robust_accuracy"])
    assert (summary.loc["bad", "robust_low"], summary.loc["bad", "robust_high"]) == (0.0, 0.8)
    assert summary.loc["darken", "robust_accuracy"] == 0.4
    # Broken by one is broken, whatever the failed one would have found; the other four stay open.
    assert (summary.loc["union", "broken"], summary.loc["union", "undecided"]) == (4, 4)
    assert "An attack failed" in (tmp_path / "report.md").read_text()


def test_an_attack_that_raised_is_tried_again_and_an_invalid_one_is_not(tmp_path):
    calls = []

    def recovers(model, images, labels, threat, seed):
        calls.append(len(images))
        if len(calls) == 1:
            raise RuntimeError("out of luck")
        return images

    spec = replace(SPEC, chunk=10)
    assert set(outcomes(run(tmp_path, [column("flaky", recovers)], spec=spec), "flaky").values()) == {
        Outcome.MISCLASSIFIED,
        Outcome.ERROR,
    }
    assert set(outcomes(run(tmp_path, [column("flaky", recovers)], spec=spec), "flaky").values()) == {
        Outcome.MISCLASSIFIED,
        Outcome.ROBUST,
    }
    run(tmp_path, [column("flaky", recovers)], spec=spec)
    assert len(calls) == 2


def recorder():
    """An attack that does nothing but note the seed of each call."""
    calls = []

    def record(model, images, labels, threat, seed):
        calls.append(seed)
        return images

    return calls, record


def test_finished_chunks_are_not_computed_again_and_more_samples_reuse_them(tmp_path):
    calls, record = recorder()
    run(tmp_path, [column("record", record)], offsets=OFFSETS[:6])
    assert len(calls) == 2  # 0-4 and the shorter 4-6
    run(tmp_path, [column("record", record)])
    assert len(calls) == 4  # 4-8 and 8-10 are new; 4-6 is another chunk than 4-8
    run(tmp_path, [column("record", record)])
    assert len(calls) == 4


def test_other_parameters_are_another_attack(tmp_path):
    calls, record = recorder()
    for params in ({"steps": 1}, {"steps": 2}, {"steps": 1}):
        run(tmp_path, [column("record", record, params)], spec=replace(SPEC, chunk=10))
    assert len(calls) == 2 and len(set(calls)) == 1


def noisy(model, images, labels, threat, seed):
    noise = torch.rand_like(images) + random.random() + np.random.rand()
    return (images - threat.eps * noise.clamp(0, 1)).clamp(0, 1)


def test_order_and_process_do_not_change_a_verdict_and_global_generators_stay(tmp_path):
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = run(tmp_path / "a", [column("noisy", noisy), column("darken", darken)])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1] and np.array_equal(np.random.get_state()[1], states[2])
    second = run(tmp_path / "b", [column("darken", darken), column("noisy", noisy)])
    rows = [results.verdicts[results.verdicts["attack"] == "noisy"].reset_index(drop=True) for results in (first, second)]
    pd.testing.assert_frame_equal(*rows)
    other = run(tmp_path / "c", [column("noisy", noisy)], spec=replace(SPEC, seed=1)).verdicts
    assert not other[other["attack"] == "noisy"]["distance"].equals(rows[0]["distance"])


def test_chunks_and_their_seeds():
    assert split(10, 4) == [Chunk(0, 4), Chunk(4, 8), Chunk(8, 10)]
    seeds = {chunk_seed(seed, family, chunk) for seed in (0, 1) for family in ("pgd", "fgsm") for chunk in split(10, 4)}
    assert len(seeds) == 12 and all(0 <= seed < 2**63 for seed in seeds)
    assert chunk_seed(0, "pgd", Chunk(0, 250)) == 2992109015086425791  # every version of robench must draw the same


def test_a_folder_of_another_run_is_refused_with_the_difference_and_untouched(tmp_path):
    run(tmp_path, [column("darken", darken)])
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RobenchError, match=r"holds another run: eps is 0.1 there and 0.2 here; seed is 0 there and 5 here"):
        RunFolder(tmp_path, replace(SPEC, eps=0.2, seed=5))
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RobenchError, match="not empty and holds no run"):
        RunFolder(tmp_path, SPEC)


def test_a_damaged_chunk_is_named(tmp_path):
    run(tmp_path, [column("darken", darken)])
    chunk = next((tmp_path / "chunks" / "clean").iterdir())
    chunk.write_bytes(chunk.read_bytes()[:50])
    with pytest.raises(RobenchError, match=r"chunks/clean/.*\.npz is damaged; delete it"):
        read_results(tmp_path)


def test_unfinished_columns_are_named_and_not_shown(tmp_path):
    results = run(tmp_path, [column("darken", darken), column("noisy", noisy)])
    folder = tmp_path / "chunks" / attack_folder(column("noisy", noisy), fake("noisy", noisy))
    next(folder.iterdir()).unlink()
    results = read_results(tmp_path)
    assert results.columns == ["darken"] and results.unfinished == ["noisy"]
    write_report(tmp_path)
    assert "Unfinished, not shown:** noisy" in (tmp_path / "report.md").read_text()


def test_a_model_that_says_nothing_of_any_clean_image_stops_the_run(tmp_path):
    class Broken(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 2), float("nan"))

    with pytest.raises(RobenchError, match=r"cannot classify images of shape .*: its logits are not finite"):
        run(tmp_path, [column("darken", darken)], model=Broken())


def test_a_stage_that_is_computed_again_renews_the_later_ones(tmp_path):
    state = {"trouble": True}

    def first(model, images, labels, threat, seed):
        if state["trouble"]:
            raise RuntimeError("out of luck")
        return darken(model, images, labels, threat, seed)

    suite = Column("both", (fake("first", first), fake("second", darken)), is_cascade=True)
    spec = replace(SPEC, chunk=10)
    assert outcomes(run(tmp_path / "a", [suite], spec=spec), "both/second")[1] == Outcome.BROKEN
    state["trouble"] = False
    resumed, undisturbed = (run(tmp_path / name, [suite], spec=spec) for name in ("a", "b"))
    pd.testing.assert_frame_equal(resumed.verdicts, undisturbed.verdicts)
    assert outcomes(resumed, "both/second")[1] == Outcome.SKIPPED


def test_a_kill_between_a_renewed_stage_and_the_next_leaves_nothing_stale(tmp_path):
    state = {"trouble": True}

    def first(model, images, labels, threat, seed):
        if state["trouble"]:
            raise RuntimeError("out of luck")
        return darken(model, images, labels, threat, seed)

    def second(model, images, labels, threat, seed):
        if state.get("kill"):
            raise KeyboardInterrupt
        return darken(model, images, labels, threat, seed)

    suite = Column("both", (fake("first", first), fake("second", second)), is_cascade=True)
    spec = replace(SPEC, chunk=10)
    run(tmp_path, [suite], spec=spec)
    state |= {"trouble": False, "kill": True}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [suite], spec=spec)
    state["kill"] = False
    assert outcomes(run(tmp_path, [suite], spec=spec), "both/second")[1] == Outcome.SKIPPED


def test_a_stage_that_was_left_out_does_not_follow_a_gate_that_is_undecided_now():
    def verdicts(outcome, mode=""):
        n = len(outcome)
        numbers, zeros = np.arange(n), np.zeros(n, np.float32)
        return ChunkVerdicts(
            index=numbers, label=numbers, clean_pred=numbers, outcome=np.array(outcome, "U13"), adv_pred=numbers, distance=zeros,
            margin=zeros, forwards=0, backwards=0, seconds=0.0, machine="", mode=mode,
        )  # fmt: skip

    behind, blind = (verdicts(["robust", "robust"], f"left out: {why}") for why in ("gate broke nothing", BLIND))
    assert follows(behind, verdicts(["robust", "robust"])) and follows(blind, verdicts(["robust", "invalid"]))
    assert not follows(behind, verdicts(["robust", "invalid"]))
    assert not follows(behind, verdicts(["robust", "broken"]))
    assert not follows(verdicts(["robust", "skipped"]), verdicts(["robust", "robust"]))


def test_a_column_is_no_attack_of_a_suite(tmp_path):
    images, labels = brightness_data([0.01, 0.2])
    with pytest.raises(RobenchError, match="is of type Column; expected a function"):
        evaluate(BrightnessClassifier(), images, labels, suite=[three_stages()])


def three_stages():
    """The first two break a part of what darkening breaks."""

    def darken_below(least):
        def some(model, images, labels, threat, seed):
            easy = images.flatten(1).mean(1) < 0.5 + least
            return torch.where(easy[:, None, None, None], darken(model, images, labels, threat, seed), images)

        return some

    stages = (fake("first", darken_below(0.03)), fake("second", darken_below(0.07)), fake("third", darken))
    return Column("three", stages, is_cascade=True)


def kept_images(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted((path / "adv").rglob("*.npz"))}


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_images_asked_for_after_a_kill_between_stages_are_those_of_an_undisturbed_run(tmp_path, left):
    column_ = three_stages()
    run(tmp_path / "killed", [column_])
    for stage in column_.stages[left:]:
        for file in (tmp_path / "killed" / "chunks" / attack_folder(column_, stage)).iterdir():
            file.unlink()
    killed, undisturbed = (run(tmp_path / name, [column_], save=True) for name in ("killed", "undisturbed"))
    pd.testing.assert_frame_equal(killed.verdicts, undisturbed.verdicts)
    assert kept_images(tmp_path / "killed") == kept_images(tmp_path / "undisturbed")


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize(("before", "after", "gate"), [(3, 0, ""), (3, 1, ""), (0, 1, "first")])
def test_a_stage_that_does_not_follow_from_the_renewed_one_before_it_is_computed_again(tmp_path, save, before, after, gate):
    """A stage is renewed for its images; on another machine its last bits may break other samples, and a kill falls before the next stage."""
    state = {"breaks": before, "kill": False}

    def first(model, images, labels, threat, seed):
        return torch.cat([darken(model, images, labels, threat, seed)[: state["breaks"]], images[state["breaks"] :]])

    def second(model, images, labels, threat, seed):
        if state["kill"]:
            raise KeyboardInterrupt
        return darken(model, images, labels, threat, seed)

    suite = Column("both", (fake("first", first), fake("second", second)), is_cascade=True, gate=gate)
    again = partial(run, tmp_path / "killed", [suite], offsets=[0.02, 0.04, 0.06])
    again()  # the second stage has nothing to do, or is left out
    state |= {"breaks": after, "kill": True}
    with pytest.raises(KeyboardInterrupt):
        again(save=True)
    state["kill"] = False
    undisturbed = run(tmp_path / "undisturbed", [suite], offsets=[0.02, 0.04, 0.06], save=True)
    pd.testing.assert_frame_equal(again(save=save).verdicts, undisturbed.verdicts)


def test_images_of_queries_alone_are_kept_when_they_are_asked_for_later(tmp_path):
    def only_queries(model, images, labels, threat, seed):
        model(darken(model, images, labels, threat, seed))
        return images + 2 * threat.eps  # out of the ball

    for name, saves in (("later", (False, True)), ("at once", (True,))):
        for save in saves:
            run(tmp_path / name, [column("queries", only_queries)], offsets=[0.02, 0.04], save=save)
    assert kept_images(tmp_path / "later") == kept_images(tmp_path / "at once") != {}


def test_a_chunk_with_nothing_to_attack_does_not_call_the_attack(tmp_path):
    suite = Column("both", (fake("first", darken), fake("second", raises)), is_cascade=True)
    offsets = [-0.1, 0.02, 0.03]  # misclassified, then broken by the first stage
    results = run(tmp_path, [suite], offsets=offsets)
    assert outcomes(results, "both") == {0: Outcome.MISCLASSIFIED, 1: Outcome.BROKEN, 2: Outcome.BROKEN}
    assert set(results.ledger["message"]) == {""}
    wrong = run(tmp_path / "wrong", [column("bad", raises)], offsets=[-0.1, -0.2])
    assert set(outcomes(wrong, "bad").values()) == {Outcome.MISCLASSIFIED}


def test_what_a_killed_process_left_behind_does_not_block_the_folder(tmp_path):
    (tmp_path / ".run.json.abc.partial").write_text("{")
    RunFolder(tmp_path, SPEC)


class Noisy(BrightnessClassifier):
    """Noise of standard deviation 0.1 on the mean brightness: an image is misread by a draw now and then."""

    def forward(self, images):
        shift = 0.1 * torch.randn(len(images), 1)
        return super().forward(images) + torch.cat([-shift, shift], 1)


def test_a_random_model_is_judged_by_the_majority_of_its_draws(tmp_path):
    # Darkened by 0.1, the mean lies 0.05 and 0.02 above one half: 31 and 42 % of the draws err, which is no majority.
    results = run(tmp_path, [column("darken", darken)], offsets=[0.05, 0.15, 0.12, -0.02], model=Noisy())
    assert list(outcomes(results, "darken").values()) == [Outcome.BROKEN, Outcome.ROBUST, Outcome.ROBUST, Outcome.MISCLASSIFIED]
    again = run(tmp_path / "again", [column("darken", darken)], offsets=[0.05, 0.15, 0.12, -0.02], model=Noisy())
    assert results.verdicts.equals(again.verdicts)


def untimed(path):
    """summary.csv without the columns that a clock filled."""
    table = pd.read_csv(path / "summary.csv", keep_default_na=False)
    return table.drop(columns=[name for name in table.columns if name.startswith("seconds")])


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
import torch
from test_engine import *
def slow(model, images, labels, threat, seed):
    time.sleep(0.3)
    print("chunk", flush=True)
    return noisy(model, images, labels, threat, seed)
from pathlib import Path
run(Path(sys.argv[1]), [column("slow", slow), column("darken", darken)], offsets=OFFSETS * 3)
write_report(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_sigkill_inside_and_between_chunks_ends_with_the_undisturbed_table(tmp_path, request):
    command = [sys.executable, "-c", KILLED]
    here = str(request.path.parent)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run([*command, str(undisturbed), here], check=True, capture_output=True)
    for kills in (1, 3):
        process = subprocess.Popen([*command, str(killed), here], stdout=subprocess.PIPE)
        for _ in range(kills):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "summary.csv").exists()
    subprocess.run([*command, str(killed), here], check=True, capture_output=True)
    first, second = (untimed(path) for path in (undisturbed, killed))
    assert first.to_csv() == second.to_csv()
    assert (undisturbed / "verdicts.csv").read_bytes() == (killed / "verdicts.csv").read_bytes()


def test_evaluate_is_five_lines_of_python_and_leaves_the_model_alone():
    images, labels = brightness_data(OFFSETS)
    model = nn.Sequential(BrightnessClassifier(), nn.Identity()).train()
    result = evaluate(model, images, labels, suite=["fgsm", "pgd7"], eps=0.1)
    assert "union" in str(result).splitlines()[-1] and "40.00 %" in str(result).splitlines()[-1]
    assert result.summary.set_index("attack")["robust_accuracy"].to_dict() == {"clean": 0.8, "fgsm": 0.4, "pgd7": 0.4, "union": 0.4}
    assert set(result.verdicts["attack"]) == {"clean", "fgsm", "pgd7"} and len(result.verdicts) == 30
    assert model.training and result.path is None


def test_evaluate_keeps_a_run_folder_when_asked(tmp_path):
    images, labels = brightness_data(OFFSETS)
    out = tmp_path / "run"
    result = evaluate(BrightnessClassifier(), images, labels, suite="fgsm", eps="0.1", out=out)
    assert result.path == out
    described = json.loads((out / "run.json").read_text())
    assert described["results"][1]["robust_accuracy"] == 0.4
    assert (out / "report.md").exists() and (out / "figures" / "robust_accuracy.png").exists()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(2, 3, 4, 4) * 255, [1, 1], "expected pixel values in .0, 1.: divide by 255"),
        (torch.rand(2, 3), [1, 1], r"images of shape \(2, 3\)"),
        (torch.rand(2, 3, 4, 4), [1], r"labels have shape \(1,\) for 2 images"),
        (torch.rand(2, 3, 4, 4), [1, 7], "labels range from 1 to 7; the model has 2 classes, 0 to 1"),
        (torch.rand(0, 3, 4, 4), [], "no images"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.bool), [1, 1], "images are bool, expected uint8"),
        (torch.rand(2, 3, 4, 4), [1.0, 1.5], "labels are float32, expected integers"),
    ],
)
def test_evaluate_refuses_what_are_not_images(images, labels, message):
    with pytest.raises(RobenchError, match=message):
        evaluate(
            BrightnessClassifier(),
            images,
            torch.tensor(labels) if labels else torch.zeros(0, dtype=torch.int64),
            suite="fgsm",
            eps=0.1,
        )


def test_evaluate_says_what_failed(monkeypatch):
    monkeypatch.setattr("robench.adapters.torchattacks.fgsm", raises)
    with pytest.warns(UserWarning, match="attack failed: fgsm, chunk 0000000-0000010: ValueError: out of ideas"):
        result = evaluate(BrightnessClassifier(), *brightness_data(OFFSETS), suite="fgsm", eps=0.1)
    assert len(result.failures) == 1 and np.isnan(result.summary.set_index("attack").loc["fgsm", "robust_accuracy"])


def test_evaluate_hands_its_options_to_the_attacks(tmp_path):
    images, labels = brightness_data(OFFSETS)
    settings = {"step_size": "1/255", "restarts": 3, "passes": "folded", "batch_size": "auto", "seed": 5}
    evaluate(BrightnessClassifier(), images, labels, suite="pgd2", eps=0.1, out=tmp_path / "run", **settings)
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    params = described["suites"][0]["members"][0]["params"]
    assert (params["steps"], params["step_size"], params["restarts"], params["passes"]) == (2, 1 / 255, 3, "folded")
    assert described["spec"]["seed"] == 5 and described["spec"]["chunk"] == DEFAULT_CHUNK
    assert described["commands"] == [
        "robench.evaluate(model, images, labels, suite='pgd2', eps=0.1, seed=5, batch_size='auto', step_size='1/255', restarts=3, "
        "passes='folded')"
    ]
    assert described["commands"][0] in (tmp_path / "run" / "report.md").read_text()
    result = evaluate(BrightnessClassifier(), images, labels, suite="pgd2", eps=0.1, precision="bf16")
    assert "pgd2(bf16)" in result.summary["attack"].tolist()


def test_evaluate_takes_a_normalisation_as_a_tensor():
    mean, std = torch.zeros(3), torch.ones(3)
    result = evaluate(BrightnessClassifier(), *brightness_data(OFFSETS), suite="fgsm", eps=0.1, mean=mean, std=std)
    assert result.summary["robust_accuracy"].tolist() == [0.8, 0.4, 0.4]


def test_evaluate_keeps_images_where_there_is_a_folder(tmp_path):
    data = brightness_data(OFFSETS)
    evaluate(BrightnessClassifier(), *data, suite="fgsm", eps=0.1, save_adv=True, out=tmp_path / "run")
    assert len(list((tmp_path / "run" / "adv").glob("*/*.npz"))) == 1
    with pytest.raises(RobenchError, match="name one with `out`"):
        evaluate(BrightnessClassifier(), *data, suite="fgsm", eps=0.1, save_adv=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restarts": "2"}, "`restarts='2'`: expected a whole number"), ({"restarts": 1.5}, "`restarts=1.5`: expected a whole number"),
        ({"restarts": 0}, "`restarts=0`: expected at least 1"), ({"budget": "1"}, "`budget='1'`: expected a number"),
        ({"budget": 5000}, "above 0 and at most 1000"), ({"batch_size": 0}, "`batch_size='0'`: expected auto"),
        ({"batch_size": 2.5}, "`batch_size='2.5'`: expected auto"), ({"seed": -1}, "`seed=-1`: expected 0 to"),
        ({"seed": 1.5}, "`seed=1.5`: expected a whole number"), ({"passes": "new"}, "`passes=new`: expected own or folded"),
    ],
)  # fmt: skip
def test_evaluate_refuses_options_that_mean_nothing(settings, message):
    with pytest.raises(RobenchError, match=re.escape(message)):
        evaluate(BrightnessClassifier(), *brightness_data(OFFSETS), suite="fast,pgd2", eps=0.1, **settings)


@pytest.mark.slow
def test_what_precision_auto_chose_first_stays(tmp_path, monkeypatch):
    images, labels = brightness_data(OFFSETS)
    for faster in ("fp32", "bf16"):
        monkeypatch.setattr("robench.run.plan.quicker_precision", lambda *_, faster=faster: faster)
        evaluate(BrightnessClassifier(), images, labels, suite="pgd2", eps=0.1, precision="auto", out=tmp_path / "run")
    suites = json.loads((tmp_path / "run" / "run.json").read_text())["suites"]
    assert [suite["name"] for suite in suites] == ["pgd2"]


@pytest.mark.parametrize(("params", "expected"), [({"images": "a digest"}, "bf16"), ({"steps": 2}, "fp32")])
def test_stored_images_are_no_choice_of_precision(tmp_path, monkeypatch, params, expected):
    (tmp_path / "run.json").write_text("{}")
    monkeypatch.setattr("robench.run.plan.read_run", lambda _: {"suites": [{"members": [{"params": params}]}]})
    monkeypatch.setattr("robench.run.plan.quicker_precision", lambda *_: "bf16")
    data = Dataset("gray", "test", *brightness_data(OFFSETS), ("dark", "bright"))
    subject = classifier_of_module(BrightnessClassifier(), 2, "cpu")
    assert settled_precision(AttackRequest(precision="auto"), subject, data, tmp_path) == expected


@pytest.mark.slow
def test_a_column_that_a_newer_library_computes_again_is_named(tmp_path, monkeypatch, capsys):
    images, labels = brightness_data(OFFSETS)
    for version in ("1", "1", "2"):
        monkeypatch.setattr("robench.adapters.torchattacks.version", lambda package, version=version: version)
        evaluate(BrightnessClassifier(), images, labels, suite="fgsm", eps=0.1, out=tmp_path / "run", show_progress=True)
        assert ("computed again, since other code" in capsys.readouterr().err) == (version == "2")


def test_evaluate_takes_the_norms_own_radius(tmp_path):
    evaluate(BrightnessClassifier(), *brightness_data(OFFSETS), suite="pgd1", norm="L2", out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["threat"]["eps"] == 0.5


def test_a_run_is_extended_but_never_cut_short(tmp_path):
    images, labels = brightness_data(OFFSETS)
    classes = ("dark", "bright")
    first = evaluate(BrightnessClassifier(), images[:6], labels[:6], suite="fgsm", eps=0.1, classes=classes, out=tmp_path / "six")
    assert first.summary["n"].tolist() == [6, 6, 6]
    with pytest.raises(RobenchError, match="holds another run: data is"):
        evaluate(BrightnessClassifier(), images, labels, suite="fgsm", eps=0.1, classes=classes, out=tmp_path / "six")


class Tuple(nn.Module):
    def forward(self, images):
        return images, images


class Fixed(nn.Module):
    def forward(self, images):
        return images.view(-1, 7)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Tuple(), "the model returned a tuple of 2"),
        (Fixed(), r"cannot classify images of shape \(3, 4, 4\): RuntimeError"),
        (len, "the model returned int for one image, expected one tensor of logits"),
    ],
)
def test_evaluate_refuses_what_is_no_classifier(model, message):
    with pytest.raises(RobenchError, match=message):
        evaluate(model, *brightness_data(OFFSETS), suite="fgsm")


def test_evaluate_takes_models_that_view_their_features():
    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(64, 2)

        def forward(self, images):
            return self.linear(self.conv(images).view(-1, 64))

    assert len(evaluate(LeNet(), *brightness_data(OFFSETS), suite="fgsm").summary) == 3


def test_plain_attributes_and_unsaved_buffers_are_part_of_a_models_identity(tmp_path):
    class Scaled(BrightnessClassifier):
        def __init__(self, shift, mean=0.0):
            super().__init__()
            self.shift = shift
            self.register_buffer("mean", torch.tensor(mean), persistent=False)

        def forward(self, images):
            return super().forward(images + self.shift - self.mean)

    digests = {Classifier(Scaled(*arguments), 2).digest() for arguments in ((0.0,), (0.1,), (0.1, 0.2), (0.1, 0.2))}
    assert len(digests) == 3
    data = brightness_data(OFFSETS)
    evaluate(Scaled(0.0), *data, suite="fgsm", eps=0.1, out=tmp_path / "run")
    with pytest.raises(RobenchError, match="holds another run: model is"):
        evaluate(Scaled(0.5), *data, suite="fgsm", eps=0.1, out=tmp_path / "run")


def test_at_radius_zero_in_l2_no_shared_step_is_missed(tmp_path):
    spec = replace(SPEC, norm="L2", eps=0.0)
    results = run(tmp_path, parse_columns("pgd7,pgd20", ThreatModel("L2", 0.0), 2), spec=spec)
    for name in ("pgd7", "pgd20"):
        assert set(outcomes(results, name).values()) == {Outcome.MISCLASSIFIED, Outcome.ROBUST}


@pytest.mark.slow
def test_a_long_run_is_forecast_from_its_first_chunk(tmp_path, capsys, monkeypatch):
    def slow(model, images, labels, threat, seed):
        time.sleep(0.05)
        return images

    monkeypatch.setattr("robench.evaluation.engine.WORTH_A_FORECAST", 0)
    images, labels = brightness_data([0.2] * 40)
    folder = RunFolder(tmp_path, replace(SPEC, chunk=2))
    evaluate_columns(Classifier(BrightnessClassifier(), 2), images, labels, [column("slow", slow)], threat=THREAT, folder=folder)
    said = [line for line in capsys.readouterr().err.splitlines() if "to go (slow" in line]
    (seconds,) = (int(re.search(r"about (\d+) s to go", line)[1]) for line in said)
    assert 1 <= seconds <= 60  # nineteen chunks of a twentieth of a second, and more where the machine is busy


def test_peak_memory_is_of_the_process(tmp_path):
    results = run(tmp_path, [column("darken", darken)])
    assert (results.ledger["peak_bytes"] > 50e6).all()  # torch alone takes more


def test_a_run_that_is_told_to_stop_keeps_what_is_finished_and_a_cascade_counts_as_far_as_it_came(tmp_path):
    both = Column("both", (fake("first", darken), fake("second", darken)), is_cascade=True)
    columns = [both, column("alone", darken)]
    stopped = run(
        tmp_path / "chunks", columns, goes_on=partial(next, iter([True, True, True, False]))
    )  # behind the first chunk's two stages
    assert not stopped.columns and stopped.unfinished == ["both", "alone"]
    assert len(list((tmp_path / "chunks" / "chunks").glob("both*/*/*.npz"))) == 2
    assert run(tmp_path / "chunks", columns).columns == ["both", "alone"]
    run(tmp_path / "one", [both], spec=replace(SPEC, chunk=len(OFFSETS)), goes_on=partial(next, iter([True, False])))
    assert not read_results(tmp_path / "one").columns
    begun = read_results(tmp_path / "one", begun=True)
    assert begun.columns == ["both"] and begun.stages == {"both": ["both/first"]}
