"""Curves against numbers known by hand; a sweep is ordinary runs, goes on after a kill, and grows."""

import functools
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from cases import column, darken
from click.testing import CliRunner
from test_engine import SPEC, run
from test_engine import raises as raising

from robench.cli import main
from robench.evaluation.results import read_results
from robench.report.markdown import aligned
from robench.report.sweeps import curve_table, eps_curve, write_curves
from robench.run.attack import attack
from robench.run.request import AttackRequest
from robench.run.sweep import SweepRequest, sweep
from robench.training import TrainSpec, train
from robench.types import ExternalModel, RobenchError

# Of OFFSETS, 0.02, 0.04, 0.06, 0.08, 0.15, 0.2, 0.25 and 0.3 are right without attack.


def at(tmp_path, radius, suites):
    results = run(tmp_path / f"eps-{radius}", suites, spec=replace(SPEC, eps=radius))
    results.description["threat"]["eps_text"] = str(radius)
    return results


def overshoots(model, images, labels, threat, seed):
    """Breaks only what lies in the outer half of the ball: weaker at a large radius, as attacks with a bad step size are."""
    near = (images.flatten(1).mean(1) - 0.5 < threat.eps / 2).view(-1, 1, 1, 1)
    return images.where(near, darken(model, images, labels, threat, seed))


@pytest.fixture
def curve(tmp_path):
    suites = [column("darken", darken), column("overshoots", overshoots)]
    return eps_curve({radius: at(tmp_path, radius, suites) for radius in (0.1, 0.05, 0.18)}).set_index(["attack", "value"])


def test_a_curve_begins_with_the_accuracy_without_attack_and_has_the_shares_known_by_hand(curve):
    assert list(curve.loc["darken"].index) == [0.0, 0.05, 0.1, 0.18]
    assert curve.loc["darken", "robust_accuracy"].tolist() == [0.8, 0.6, 0.4, 0.3]
    assert curve.loc["darken", "envelope_robust_accuracy"].tolist() == [0.8, 0.6, 0.4, 0.3]
    assert set(curve["n"]) == {10} and curve.loc[("darken", 0.1), "run"] == "eps-0.1" and curve.loc[("darken", 0), "run"] == ""


def test_a_sample_that_broke_in_a_smaller_ball_is_not_robust_in_a_larger_one(curve):
    measured, envelope = (curve.loc["overshoots", f"{part}robust_accuracy"].tolist() for part in ("", "envelope_"))
    assert measured == [0.8, 0.7, 0.6, 0.7]  # breaks 0.04; 0.06 and 0.08; 0.15
    assert envelope == [0.8, 0.7, 0.5, 0.4]  # and what it broke stays broken


def test_the_union_is_at_every_radius_at_most_every_attack(curve):
    union = curve.loc["union", "robust_accuracy"]
    for name in ("darken", "overshoots"):
        assert (union <= curve.loc[name, "robust_accuracy"]).all()


def test_what_an_attack_failed_on_is_bounds_in_the_curve(tmp_path):
    runs = {radius: at(tmp_path, radius, [column("darken", fn)]) for radius, fn in ((0.05, raising), (0.1, darken))}
    rows = eps_curve(runs).set_index("value")
    assert rows.loc[0.05, ["robust_low", "robust_high"]].tolist() == [0.0, 0.8] and rows.loc[0.05, "undecided"] == 8
    assert rows.loc[0.1, ["envelope_robust_low", "envelope_robust_high"]].tolist() == [
        0.0,
        0.4,
    ]  # open where only the failure speaks
    assert "0.00 to 80.00" in curve_table(eps_curve(runs), aligned)


def test_the_page_has_both_curves_and_links_to_every_run(tmp_path):
    runs = {radius: at(tmp_path, radius, [column("darken", darken)]) for radius in (0.05, 0.1)}
    path = write_curves(tmp_path, [eps_curve(runs)], runs[0.1].description, "robench sweep --ckpt m")
    text = path.read_text()
    assert "| 0.05 | 60.00 [31.27, 83.18] | 60.00 [31.27, 83.18] |" in text
    assert "[eps-0.05](eps-0.05/report.md)" in text and "robench sweep --ckpt m" in text
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert pd.read_csv(tmp_path / "curve.csv")["value"].tolist() == [0, 0.05, 0.1]


@pytest.fixture(scope="module")
def checkpoint(digits_train, digits_test, tmp_path_factory):
    spec = TrainSpec.of("single", digits_train, backbone="small", epochs=3, batch_size=64, lr=5e-3)
    return train(spec, digits_train, digits_test, out=tmp_path_factory.mktemp("ckpt") / "m.safetensors", show_progress=False)


def swept(checkpoint, out, eps=None, steps=None, **asked):
    request = SweepRequest(AttackRequest(n=20, chunk=10, **asked), eps, steps)
    return sweep(request, ckpt=checkpoint, out=out, threads=1, show_progress=False)


def chunk_files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("chunks/**/*.npz")}


