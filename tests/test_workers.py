"""Who computes a chunk never changes it: kills, ranks, Ray, and attacks that harm the model."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from cases import column, darken, described
from test_engine import OFFSETS, SPEC, THREAT, outcomes, run, untimed
from torch import nn

from robench.attacks import parse_columns
from robench.evaluation.device import device_of_rank, threads_of_rank
from robench.evaluation.engine import evaluate_columns, group_columns
from robench.evaluation.results import failures
from robench.evaluation.run_folder import RunFolder
from robench.models.classifier import Classifier
from robench.processes import Processes
from robench.report import write_report
from robench.training import TrainSpec, train
from robench.types import Outcome, RobenchError

SUITE, EPS, N, CHUNK = "fgsm,pgd7,pgd20,autoattack-screened", "0.35", 60, 6
DIGITS = ["--suite", SUITE, "--eps", EPS, "-n", str(N), "--batch-size", str(CHUNK), "--threads", "1"]


@pytest.fixture(scope="module")
def checkpoint(digits_train, digits_test, tmp_path_factory):
    """A small model, of which a few samples reach the later stages of a cascade."""
    spec = TrainSpec.of("single", digits_train, backbone="small", epochs=2, batch_size=64, lr=5e-3, adversarial="nfgsm")
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    return train(spec, digits_train, digits_test, out=path, show_progress=False)


def command(checkpoint, out, *more):
    return [sys.executable, "-m", "robench", "attack", "--ckpt", str(checkpoint), "--out", str(out), *DIGITS, *more]


@pytest.fixture(scope="module")
def undisturbed(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    subprocess.run(command(checkpoint, out), check=True, capture_output=True)
    return out


def assert_equal(first, second):
    assert untimed(first).to_csv() == untimed(second).to_csv()
    assert (first / "verdicts.csv").read_bytes() == (second / "verdicts.csv").read_bytes()


@pytest.mark.slow
def test_twenty_kills_at_random_moments_end_with_the_undisturbed_table(checkpoint, undisturbed, tmp_path):
    """One server process forks a child per attempt, so that a kill costs no import of torch."""
    server = f"""
import os, random, signal, sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
import pandas, torchattacks, pyautoattack, torchvision, scipy.stats, matplotlib.figure
from robench.run.attack import attack
from robench.run.request import AttackRequest
kills, runs, draw = 0, 1, random.Random(0)
while True:
    child = os.fork()
    if child == 0:
        attack(
            AttackRequest({SUITE!r}, eps={EPS!r}, n={N}, chunk={CHUNK}), ckpt=Path({str(checkpoint)!r}),
            out=Path({str(tmp_path)!r}) / f"killed-{{runs}}", threads=1,
        )
        os._exit(0)
    if kills < 20:
        time.sleep(draw.uniform(0.1, 0.6))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    kills += os.WIFSIGNALED(status)
    if not os.WIFSIGNALED(status):  # it came to its end
        assert status == 0
        if kills == 20:
            break
        runs += 1
