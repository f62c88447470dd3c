"""The two commands as a new user types them, good and bad."""

import functools
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from robench.adapters import torchattacks
from robench.checkpoint import load_checkpoint, save_checkpoint
from robench.cli import main
from robench.data import load_dataset
from robench.training import TrainSpec, train
from robench.types import Dataset


def call(*arguments, **environment):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    digits = load_dataset("digits", "train")
    spec = TrainSpec.of("single", digits, backbone="small", epochs=3, lr=5e-3)
    return train(
        spec, digits, load_dataset("digits", "test"), out=tmp_path_factory.mktemp("ckpt") / "m.safetensors", show_progress=False
    )


def test_train_then_attack_then_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("train", "--arch", "supervised", "--dataset", "digits", "--backbone", "small", "--epochs", 1, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "checkpoints/digits-supervised-0.safetensors  clean accuracy: " in result.stdout.splitlines()[-1]
    command = ["attack", "--ckpt", "checkpoints/digits-supervised-0.safetensors", "--suite", "fgsm,pgd7", "--n", 20, "--threads", 1]
    result = call(*command)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "reports/digits-supervised-0-Linf-0.2/report.md"
    folder = tmp_path / "reports" / "digits-supervised-0-Linf-0.2"
    assert set(pd.read_csv(folder / "summary.csv")["attack"]) == {"clean", "fgsm", "pgd7", "union"}
    assert "**Partial:** the first 20 of 400 test samples" in (folder / "report.md").read_text()
    described = json.loads((folder / "run.json").read_text())
    assert described["n"] == 20 and described["threat"]["eps"] == 0.2 and described["environment"]["threads"] == 1
    before = (folder / "summary.csv").read_bytes()
    assert call(*command).exit_code == 0 and (folder / "summary.csv").read_bytes() == before  # nothing is computed twice
    (folder / "summary.csv").unlink()
    result = call("report", "reports/digits-supervised-0-Linf-0.2")
    assert result.exit_code == 0 and (folder / "summary.csv").read_bytes() == before
    assert call(*command[:4], "pgd2", *command[5:]).exit_code == 0
    assert set(pd.read_csv(folder / "summary.csv")["attack"]) == {"clean", "pgd2", "fgsm", "pgd7", "union"}  # a column is added


def test_default_folder_names_what_differs_from_the_defaults(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(
        "attack",
        "--ckpt",
        checkpoint,
        "--suite",
        "pgd2",
        "--n",
        5,
        "--seed",
        1,
        "--eps",
        "8/255",
        "--step-size",
        "1/255",
        "--threads",
        1,
    )
    assert result.stdout.splitlines()[-1] == "reports/m-Linf-8of255-step1of255-seed1/report.md"
    assert "pgd2(step=1/255)" in result.output


FACTORY = """
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from neighbour import WIDTH

@dataclass
class Settings:
    width: int = WIDTH

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, Settings().width))

def wrong():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 7))

def nothing():
    return 42

def fails():
    raise ValueError("no weights here")
"""


def attack_factory(tmp_path, factory):
    (tmp_path / "mine.py").write_text(FACTORY)
    (tmp_path / "neighbour.py").write_text("WIDTH = 10")
    model = ("--model", f"{tmp_path}/mine.py:{factory}", "--dataset", "digits")
    return call("attack", *model, "--suite", "fgsm", "--n", 30, "--out", tmp_path / "run")


def test_any_module_can_be_attacked(tmp_path):
    result = attack_factory(tmp_path, "make")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]["name"] == "mine-make"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("wrong", "returned shape (30, 7) for 30 images, expected (30, 10)"),
        ("nothing", "the model is a int; expected a torch.nn.Module"),
        ("fails", "raised ValueError: no weights here"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused(tmp_path, factory, message):
    assert_one_clear_message(attack_factory(tmp_path, factory), message)
    assert not (tmp_path / "run").exists()


def assert_one_clear_message(result, message, code=1):
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    said = [line for line in result.output.splitlines() if line.startswith("robench: ") and "robench: warning: " not in line]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "pdg20"], "unknown attack 'pdg20' (did you mean 'pgd20'?)"),
        (["--eps", "8"], "did you mean 8/255?"),
        (["--eps", "eight"], "eps 'eight' is not a number of pixel units"),
        (["--eps", "-1"], "is not a number of pixel units"),
        (["--norm", "L3"], "unknown norm 'L3'; expected one of Linf, L2"),
        (["--norm", "L2", "--suite", "fgsm"], "defined for Linf only"),
        (["--n", "0"], "--n 0: expected 1 to 400"),
        (["--n", "401"], "--n 401: expected 1 to 400"),
        (["--restarts", "0"], "--restarts 0: expected at least 1"),
        (["--step-size", "x"], "--step-size 'x' is not a number"),
        (["--seed", "-1"], "--seed -1: expected 0 to"),
        (["--device", "cuda:77"], "--device cuda:77 cannot be used here: "),
        (["--device", "abacus"], "--device abacus cannot be used here: torch knows no such device; expected auto, cpu"),
        (["--dataset", "nowhere"], "unknown dataset 'nowhere'"),
        (["--batch-size", "0"], "--batch-size '0': expected auto, or a number of samples"),
        (["--batch-size", "many"], "--batch-size 'many': expected auto, or a number of samples"),
        (["--suite", "pgd2@nowhere.safetensors"], "crafts on the checkpoint 'nowhere.safetensors', which is no file"),
        (["--attack-heads", "coarse"], "the model has the heads main; name one, or joint for all"),
        (["--head", "coarse"], "has no head 'coarse' that classifies; it has main"),
        (["--adv", "nowhere.pt"], "--adv nowhere.pt: no such file; expected a .pt file of images, or RUN:ATTACK"),
        (["--ray", "127.0.0.1:1"], "--ray 127.0.0.1:1: no cluster answers"),
    ],
)
def test_a_senseless_option_gets_one_clear_message(checkpoint, tmp_path, arguments, message):
    out = tmp_path / "run"
    result = call("attack", "--ckpt", checkpoint, "--suite", "pgd2", "--out", out, *arguments)
    assert_one_clear_message(result, message)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no checkpoint at"),
        (b"", "is empty"),
        (b"hello\n", "is no checkpoint, or the beginning of one (6 bytes)"),
        (b"\x80\x02}q\x00.", "pickled file"),
        (b"PK\x03\x04zip of torch.save", "pickled file"),
        (b"<html>not found</html>", "no safetensors file"),
    ],
)
def test_a_checkpoint_that_is_none_gets_one_clear_message(tmp_path, content, message):
    path = tmp_path / "m.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert_one_clear_message(call("attack", "--ckpt", path, "--suite", "pgd2"), message)