@pytest.mark.slow
def test_every_radius_is_an_ordinary_run_and_a_second_call_computes_only_what_is_new(checkpoint, tmp_path):
    found = swept(checkpoint, tmp_path / "s", eps="0,8/255", suite="pgd3")
    assert found.failures == [] and found.path == tmp_path / "s" / "curve.md"
    alone = attack(AttackRequest("pgd3", eps="8/255", n=20, chunk=10), ckpt=checkpoint, out=tmp_path / "alone", threads=1)
    inside = tmp_path / "s" / "eps-8of255"
    assert (inside / "verdicts.csv").read_bytes() == (alone / "verdicts.csv").read_bytes()
    before, curve = chunk_files(tmp_path / "s"), (tmp_path / "s" / "curve.csv").read_bytes()
    swept(checkpoint, tmp_path / "s", eps="0,8/255", suite="pgd3")
    assert chunk_files(tmp_path / "s") == before and (tmp_path / "s" / "curve.csv").read_bytes() == curve
    swept(checkpoint, tmp_path / "s", eps="8/255,0.2", suite="pgd3")
    after = chunk_files(tmp_path / "s")
    assert before.items() < after.items() and {path.parents[2].name for path in after.keys() - before.keys()} == {"eps-0.2"}


@pytest.mark.slow
def test_all_numbers_of_steps_are_one_trajectory(checkpoint, tmp_path):
    swept(checkpoint, tmp_path / "s", steps="4,1,2")
    run = read_results(tmp_path / "s" / "steps")
    assert run.columns == ["pgd1", "pgd2", "pgd4"] and not (tmp_path / "s" / "eps-0.2").exists()
    paid = run.ledger.groupby("attack")[["forwards", "mode"]].agg({"forwards": "sum", "mode": "first"})
    assert paid.loc[["pgd1", "pgd2"], "mode"].tolist() == ["prefix of pgd4"] * 2 and paid.loc["pgd1", "forwards"] == 0
    curve = pd.read_csv(tmp_path / "s" / "curve.csv")
    assert curve["value"].tolist() == [1, 2, 4] and (curve["envelope_robust_accuracy"].diff().dropna() <= 0).all()


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_to_the_undisturbed_curve(checkpoint, tmp_path, monkeypatch):
    from robench.adapters import torchattacks

    command = ["sweep", "--ckpt", checkpoint, "--eps", "0.05,0.1", "--suite", "pgd2", "-n", 20, "--batch-size", 10, "--threads", 1]

    def call(out):
        return CliRunner().invoke(main, [str(part) for part in [*command, "--out", tmp_path / out]])

    assert call("undisturbed").exit_code == 0
    calls, original = [], torchattacks.pgd

    @functools.wraps(original)
    def interrupted(*given, **settings):
        calls.append(1)
        if len(calls) == 4:  # in the second chunk of the second radius
            raise KeyboardInterrupt
        return original(*given, **settings)

    monkeypatch.setattr(torchattacks, "pgd", interrupted)
    assert call("run").exit_code == 130
    assert not (tmp_path / "run" / "curve.csv").exists()
    result = call("run")
    assert result.exit_code == 0 and len(calls) == 5  # only the chunk that was cut off
    assert result.stdout.splitlines()[-1] == str(tmp_path / "run" / "curve.md") and result.stdout.startswith("eps")
    assert (tmp_path / "run" / "curve.csv").read_bytes() == (tmp_path / "undisturbed" / "curve.csv").read_bytes()


def test_the_default_radii_are_shares_of_the_data_sets_own(checkpoint):
    from robench.run import sweep as module

    radii = module._radii(SweepRequest(), {"ckpt": checkpoint})
    assert radii == [0, 0.025, 0.05, 0.1, 0.2, 0.4]
    assert module._steps(SweepRequest()) == [1, 2, 5, 10, 20, 50, 100]
    assert module._steps(SweepRequest(AttackRequest(norm="L1"))) == []  # no PGD there
    assert SweepRequest(AttackRequest(norm="L1")).suite == "apgd-ce"


def test_the_default_folder_names_the_model_and_what_differs_from_the_defaults():
    from robench.run import sweep as module

    names = [module._name({"ckpt": Path("checkpoints/a.safetensors")}), module._name({"model": ExternalModel("dir/mine.py:make")})]
    assert names == ["a", "mine-make"]
    request = SweepRequest(AttackRequest(norm="L2", seed=3, chunk=50))
    assert (SweepRequest().folder_name("a"), request.folder_name("a")) == ("sweep-a", "sweep-a-L2-seed3-chunk50")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"eps": "0"}, "`eps='0'`: expected radii above 0"),
        ({"eps": "a/b"}, "`eps='a/b'` is not a number"),
        ({"eps": "8"}, "did you mean 8/255"),
        ({"steps": "0"}, "`steps='0'`: expected numbers of steps above 0"),
        ({"steps": "1,x"}, "`steps='1,x'`: expected numbers of steps"),
        ({"steps": "2", "norm": "L1"}, "'pgd2' is defined for Linf, L2 only, not for L1"),
        ({"norm": "L7"}, "unknown norm 'L7'"),
    ],
)
def test_senseless_radii_and_steps_are_refused_before_anything_is_computed(checkpoint, tmp_path, asked, message):
    with pytest.raises(RobenchError, match=message):
        swept(checkpoint, tmp_path / "s", **asked)
    assert not (tmp_path / "s").exists()


def test_a_folder_of_other_things_is_not_written_into(checkpoint, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(RobenchError, match="holds letter.txt, which no sweep of robench writes"):
        swept(checkpoint, tmp_path, steps="1")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_sweep_that_was_killed_before_its_first_run_was_written_goes_on(checkpoint, tmp_path):
    (tmp_path / "steps").mkdir()
    assert swept(checkpoint, tmp_path, steps="1").path.exists()