print(kills, runs)
"""
    done = subprocess.run([sys.executable, "-c", server], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    kills, runs = map(int, done.stdout.split())
    assert kills == 20
    for place in range(1, runs + 1):  # on a fast machine a run may end before its twentieth kill, and another takes the rest
        assert_equal(undisturbed, tmp_path / f"killed-{place}")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_of_torchrun_end_with_the_table_of_one_process(checkpoint, undisturbed, tmp_path, processes):
    out = tmp_path / "ranks"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*launch, *command(checkpoint, out)[1:]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_equal(undisturbed, out)
    assert done.stdout.count("report.md") >= 1


@pytest.mark.slow
def test_slurm_ranks_share_a_folder_and_the_last_writes_the_table(checkpoint, undisturbed, tmp_path):
    out = tmp_path / "slurm"
    outputs = []
    for rank in (1, 0):  # one after the other: the first finds chunks missing, and says so
        slurm = {
            "SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": str(rank),
            "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        }  # fmt: skip
        outputs.append(subprocess.run(command(checkpoint, out), env=os.environ | slurm, capture_output=True, text=True, check=True))
        assert (out / "summary.csv").exists() == (rank == 0)
    assert "this process's share is finished" in outputs[0].stderr and outputs[0].stdout == ""
    assert_equal(undisturbed, out)


@pytest.mark.slow
def test_a_rerun_with_another_number_of_processes_goes_on(tmp_path):
    def share(rank, world_size, path):
        run(path, [column("darken", darken)], processes=Processes(rank, world_size))

    folder = RunFolder(tmp_path / "first", SPEC)
    suites = [column("darken", darken)]
    with pytest.raises(RobenchError, match="no finished results"):
        share(1, 3, tmp_path / "first")  # chunk 4-8 of three
    assert len(list((tmp_path / "first" / "chunks").rglob("*.npz"))) == 2
    share(0, 1, tmp_path / "first")
    run(tmp_path / "alone", suites)
    write_report(tmp_path / "first"), write_report(tmp_path / "alone")
    assert_equal(tmp_path / "first", tmp_path / "alone")
    assert folder.read("clean", plan_chunks()[0]) is not None


def plan_chunks():
    from robench.evaluation.run_folder import split

    return split(len(OFFSETS), SPEC.chunk)


@pytest.mark.slow
def test_ray_under_torchrun_is_refused(checkpoint, tmp_path):
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    done = subprocess.run(command(checkpoint, tmp_path / "run", "--ray"), env=os.environ | ranks, capture_output=True, text=True)
    assert done.returncode == 1 and "both hand out chunks; use one of them" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_three_ray_nodes_of_which_one_is_removed_and_a_worker_killed_end_with_the_same_table(digits_test, tmp_path):
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'robench[ray]'")
    from ray.cluster_utils import Cluster

    from robench.evaluation.cluster import connect, evaluate_on_ray

    torch.manual_seed(0)
    classifier = Classifier(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 10)), 10)
    images, labels = digits_test.images[:48], digits_test.labels[:48]
    labels = torch.where(torch.arange(48) % 4 > 0, classifier(images / 255).argmax(1), labels)
    suites = parse_columns("fgsm,pgd7,pgd50,apgd-ce,apgd-t", THREAT, 10)
    spec = replace(SPEC, eps=0.01)
    threat = replace(THREAT, eps=0.01)

    def begun(path):
        folder = RunFolder(path, spec)
        members = [[{"name": s.name, "folder": unit_folder} for unit_folder in group_columns([s])[0].folders] for s in suites]
        columns = [{"name": s.name, "cascade": False, "members": m} for s, m in zip(suites, members, strict=True)]
        folder.describe(described(48, columns))
        return folder

    alone = begun(tmp_path / "alone")
    evaluate_columns(classifier, images, labels, suites, threat=threat, folder=alone, show_progress=False)

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    )
    try:
        extra = [nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1") for _ in range(2)]
        far = begun(tmp_path / "far")
        with connect(nodes.address, "cpu", 1) as cluster:
            assert cluster.slots == 3
            import threading

            harmed = {}
            hurt = threading.Thread(target=harm, args=(nodes, extra[0], far.path, harmed))
            hurt.start()
            evaluate_on_ray(classifier, images, labels, suites, threat=threat, folder=far, cluster=cluster, show_progress=False)
            hurt.join()
            assert sum(node["Alive"] for node in ray.nodes()) == 2
            assert harmed["killed"] and harmed["chunks then"] < len(list((far.path / "chunks").rglob("*.npz")))
    finally:
        nodes.shutdown()
    first, second = (results_of(folder) for folder in (alone, far))
    pd.testing.assert_frame_equal(first.verdicts, second.verdicts)
    assert first.ledger["backwards"].tolist() == second.ledger["backwards"].tolist()


def results_of(folder):
    from robench.evaluation.results import read_results

    return read_results(folder.path)


def harm(nodes, node, folder, harmed):
    """SIGKILLs a worker of this cluster that has a task, then takes a node away, and notes both."""
    raylets = [str(each.all_processes["raylet"][0].process.pid) for each in nodes.list_all_nodes()]
    deadline = time.time() + 120
    while time.time() < deadline and "killed" not in harmed:
        command = ["pgrep", "-P", ",".join(raylets), "-f", "ray::_task"]
        for listed in subprocess.run(command, capture_output=True, text=True).stdout.split()[:1]:
            os.kill(int(listed), signal.SIGKILL)
            harmed["killed"] = listed
        time.sleep(0.02)
    harmed["chunks then"] = len(list((folder / "chunks").rglob("*.npz")))
    nodes.remove_node(node)


MY_MODEL = """
import torch
class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(192, 10))
    def forward(self, images):
        return self.layers(images)
