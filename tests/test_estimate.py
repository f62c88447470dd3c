"""How long a reproduction says that it will take: arithmetic by hand, and nothing that it changes."""

from dataclasses import replace

import pytest
import torch

from robench.checkpoint import load_checkpoint
from robench.reproduce import QUICK, _Bench, estimate, reproduce
from robench.reproduce.estimate import DEFENDED, PLAIN, PassSeconds, Remaining, Work, epochs_done, forecast
from robench.training import TrainSpec
from robench.training.precision import Quicker, step_times

SMALL = replace(QUICK, epochs=2, variants=("single",), ranks=1, n=10)
WHERE = {"data_dir": None, "device": "cpu", "threads": 1}


@pytest.fixture
def known(monkeypatch):
    """Steps of half a second, forward passes of 1 ms and backward passes of 2 ms a sample."""
    timed = []
    monkeypatch.setattr(estimate, "step_times", lambda spec, *_, **__: timed.append(spec) or [0.4, 0.6])
    monkeypatch.setattr(estimate, "_pass_seconds", lambda *_: PassSeconds(0.001, 0.002))
    return timed


def test_a_training_costs_its_steps_times_views_times_passes(few, known):
    single, contrastive = (TrainSpec.of(arch, few, backbone="small", batch_size=32) for arch in ("single", "contrastive"))
    adversarial = TrainSpec.of("contrastive", few, adversarial="nfgsm", backbone="small", batch_size=32)
    work = Work((Remaining(single, 1000), Remaining(contrastive, 1000), Remaining(adversarial, 1000)), 2, 1000, 100)
    said = forecast(work, few, few, single, "cpu")
    training = 0.5 * 1000 * (1 + 2 + 4) / 60
    attacking = (1000 * (PLAIN[0] + 2 * PLAIN[1]) + 100 * (DEFENDED[0] + 2 * DEFENDED[1])) / 1000 / 60
    assert said == (
        f"about {training + attacking:.0f} min to go on this machine, as fast as it is now: 3 trainings about {training:.0f} min, "
        f"attacks on 2 models about {attacking:.0f} min"
    )
    assert known == [single]
    said = forecast(
        replace(work, trainings=(Remaining(contrastive, 1000), Remaining(single, 1000)), models=1), few, few, single, "cpu"
    )
    assert f"2 trainings about {0.5 * 1000 * 1.5 / 60:.0f} min, attacks on 1 model about" in said


def test_auto_is_timed_in_the_precision_that_it_will_be(few, known, monkeypatch):
    monkeypatch.setattr(estimate, "quicker", lambda *_: Quicker("bf16", 2.0))
    spec = TrainSpec.of("single", few, backbone="small", batch_size=32, precision="auto")
    forecast(Work((Remaining(spec, 10),), 1, 10, 0), few, few, spec, "cpu")
    assert [each.precision for each in known] == ["bf16"]


def test_only_what_is_missing_is_counted(tmp_path):
    bench = _Bench(replace(QUICK, n=60), tmp_path, tmp_path / "w", WHERE)
    plan = bench.settings.plan()
    steps = len(bench.data("digits", "train")) // 64
    work = bench.work(plan)
    assert [left for _, left in work.trainings] == [8 * steps] * 5 + [12 * steps] * 2
    assert (work.models, work.plain, work.defended) == (7, 5 * 60, 2 * 16)
    last = bench.work([plan[2]])  # its source is trained and attacked before it
    assert [spec.arch for spec, _ in last.trainings] == ["contrastive", "single"] and (last.models, last.plain) == (2, 120)
    weights, trained = bench.paths(plan[0])
    weights.parent.mkdir()
    weights.write_bytes(b"")
    trained.parent.mkdir()
    torch.save({"history": [{}] * 3}, bench.paths(plan[2])[1].with_name("digits-contrastive-0.safetensors.training"))
    (tmp_path / "runs" / plan[0].name).mkdir(parents=True)
    (tmp_path / "runs" / plan[0].name / "run.json").write_text("{}")
    last = bench.work([plan[2]])
    assert [(spec.arch, left) for spec, left in last.trainings] == [("contrastive", 5 * steps)] and (last.models, last.plain) == (
        1,
        60,
    )


def test_a_damaged_state_counts_as_no_epoch(tmp_path):
    (tmp_path / "state").write_bytes(b"torn")
    assert epochs_done(tmp_path / "state") == epochs_done(tmp_path / "absent") == 0


def test_timing_ends_early(few):
    spec = TrainSpec.of("single", few, backbone="small", batch_size=32)
    assert len(step_times(spec, few, "cpu", images=32, steps=5)) == 5
    assert len(step_times(spec, few, "cpu", images=32, steps=5, seconds=1e-9)) == 1


@pytest.mark.slow
def test_weights_and_verdicts_are_the_same_with_it_and_without(tmp_path, monkeypatch, capsys):
    def run(name):
        torch.manual_seed(7)
        reproduce(SMALL, out=tmp_path / name, weights=tmp_path / name / "w", device="cpu", threads=1)
        said, drawn = capsys.readouterr().err, torch.rand(3)
        weights = load_checkpoint(tmp_path / name / "w" / "digits-single-0.safetensors").digest
        return said, weights, (tmp_path / name / "verdicts" / "digits-single-0.csv").read_bytes(), drawn.tolist()

    said, *told = run("told")
    assert said.splitlines()[0].startswith("robench: about ") and "1 training about" in said and "attacks on 1 model about" in said
    again, *_ = run("told")
    assert "about" not in again  # nothing is missing
    monkeypatch.setattr(_Bench, "say_how_long", lambda *_: None)
    without, *untold = run("untold")
    assert "to go on this machine" not in without and told == untold


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_the_forecast_leaves_random_states_and_settings_alone(few, precision):
    spec = TrainSpec.of("contrastive", few, backbone="small", batch_size=32, precision=precision)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    said = forecast(Work((Remaining(spec, 10),), 1, 10, 0), few, few, spec, "cpu")
    assert said.startswith("about ") and torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
