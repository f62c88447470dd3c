"""Training in several processes: the global batch's gradient, whoever computes its parts."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from test_training import quick, wait_until

from robench.checkpoint import load_checkpoint, read_description
from robench.models.multihead import MultiHead
from robench.processes import Processes
from robench.training import Ranks, joined, train
from robench.training.loop import Loop
from robench.training.objectives import OBJECTIVES
from robench.training.recipes import RECIPES
from robench.types import RobenchError

VARIANTS = [("single", "none"), ("supervised", "none"), ("contrastive", "none"), ("single", "nfgsm"), ("contrastive", "pgd")]
BATCH = 30  # divides over two and three processes


def launch(processes, *command):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *command]


def one_step(few, arch, adversarial, ranks):
    """Loss terms and gradients of one step of a global batch, with BatchNorm frozen."""
    spec = quick(arch, few, adversarial=adversarial, batch_size=BATCH)
    torch.manual_seed(0)
    model = MultiHead("small", OBJECTIVES[arch].heads(few, RECIPES["paper"])).eval()
    loop = Loop(spec, model, torch.optim.SGD(model.parameters(), lr=0.1), few, "cpu", ranks)
    losses = loop.step(torch.arange(BATCH), torch.Generator().manual_seed(1))
    return {name: loss.item() for name, loss in losses.items()}, {
        name: parameter.grad.clone() for name, parameter in model.named_parameters()
    }


STEPS = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from conftest import first_digits
from test_ranks import VARIANTS, one_step
from robench.data import load_dataset
from robench.processes import Processes
from robench.training import joined
few = first_digits(load_dataset("digits", "train"))
with joined(Processes.here(), "cpu") as ranks:
    made = [one_step(few, *variant, ranks) for variant in VARIANTS]
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean.fill_(ranks.rank)
    ranks.average_statistics(norm)
    made.append(norm.running_mean)
    torch.save(made, f"{out}/{{ranks.rank}}.pt")
threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
assert "pt_gloo_runloop" not in threads, threads  # one that outlives the group may abort the process at its end
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_gradients_of_several_processes_are_those_of_one(few, processes, tmp_path):
    script = tmp_path / "steps.py"
    script.write_text(STEPS.format(tests=os.path.dirname(__file__), out=tmp_path))
    done = subprocess.run(launch(processes, str(script)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    of_ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    assert all(made[-1].tolist() == [(processes - 1) / 2] * 2 for made in of_ranks)  # the mean over the ranks
    for place, variant in enumerate(VARIANTS):
        losses, gradients = one_step(few, *variant, Ranks())
        for made in of_ranks:
            assert made[place][0] == pytest.approx(losses, abs=1e-5), variant
            for name, gradient in gradients.items():
                assert (made[place][1][name] - gradient).abs().max() <= 1e-5, (variant, name)
        assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-2  # 1e-5 is small beside them


def test_parts_of_all_ranks_make_up_the_batch_view_by_view():
    batch = torch.arange(12)  # two views of six samples
    parts = [Ranks(rank, 3).part(batch, 2).tolist() for rank in range(3)]
    assert parts == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


@pytest.mark.slow
def test_a_killed_training_in_two_processes_continues_to_the_same_weights(tmp_path):
    arguments = ["--arch", "contrastive", "--dataset", "digits", "--backbone", "small", "--epochs", "3", "--threads", "1"]

    def command(path):
        return launch(2, "-m", "robench", "train", *arguments, "--out", str(path))

    killed, undisturbed = tmp_path / "killed.safetensors", tmp_path / "undisturbed.safetensors"
    process = subprocess.Popen(command(killed), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    state = tmp_path / "killed.safetensors.training"
    wait_until(lambda: state.exists() and len(torch.load(state, weights_only=True)["history"]) >= 1)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()
    assert not killed.exists()
    before = torch.load(state, weights_only=True)["history"]
    for path in (killed, undisturbed):
        done = subprocess.run(command(path), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("clean accuracy") == 1  # rank 0 alone speaks
        assert "training in 2 processes; BatchNorm normalises by each process's part" in done.stderr
    assert load_checkpoint(killed).digest == load_checkpoint(undisturbed).digest
    history = load_checkpoint(killed).history
    assert history[: len(before)] == tuple(before) and history[0]["processes"] == 2  # to the second: they were not done again
    alone = tmp_path / "alone.safetensors"
    subprocess.run([sys.executable, "-m", "robench", "train", *arguments, "--out", str(alone)], check=True, capture_output=True)
    first, second = (read_description(path)["history"][0] for path in (alone, undisturbed))
    assert second["main"] == pytest.approx(first["main"], rel=0.02)  # BatchNorm by halves is what is left between them


def test_a_batch_that_does_not_divide_is_refused(few, tmp_path):
    with pytest.raises(RobenchError, match="batch size 32 does not divide over 3 processes; give `batch_size` a multiple"):
        train(quick("single", few), few, few, out=tmp_path / "model.safetensors", ranks=Ranks(0, 3))


def test_processes_that_have_nowhere_to_meet_are_told_to_use_torchrun(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(RobenchError, match="needs a place where they meet: start them with `torchrun"),
        joined(Processes(0, 2), "cpu"),
    ):
        pass
