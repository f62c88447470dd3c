"""When an unfinished training is written, what ends it early, and that nothing finished is lost."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from click.testing import CliRunner
from test_training import quick, trained, wait_until

from robench.checkpoint import load_checkpoint
from robench.cli import main
from robench.training import train
from robench.training.loop import Loop
from robench.training.state import DUE, StateFile
from robench.types import RobenchError

pytestmark = pytest.mark.slow  # a minute together; `make test-all` and CI run them

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def epochs_on_disk(path):
    return len(torch.load(path, weights_only=True)["history"])


class Clock:
    """Seconds, as a test says."""

    now = 1000.0

    def __call__(self):
        return self.now


def one_layer():
    model = torch.nn.Linear(2, 2)
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def steps(model, optimizer):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def test_the_first_epoch_is_written_and_then_one_every_half_minute(tmp_path):
    (model, optimizer), clock, path = one_layer(), Clock(), tmp_path / "state"
    states, history, seen = StateFile(path, {}, clock=clock), [], []
    states.begin(model, optimizer, history)
    for seconds in (500.0, 2.0, DUE - 2.1, 0.1, 2.0, 100.0, 2.0):
        clock.now += seconds
        history.append({})
        states.finished(model, optimizer, history)
        seen.append(epochs_on_disk(path))
    assert seen == [1, 1, 1, 4, 4, 6, 6]
    states.flush()
    assert epochs_on_disk(path) == 7
    path.unlink()
    states.flush()
    assert not path.exists()  # it is written once


def test_what_an_interrupted_epoch_leaves_is_the_one_before_it_bit_for_bit(tmp_path):
    (model, optimizer), path = one_layer(), tmp_path / "state"
    states, history = StateFile(path, {}, clock=Clock()), []
    with pytest.raises(KeyboardInterrupt), states.kept():
        for _ in range(3):
            steps(model, optimizer)
            history.append({})
            states.finished(model, optimizer, history)
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        moments = optimizer.state_dict()["state"][0]["exp_avg"].clone()
        steps(model, optimizer)
        raise KeyboardInterrupt
    state = torch.load(path, weights_only=True)
    assert len(state["history"]) == 3 and not torch.equal(model.weight, weights["weight"])
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in weights.items())
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], moments)


def test_an_interrupt_while_an_epoch_is_written_loses_nothing(tmp_path, monkeypatch):
    (model, optimizer), path = one_layer(), tmp_path / "state"
    states, write = StateFile(path, {}, clock=Clock()), StateFile._write

    def interrupted(*_):
        monkeypatch.setattr(StateFile, "_write", write)
        raise KeyboardInterrupt

    monkeypatch.setattr(StateFile, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt), states.kept():
        states.finished(model, optimizer, [{}])
    assert epochs_on_disk(path) == 1


def in_the_third_epoch(monkeypatch, do):
    """The training does something between two steps of its third epoch."""
    step, taken = Loop.step, []

    def stepped(loop, *arguments):
        taken.append(1)
        if len(taken) == 2 * loop.steps + 2:
            do()
        return step(loop, *arguments)

    monkeypatch.setattr(Loop, "step", stepped)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_inside_an_epoch_keeps_those_before_and_the_same_call_ends_with_the_same_weights(
    number, few, tmp_path, monkeypatch
):
    spec, path = quick("contrastive", few, epochs=4), tmp_path / "model.safetensors"
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patched:
        in_the_third_epoch(patched, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            trained(spec, few, path)
    assert epochs_on_disk(tmp_path / "model.safetensors.training") == 2
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    epochs = []
    monkeypatch.setattr(
        Loop, "run_epoch", lambda loop, epoch, shown, run=Loop.run_epoch: epochs.append(epoch) or run(loop, epoch, shown)
    )
    resumed = trained(spec, few, path)
    assert epochs == [2, 3] and [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert resumed.digest == trained(spec, few, tmp_path / "undisturbed.safetensors").digest


def test_an_error_inside_an_epoch_keeps_those_before(few, tmp_path, monkeypatch):
    def raises():
        raise RobenchError("the loss of epoch 3 is not finite")

    in_the_third_epoch(monkeypatch, raises)
    with pytest.raises(RobenchError, match="epoch 3"):
        trained(quick("single", few, epochs=4), few, tmp_path / "model.safetensors")
    assert epochs_on_disk(tmp_path / "model.safetensors.training") == 2


def test_a_handler_of_the_callers_own_stays(few, tmp_path, monkeypatch):
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("asked to end"))
    try:
        in_the_third_epoch(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        trained(quick("single", few, epochs=3), few, tmp_path / "model.safetensors")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == ["asked to end"]


def test_a_thread_trains_without_setting_handlers(few, tmp_path):
    made = []
    thread = threading.Thread(
        target=lambda: made.append(trained(quick("single", few, epochs=1), few, tmp_path / "model.safetensors"))
    )
    thread.start()
    thread.join()
    assert made[0].epochs == 1


def test_a_full_disk_is_told_after_the_first_epoch(few, tmp_path, monkeypatch):
    write = StateFile._write

    def full(states, content):
        if content["history"]:
            raise RobenchError("cannot write: no space left")
        write(states, content)

    monkeypatch.setattr(StateFile, "_write", full)
    with pytest.raises(RobenchError, match="no space left"):
        train(quick("single", few), few, few, out=tmp_path / "model.safetensors", show_progress=False)


def test_ctrl_c_ends_the_command_with_its_message_and_the_same_command_goes_on(tmp_path, monkeypatch):
    command = ["train", "--arch", "single", "--dataset", "digits", "--backbone", "small", "--epochs", "4", "--threads", "1"]

    def call(name):
        return CliRunner().invoke(main, [*command, "--out", str(tmp_path / name)])

    with monkeypatch.context() as patched:
        in_the_third_epoch(patched, lambda: os.kill(os.getpid(), signal.SIGINT))
        interrupted = call("m.safetensors")
    assert interrupted.exit_code == 130 and "everything finished is kept, the same command goes on" in interrupted.stderr
    assert epochs_on_disk(tmp_path / "m.safetensors.training") == 2
    assert call("m.safetensors").exit_code == call("undisturbed.safetensors").exit_code == 0
    assert len({load_checkpoint(path).digest for path in tmp_path.glob("*.safetensors")}) == 1


@pytest.mark.slow
def test_sigterm_ends_the_command_as_ctrl_c_does(tmp_path):
    path, state = tmp_path / "m.safetensors", tmp_path / "m.safetensors.training"
    process = subprocess.Popen(
        [sys.executable, "-m", "robench", "train", "--arch", "contrastive", "--dataset", "digits", "--backbone", "small",
         "--epochs", "500", "--threads", "1", "--out", str(path)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: state.exists() and epochs_on_disk(state) >= 1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in said and "Traceback" not in said
    assert 0 <= said.count("of 500: loss") - epochs_on_disk(state) <= 1  # it may end between an epoch's line and its end