def make():
    return Mine()
"""


@pytest.mark.slow
def test_a_model_of_somebodys_own_file_goes_to_rays_workers(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'robench[ray]'")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "my_model.py").write_text(MY_MODEL)
    arguments = ["--model", f"{tmp_path}/sub/my_model.py:make", "--dataset", "digits", "--suite", "pgd2,autoattack-screened"]
    arguments += ["--eps", "0.02", "-n", "20", "--batch-size", "10", "--threads", "1", "--save-adv"]
    for name, more in (("alone", []), ("ray", ["--ray"])):
        command = [sys.executable, "-m", "robench", "attack", *arguments, "--out", str(tmp_path / name), *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    assert_equal(tmp_path / "alone", tmp_path / "ray")
    kept = [sorted(path.name for path in (tmp_path / name / "adv").rglob("*.npz")) for name in ("alone", "ray")]
    assert kept[0] == kept[1] != []


@pytest.mark.slow
def test_a_killed_cluster_of_this_machine_is_not_mistaken_for_one_that_runs():
    pytest.importorskip("ray", reason="needs Ray: pip install 'robench[ray]'")
    with tempfile.TemporaryDirectory(prefix="ray") as scratch:  # a socket's path must be short
        Path(scratch, "ray").mkdir()
        Path(scratch, "ray", "ray_current_cluster").write_text("127.0.0.1:1")  # what a killed one leaves behind
        code = "from robench.evaluation.cluster import connect\nwith connect('local', 'cpu', 1) as cluster: print(cluster.slots)"
        environment = {**os.environ, "RAY_TMPDIR": scratch}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 0 and int(done.stdout.split()[-1]) >= 1, done.stderr[-1000:]


def changes_weights(model, images, labels, threat, seed):
    with torch.no_grad():
        next(model.module.parameters()).data.add_(1.0)
    return images


def trains_batch_norm(model, images, labels, threat, seed):
    model.module[1].train()
    model(images)
    return images


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (changes_weights, r"the attack changed the model's weights \(module.0.weight\); they were put back"),
        (trains_batch_norm, r"the attack changed the model's weights \(module.1.running_mean.*switched layers to train mode"),
    ],
)
def test_an_attack_that_changes_the_model_is_reported_and_the_model_mended(tmp_path, attack, message):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    results = run(tmp_path, [column("bad", attack), column("darken", darken)], model=model, spec=replace(SPEC, chunk=10))
    bad = results.verdicts[results.verdicts["attack"] == "bad"]
    attacked = bad[bad["outcome"] != Outcome.MISCLASSIFIED]
    assert len(attacked) and set(attacked["outcome"]) == {Outcome.ERROR}
    (said,) = results.ledger[results.ledger["message"] != ""]["message"]
    assert pd.Series([said]).str.contains(message).all()
    honest = run(tmp_path / "honest", [column("darken", darken)], model=model, spec=replace(SPEC, chunk=10))
    assert outcomes(results, "darken") == outcomes(honest, "darken")


class TrainsItself(nn.Module):
    """Puts its BatchNorm into train mode in every pass."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))

    def forward(self, images):
        return self.parts.train()(images)