def test_a_truncated_checkpoint_gets_one_clear_message(checkpoint, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:-10])
    assert_one_clear_message(call("attack", "--ckpt", path, "--suite", "pgd2"), "truncated")


def test_a_checkpoint_of_another_dataset_is_refused(checkpoint, tmp_path):
    from PIL import Image

    for name in ("ant", "bee"):
        (tmp_path / "bugs" / name).mkdir(parents=True)
        for place in range(5):
            Image.new("RGB", (32, 32)).save(tmp_path / "bugs" / name / f"{place}.png")
    result = call("attack", "--ckpt", checkpoint, "--dataset", tmp_path / "bugs", "--suite", "pgd2")
    assert_one_clear_message(result, "was trained on digits (10 classes: 0, 1, 2, ...), but bugs has 2 (ant, bee)")


def test_an_output_folder_that_cannot_be_made_gets_one_clear_message(checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = call("attack", "--ckpt", checkpoint, "--suite", "pgd2", "--n", 5, "--out", tmp_path / "file" / "run")
    assert_one_clear_message(result, "cannot write")
    result = call(
        "train", "--arch", "single", "--dataset", "digits", "--backbone", "small", "--out", tmp_path / "file" / "m.safetensors"
    )
    assert_one_clear_message(result, "cannot write")


def test_a_read_only_output_folder_gets_one_clear_message(checkpoint, tmp_path, monkeypatch):
    def refused(path, mode="r", *arguments, **options):
        if "w" in mode and str(path).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied")
        return open(path, mode, *arguments, **options)

    monkeypatch.setattr("robench.files.open", refused, raising=False)  # root may write anywhere
    result = call("attack", "--ckpt", checkpoint, "--suite", "pgd2", "--n", 5, "--out", tmp_path / "out" / "run")
    assert_one_clear_message(result, "Permission denied")


@pytest.mark.slow
@pytest.mark.parametrize(("part", "room"), [("chunks", 7), ("adv", 2), ("run.json", 1), ("summary.csv", 0)])
def test_a_disk_that_fills_up_in_mid_run_damages_nothing(checkpoint, tmp_path, monkeypatch, part, room):
    command = ["attack", "--ckpt", checkpoint, "--suite", "fgsm,pgd7,apgd-ce", "--n", 30, "--batch-size", 10, "--threads", 1]
    command += ["--save-adv"] if part == "adv" else []
    assert call(*command, "--out", tmp_path / "undisturbed").exit_code == 0

    def fills_up(path, mode="r", *arguments, **options):
        nonlocal room
        if "w" in mode and part in str(path.relative_to(tmp_path)):
            room -= 1
            if room < 0:
                raise OSError(28, "No space left on device")
        return open(path, mode, *arguments, **options)

    monkeypatch.setattr("robench.files.open", fills_up, raising=False)
    result = call(*command, "--out", tmp_path / "run")
    assert_one_clear_message(result, "No space left on device; what was finished before is kept: make room")
    finished = {path: path.read_bytes() for path in (tmp_path / "run" / "chunks").rglob("*.npz")}
    assert len(finished) == {"chunks": 7, "adv": 5, "run.json": 12, "summary.csv": 12}[part]
    monkeypatch.undo()
    assert call(*command, "--out", tmp_path / "run").exit_code == 0
    assert all(path.read_bytes() == content for path, content in finished.items())
    first, second = (tmp_path / name / "verdicts.csv" for name in ("undisturbed", "run"))
    assert first.read_bytes() == second.read_bytes()


def test_ctrl_c_keeps_what_is_finished_and_exits_with_130(checkpoint, tmp_path, monkeypatch):
    calls = []

    @functools.wraps(torchattacks.fgsm)
    def interrupted(model, images, labels, threat, seed):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return images

    command = ["attack", "--ckpt", checkpoint, "--suite", "fgsm", "--n", 30, "--batch-size", 10, "--out", tmp_path / "run"]
    monkeypatch.setattr("robench.adapters.torchattacks.fgsm", interrupted)
    result = call(*command)
    assert result.exit_code == 130 and "the same command goes on from there" in result.stderr
    assert call(*command).exit_code == 0 and len(calls) == 4  # the chunk that was cut off, and the last


@pytest.mark.slow
def test_verify_confirms_a_run_and_catches_other_weights(checkpoint, tmp_path):
    run = tmp_path / "run"
    command = ["attack", "--ckpt", checkpoint, "--suite", "pgd7", "--n", 30, "--threads", 1, "--out", run]
    assert call(*command).exit_code == 0
    assert_one_clear_message(call("verify", run), "has no stored adversarial images; run the same `robench attack --save-adv`")
    assert call(*command, "--save-adv").exit_code == 0
    result = call("verify", run)
    assert result.exit_code == 0 and "every broken sample is broken again" in result.stdout.splitlines()[-1]
    digits = load_dataset("digits", "train")
    other = train(
        TrainSpec.of("single", digits, backbone="small", epochs=1, lr=5e-3, seed=7), digits, load_dataset("digits", "test"),
        out=tmp_path / "other.safetensors", show_progress=False,
    )  # fmt: skip
    result = call("verify", run, "--ckpt", other)
    assert result.exit_code == 1 and "this is not the model that was attacked" in result.stderr
    assert_one_clear_message(call("verify", tmp_path), "is no run folder")
    assert call(*command[:4], "fgsm", *command[5:]).exit_code == 0  # without --save-adv
    result = call("verify", run)
    assert result.exit_code == 1 and "every broken sample" not in result.stdout
    assert_one_clear_message(result, "cannot be confirmed, since no images were kept: fgsm; the `robench attack` of the run with")


def test_fewer_samples_do_not_take_a_runs_tables_away(checkpoint, tmp_path):
    command = [
        "attack",
        "--ckpt",
        checkpoint,
        "--suite",
        "pgd2",
        "--threads",
        1,
        "--batch-size",
        10,
        "--out",
        tmp_path / "run",
        "--n",
    ]
    assert call(*command, 10).exit_code == 0
    assert_one_clear_message(call(*command, 5), "is a run on 10 samples; fewer (5) would take its tables away")
    assert call(*command, 20).exit_code == 0
    assert set(pd.read_csv(tmp_path / "run" / "summary.csv")["n"]) == {20}


def test_a_checkpoint_of_a_folder_asks_where_the_folder_is(checkpoint, tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, replace(load_checkpoint(checkpoint), dataset="bugs"))
    assert_one_clear_message(
        call("attack", "--ckpt", path, "--suite", "pgd2"), "was trained on the folder 'bugs'; say where it lies: --dataset PATH"
    )


@pytest.mark.slow
def test_report_needs_no_torch(checkpoint, tmp_path):
    assert (
        call("attack", "--ckpt", checkpoint, "--suite", "pgd2", "--n", 5, "--threads", 1, "--out", tmp_path / "run").exit_code == 0
    )
    code = f"""
import sys
from robench.cli import main
try:
    main(["report", {str(tmp_path / "run")!r}])
except SystemExit as end:
    assert not end.code
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_another_threat_model_in_the_same_folder_is_refused_and_nothing_is_lost(checkpoint, tmp_path):
    command = ["attack", "--ckpt", checkpoint, "--suite", "pgd2", "--n", 5, "--threads", 1, "--out", tmp_path / "run"]
    assert call(*command).exit_code == 0
    before = (tmp_path / "run" / "summary.csv").read_bytes()
    assert_one_clear_message(call(*command, "--eps", "0.1"), "holds another run: eps is 0.2 there and 0.1 here")
    assert (tmp_path / "run" / "summary.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "singel", "--dataset", "digits"], "unknown arch 'singel'"),
        (["--arch", "single", "--dataset", "digit"], "unknown dataset 'digit' (did you mean 'digits'?)"),
        (["--arch", "single", "--dataset", "digits", "--epochs", "0"], "epochs 0"),
    ],
)
def test_a_senseless_training_gets_one_clear_message(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_clear_message(call("train", *arguments), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["small", "resnet18"])
def test_every_backbone_can_be_attacked_in_l2(backbone, tmp_path):
    digits = load_dataset("digits", "train")
    few = Dataset("digits", "train", digits.images[:8], digits.labels[:8], digits.classes, digits.default_eps)
    spec = TrainSpec.of("single", few, backbone=backbone, epochs=1, batch_size=8)
    path = train(spec, few, few, out=tmp_path / "m.safetensors", show_progress=False)
    result = call("attack", "--ckpt", path, "--suite", "pgd2", "--norm", "L2", "--n", 20, "--threads", 1, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output


def test_an_output_of_the_wrong_kind_is_named(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_clear_message(
        call("attack", "--ckpt", checkpoint, "--suite", "pgd2", "--out", tmp_path / "file"), "is a file; it takes a folder"
    )
    result = call("train", "--arch", "single", "--dataset", "digits", "--out", tmp_path)
    assert_one_clear_message(result, "is a folder; it takes the checkpoint's file")


def test_a_model_without_gradients_is_told_so(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n\nclass Frozen(torch.nn.Linear):\n    def forward(self, images):\n        with torch.no_grad():\n"
        "            return super().forward(images.flatten(1))\n\ndef make():\n    return Frozen(3072, 10)\n"
    )
    arguments = ("--dataset", "digits", "--suite", "fgsm", "--n", 200, "--batch-size", 200, "--out", tmp_path / "run")
    assert_one_clear_message(call("attack", "--model", f"{tmp_path}/mine.py:make", *arguments), "the model passes no gradient")
    assert_one_clear_message(call("attack", "--model", f"{tmp_path}/mine.py", "--dataset", "digits"), "lacks the function to call")


def test_neither_checkpoint_nor_model_is_refused():
    assert_one_clear_message(call("attack", "--suite", "pgd2"), "either --ckpt FILE or --model")
    assert_one_clear_message(call("attack", "--model", "x.py:make"), "--model needs --dataset")


def test_report_of_what_is_no_run_gets_one_clear_message(tmp_path):
    assert_one_clear_message(call("report", tmp_path), "is no run folder")


def test_an_attack_that_fails_exits_with_1_and_keeps_the_rest(checkpoint, tmp_path, monkeypatch):
    def raises(*arguments):
        raise RuntimeError("library trouble")

    monkeypatch.setattr("robench.adapters.torchattacks.fgsm", raises)
    result = call("attack", "--ckpt", checkpoint, "--suite", "fgsm,pgd2", "--n", 5, "--threads", 1, "--out", tmp_path / "run")
    assert_one_clear_message(result, "attack failed: fgsm, chunk 0000000-0000005: RuntimeError: library trouble")
    assert pd.read_csv(tmp_path / "run" / "summary.csv").set_index("attack").loc["pgd2", "undecided"] == 0


@pytest.mark.parametrize("kind", ["attacks", "suites", "datasets", "archs"])
def test_list_shows_what_can_be_named(kind):
    result = call("list", kind)
    assert result.exit_code == 0 and len(result.output.splitlines()) >= 2


def test_list_checkpoints_shows_how_each_was_trained_and_is_stored(checkpoint, tmp_path):
    trained = load_checkpoint(checkpoint)
    save_checkpoint(tmp_path / "a.safetensors", trained)
    versions = {"device": "NVIDIA H200", "convolutions": "TF32", "stored": "float16, rounded to 8 significant bits"}
    save_checkpoint(tmp_path / "b" / "c.safetensors", replace(trained, versions=versions))
    save_checkpoint(tmp_path / "old.safetensors", replace(trained, versions={}, clean_accuracy={"main": 0.12345}))
    (tmp_path / "torn.safetensors").write_bytes(b"half")
    result = call("list", "checkpoints", tmp_path)
    header, *rows = ([cell.strip() for cell in re.split(r"  +", line)] for line in result.stdout.splitlines())
    assert header == ["checkpoint", "arch", "dataset", "epochs", "seed", "natural %", "trained on", "stored"]
    natural = f"{100 * trained.clean_accuracy['main']:.2f}"
    assert rows == [
        ["a.safetensors", "single", "digits", "3", "0", natural, "cpu, fp32", "not recorded"],
        ["b/c.safetensors", "single", "digits", "3", "0", natural, "NVIDIA H200, TF32", versions["stored"]],
        ["old.safetensors", "single", "digits", "3", "0", "12.35", "device not recorded, fp32", "not recorded"],
    ]
    assert (
        result.exit_code == 0 and "robench: not listed: " in result.stderr and "torn.safetensors is no checkpoint" in result.stderr
    )


def test_list_checkpoints_names_the_remedy_where_there_is_none(tmp_path):
    assert_one_clear_message(
        call("list", "checkpoints", tmp_path / "absent"), "name the one that checkpoints lie in: `robench list checkpoints DIR`"
    )
    assert_one_clear_message(call("list", "checkpoints", tmp_path), "no .safetensors file below")
    result = call("list", "attacks", tmp_path)
    assert result.exit_code == 2 and "list checkpoints DIR` only; leave" in result.stderr


def test_a_report_says_on_what_the_model_was_trained_and_on_what_it_is_evaluated(checkpoint, tmp_path):
    versions = {"device": "NVIDIA H200", "convolutions": "TF32", "step": "captured in one CUDA graph", "stored": "float16, rounded"}
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, replace(load_checkpoint(checkpoint), versions=versions))
    run = tmp_path / "run"
    assert (
        call("attack", "--ckpt", path, "--suite", "fgsm", "-n", 5, "--device", "cpu", "--threads", 1, "--out", run).exit_code == 0
    )
    facts = (
        "epochs 3; device NVIDIA H200; precision fp32; convolutions TF32; step captured in one CUDA graph; stored float16, rounded"
    )
    for name in ("report.md", "report.html"):
        said = (run / name).read_text()
        assert "trained on NVIDIA H200 with TF32 convolutions, evaluated on cpu in float32" in said and facts in said
    described = json.loads((run / "run.json").read_text())
    described["model"]["origin"]["versions"] = {}
    (run / "run.json").write_text(json.dumps(described))
    assert call("report", run).exit_code == 0
    said = (run / "report.md").read_text()
    assert "trained on a device not recorded, in float32, evaluated on cpu in float32" in said
    assert "epochs 3; device not recorded; precision fp32; stored not recorded" in said


def test_list_alone_shows_all(monkeypatch):
    shown = call("list").output.split("\n\n")
    assert [part.partition(":\n")[0] for part in shown] == ["attacks", "suites", "datasets", "archs", "models"]
    assert shown[0] == f"attacks:\n{call('list', 'attacks').output.rstrip()}"


def test_norms_are_read_in_any_case_and_the_audit_that_is_proposed_has_the_seed(checkpoint, tmp_path):
    result = call(
        "attack", "--ckpt", checkpoint, "--norm", "l2", "--suite", "pgd1", "-n", 5, "--seed", 3, "--out", tmp_path / "run"
    )
    assert result.exit_code == 0 and json.loads((tmp_path / "run" / "run.json").read_text())["threat"]["norm"] == "L2"
    assert "--norm L2 --seed 3" in result.stderr


def test_help_and_version_do_not_import_torch_or_pandas():
    for arguments in (
        ["--help"],
        ["train", "--help"],
        ["attack", "--help"],
        ["--version"],
        ["list", "datasets"],
        ["list", "attacks"],
    ):
        code = f"""
import sys
from robench.cli import main
try:
    main({arguments!r}, prog_name="robench")
except SystemExit:
    pass
heavy = {{"torch", "torchvision", "pandas", "numpy", "matplotlib", "torchattacks", "pyautoattack"}} & set(sys.modules)
assert not heavy, heavy
"""
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_python_m_robench_is_robench():
    result = subprocess.run([sys.executable, "-m", "robench", "--version"], check=True, capture_output=True, text=True)
    assert result.stdout.startswith("robench, version ")


def test_a_pickled_checkpoint_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "crater"),)

    path = tmp_path / "m.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    assert_one_clear_message(call("attack", "--ckpt", path), "can execute code")
    assert not (tmp_path / "crater").exists()


def test_a_model_whose_images_have_another_size_is_refused(checkpoint, monkeypatch):
    wider = Dataset(
        "digits", "test", torch.zeros(4, 3, 40, 40, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), tuple("0123456789")
    )
    monkeypatch.setattr("robench.run.inputs.load_dataset", lambda *arguments, **options: wider)
    assert_one_clear_message(call("attack", "--ckpt", checkpoint, "--suite", "pgd2"), "trained on images of shape (3, 32, 32)")


def test_the_next_step_is_about_the_same_data():
    from robench.cli.attack import _next_step
    from robench.types import ExternalData

    data = ExternalData("imagenet", subset="robustbench", resize="256", crop="224")
    asked = {"norm": "Linf", "eps": None, "head": "main", "seed": 0}
    said = _next_step(Path("a.safetensors"), None, data, data_dir=Path("sets"), **asked)
    assert said.endswith(
        "robench audit --ckpt a.safetensors --dataset imagenet --resize 256 --crop 224 --subset robustbench --data-dir sets"
    )


ATTACKED = ("--suite", "pgd2", "--n", 20, "--threads", 1)


def union_bounds(run):
    row = pd.read_csv(run / "summary.csv").set_index("attack").loc["union"]
    return row["robust_accuracy"], row["ci_high"]


@pytest.mark.slow
def test_the_gate_is_judged_by_the_upper_bound_of_the_union(checkpoint, tmp_path):
    run = tmp_path / "run"
    command = ("attack", "--ckpt", checkpoint, *ATTACKED, "--eps", "0.03", "--out", run)
    assert call(*command).exit_code == 0
    share, high = union_bounds(run)
    assert 0 < share < high < 1
    result = call(*command, "--fail-under", (share + high) / 2)  # above what was measured, but within what it may be
    assert result.exit_code == 0 and "--fail-under" not in result.stderr
    result = call(*command, "--fail-under", high + 0.001)
    assert result.exit_code == 3 and result.stdout.splitlines()[-1] == str(run / "report.md")
    assert f"robust accuracy is {100 * share:.2f} % of 20 samples (union of pgd2)" in result.stderr
    assert f"the upper 95 % bound, {100 * high:.2f} %, lies below {100 * high + 0.1:.2f} %" in result.stderr


def test_an_attack_that_failed_decides_before_the_gate(checkpoint, tmp_path, monkeypatch):
    def raises(*arguments):
        raise RuntimeError("library trouble")

    monkeypatch.setattr("robench.adapters.torchattacks.fgsm", raises)
    result = call("attack", "--ckpt", checkpoint, "--suite", "fgsm", *ATTACKED[2:], "--fail-under", 1, "--out", tmp_path / "run")
    assert result.exit_code == 1 and "--fail-under" not in result.stderr and "robench audit" not in result.stderr


def test_a_gate_in_percent_is_a_usage_error(checkpoint, tmp_path):
    result = call("attack", "--ckpt", checkpoint, *ATTACKED, "--fail-under", 45, "--out", tmp_path / "run")
    assert result.exit_code == 2 and "45.0 is not in the range 0<=x<=1" in result.stderr and not (tmp_path / "run").exists()


def test_l1_runs_autoattack_by_default_and_other_commands_refuse_it_clearly(checkpoint, tmp_path, monkeypatch):
    from robench.run.request import AttackRequest

    assert (AttackRequest(norm="L1").names, AttackRequest().names) == ("autoattack", "pgd20,autoattack")
    result = call("attack", "--ckpt", checkpoint, "--norm", "L1", *ATTACKED, "--out", tmp_path / "run")
    assert_one_clear_message(result, "attack 'pgd2' is defined for Linf, L2 only, not for L1; use autoattack")
    result = call("audit", "--ckpt", checkpoint, "--norm", "L1", "--out", tmp_path / "audit")
    assert_one_clear_message(result, "--norm L1: an audit compares attacks of many kinds")
    result = call("attack", "--ckpt", checkpoint, "--norm", "L1", "--eps", "3000", "--out", tmp_path / "run")
    assert_one_clear_message(result, "nearly as far as black from white at 32x32")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_in_l1_is_kept_reported_and_verified(checkpoint, tmp_path):
    run = tmp_path / "run"
    command = ("attack", "--ckpt", checkpoint, "--norm", "L1", "--suite", "apgd-ce", "--n", 10, "--threads", 1, "--save-adv")
    assert call(*command, "--out", run).exit_code == 0
    assert "L1, eps 20" in (run / "report.md").read_text()
    result = call("verify", run, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert int(result.stdout.splitlines()[1].split()[1]) > 0  # some were broken


def test_each_command_says_what_to_do_next_on_stderr(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("train", "--arch", "single", "--dataset", "digits", "--backbone", "small", "--epochs", 1, "--threads", 1)
    path = "checkpoints/digits-single-0.safetensors"
    assert result.stdout.startswith(f"{path}  clean accuracy") and f"robench attack --ckpt {path}\n" in result.stderr
    result = call("attack", "--ckpt", path, *ATTACKED, "--eps", "8/255", "--norm", "L2")
    assert result.stderr.splitlines()[-1] == f"robench: is the number real? robench audit --ckpt {path} --norm L2 --eps 8/255"
    assert "audit" not in result.stdout


@pytest.mark.slow
def test_an_option_from_the_environment_counts_and_is_recorded(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["robench", "attack", "--ckpt", "m"])
    run = tmp_path / "run"
    result = call(
        "attack", "--ckpt", checkpoint, *ATTACKED[2:], "--out", run, ROBENCH_ATTACK_SUITE="pgd3", ROBENCH_ATTACK_EPS="8/255"
    )
    assert result.exit_code == 0, result.output
    described = json.loads((run / "run.json").read_text())
    assert described["threat"]["eps_text"] == "8/255" and [suite["name"] for suite in described["suites"]] == ["pgd3"]
    assert described["commands"] == ["ROBENCH_ATTACK_EPS=8/255 ROBENCH_ATTACK_SUITE=pgd3 robench attack --ckpt m"]


def test_variables_of_other_use_change_nothing(tmp_path):
    result = call("list", "suites", ROBENCH_DATA=str(tmp_path), ROBENCH_VERSION="1", ROBENCH_HELP="1")
    assert result.exit_code == 0 and "autoattack-screened  AutoAttack on what" in result.stdout


def attack_command(checkpoint, run):
    """A small attack in a process of its own."""
    return [sys.executable, "-m", "robench", "attack", "--ckpt", str(checkpoint), *map(str, ATTACKED), "--out", str(run)]


@pytest.mark.slow
def test_output_into_pipes_is_plain(checkpoint, tmp_path):
    """No carriage return, no bar, no colour: stdout the table and the path, stderr lines."""
    command = attack_command(checkpoint, tmp_path / "run")
    done = subprocess.run(command, check=True, capture_output=True, env=os.environ | {"NO_COLOR": "1"})
    out, err = done.stdout.decode(), done.stderr.decode()
    assert not {"\r", "\x1b", "█", "|"} & set(out + err)
    assert [line.split()[0] for line in out.splitlines()] == [
        "clean",
        "pgd2",
        "union",
        *(f"{tmp_path}/run/report.{kind}" for kind in ("html", "md")),
    ]
    assert err.splitlines() == [f"robench: is the number real? robench audit --ckpt {checkpoint}"]


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_no_colour(checkpoint, tmp_path):
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
    command = attack_command(checkpoint, tmp_path / "run")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        shown += part
    process.communicate()
    assert process.returncode == 0 and "pgd2: 100%" in shown.decode() and b"\x1b[3" not in shown


def test_progress_into_a_file_is_a_line_a_minute_with_a_forecast(capsys, monkeypatch):
    from robench import progress

    clock = iter([0, 0, 30, 61, 100, 130])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.progress(range(5), "pgd20", True)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == "pgd20: 2 of 5 chunks, about 92 s to go\npgd20: 4 of 5 chunks, about 32 s to go\n".replace(
        "92 s", "2 min"
    )
    assert list(progress.progress(range(2), "pgd20", False)) == [0, 1] and capsys.readouterr().err == ""


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_explains_itself_and_every_option(name):
    command = main.commands[name]
    result = call(name, "--help")
    assert result.exit_code == 0 and len((command.help or "").splitlines()[0]) > 15
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert not [option.name for option in options if not option.help and not option.show_default]


def test_the_help_says_how_commands_are_completed_and_the_shells_get_a_script():
    assert "_ROBENCH_COMPLETE=bash_source robench" in call("--help").stdout
    command = [sys.executable, "-c", "from robench.cli import main; main(prog_name='robench')"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"_ROBENCH_COMPLETE": "zsh_source"})
    assert "compdef" in done.stdout
    asked = {"_ROBENCH_COMPLETE": "bash_complete", "COMP_WORDS": "robench sw", "COMP_CWORD": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | asked)
    assert done.stdout.strip() == "plain,sweep"


@pytest.mark.slow
def test_a_run_that_is_extended_says_which_columns_wait_for_their_missing_chunks(tmp_path, checkpoint):
    arguments = ["attack", "--ckpt", str(checkpoint), "--out", str(tmp_path / "run"), "--device", "cpu"]
    invoke = CliRunner().invoke
    assert invoke(main, [*arguments, "--suite", "fgsm,pgd2", "-n", "10"]).exit_code == 0
    shorter = invoke(main, [*arguments, "--suite", "fgsm", "-n", "20"])
    assert shorter.exit_code == 0
    assert "chunks of it are missing: pgd2; name it in --suite again" in shorter.stderr
    again = invoke(main, [*arguments, "--suite", "pgd2", "-n", "20"])
    assert "chunks of it are missing" not in again.stderr