def test_a_model_that_changes_itself_is_not_laid_at_the_attack(tmp_path):
    torch.manual_seed(0)
    results = run(tmp_path, [column("darken", darken)], model=TrainsItself(), spec=replace(SPEC, chunk=10))
    said = set(results.ledger["message"]) - {""}
    expected = (
        r"the model's own forward pass changed the model's weights \(module.parts.1.running_mean.* switched layers to train mode"
    )
    assert said and all(re.match(expected, each) for each in said)


class Greedy(nn.Module):
    """Takes memory for every image, and there is room for three."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 2)
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return self.linear(images.flatten(1))


def test_where_memory_runs_out_the_chunk_goes_through_the_model_in_parts(tmp_path, capsys):
    torch.manual_seed(0)
    small = Greedy()
    roomy = nn.Sequential(nn.Flatten(), small.linear)
    suites = parse_columns("pgd7,apgd-ce", THREAT, 2)
    spec = replace(SPEC, chunk=10)
    results = run(tmp_path / "small", suites, model=small, spec=spec)
    assert "out of memory; going on with at most 3 images a pass" in capsys.readouterr().err
    assert "at most 3 images a pass" in results.ledger["machine"].iloc[-1]
    expected = run(tmp_path / "roomy", suites, model=roomy, spec=spec)
    columns = ["attack", "index", "outcome", "adv_pred", "best"]
    assert results.verdicts[columns].equals(expected.verdicts[columns])
    assert results.ledger["backwards"].tolist() == expected.ledger["backwards"].tolist()


def test_a_model_that_cannot_take_one_image_is_an_error(tmp_path):
    class Hopeless(Greedy):
        def forward(self, images):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RobenchError, match="cannot classify images of shape .*out of memory"):
        run(tmp_path, [column("darken", darken)], model=Hopeless())


class Crowded(Greedy):
    """Classifies where others leave it memory."""

    room = False

    def forward(self, images):
        if not self.room and bool((images.mean((1, 2, 3)) > self.most).any()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return self.linear(images.flatten(1))


@pytest.mark.parametrize("most", [0.0, 0.5], ids=["every image", "some images"])
def test_what_memory_did_not_suffice_for_is_tried_again_by_the_same_command(most, tmp_path):
    torch.manual_seed(0)
    model, columns = Crowded(), [column("darken", darken)]
    model.most = most
    try:
        assert "error" in set(run(tmp_path / "run", columns, model=model).verdicts["outcome"])
    except RobenchError as error:
        assert "out of memory" in str(error)
    model.room = True
    again = run(tmp_path / "run", columns, model=model)
    fresh = run(tmp_path / "fresh", columns, model=model)
    told = ["attack", "index", "clean_pred", "outcome", "adv_pred", "best"]
    assert again.verdicts[told].equals(fresh.verdicts[told]) and failures(again) == []


@pytest.mark.parametrize(("visible", "expected"), [(4, "cuda:3"), (1, "cuda:0")])
def test_a_process_takes_the_gpu_of_its_rank_among_those_that_it_sees(monkeypatch, visible, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert device_of_rank("auto", Processes(3, 4, 3, 4)) == expected
    assert device_of_rank("cpu", Processes(3, 4, 3, 4)) == "cpu" and device_of_rank("auto", Processes()) == "auto"


def test_a_process_takes_its_share_of_the_cores_or_what_slurm_gives_it(monkeypatch):
    monkeypatch.setattr("robench.evaluation.device.usable_cores", lambda: 8)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert threads_of_rank(Processes(0, 4, 0, 4)) == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")  # srun has bound it to its own eight already
    assert threads_of_rank(Processes(0, 4, 0, 4)) == 8


def test_a_folder_that_another_process_begins_meanwhile_is_the_same_run(tmp_path, monkeypatch):
    from pathlib import Path

    listing = Path.iterdir

    def listed_late(path):
        monkeypatch.setattr(Path, "iterdir", listing)
        RunFolder(path, SPEC).describe(described(10, []))
        return listing(path)

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Path, "iterdir", listed_late)
    RunFolder(tmp_path / "run", SPEC)
