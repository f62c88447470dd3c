"""A checkpoint and a run folder that version 0.1 wrote (commit bfa2c02) are read, verified and continued as they are.

robench train --arch supervised --adversarial nfgsm --train-eps 0.1 --dataset digits --backbone small --batch-size 64 --lr 5e-3
    --epochs 25 --threads 1 --out model.safetensors
robench attack --ckpt model.safetensors --suite fgsm,pgd7,pgd20,pgd20-margin,noise,square200,fast,autoattack --eps 0.1 -n 20
    --batch-size 10 --save-adv --threads 1 --out run
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from robench.cli import main

OLD = Path(__file__).parent / "version-0.1"
SUITE = "fgsm,pgd7,pgd20,pgd20-margin,noise,square200,fast,autoattack"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the folder as the working folder."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def call(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output + result.stderr
    return result


def same_table(name):
    was, now = pd.read_csv(OLD / "run" / name), pd.read_csv(Path("run") / name)
    pd.testing.assert_frame_equal(now[was.columns], was)


def computed(folder):
    return {
        path.relative_to(folder): path.stat().st_mtime_ns for kind in ("chunks", "adv") for path in (folder / kind).rglob("*.npz")
    }


@pytest.mark.parametrize("command", [("verify",), ("report",), ("compare",), ("bundle",), ("export", "--format", "robustbench")])
@pytest.mark.parametrize(
    ("damage", "lacks"),
    [
        (lambda run: run.pop("model"), "model"),
        (lambda run: run["model"].pop("origin"), "model.origin"),
        (lambda run: run.update(threat="Linf"), "threat"),
        (lambda run: run.update(n=None), "n"),
        (lambda run: run["suites"][0].pop("members"), "a column's name or members"),
    ],
)
def test_a_description_that_lacks_something_is_called_damaged(old, command, damage, lacks):
    described = json.loads((old / "run/run.json").read_text())
    damage(described)
    (old / "run/run.json").write_text(json.dumps(described))
    result = CliRunner().invoke(main, [*command, "run", *(["run"] if command == ("compare",) else [])])
    assert (
        result.exit_code == 1
        and f"run.json is damaged (it lacks {lacks}); delete it and run the same attack again" in result.stderr
    )


@pytest.mark.slow
def test_its_tables_are_written_again(old):
    for name in ("summary.csv", "verdicts.csv", "report.md"):
        (old / "run" / name).unlink()
    call("report", "run")
    same_table("summary.csv")
    same_table("verdicts.csv")
    assert "80.00" in (old / "run/report.md").read_text()


def test_its_images_still_hold_against_the_same_digest(old):
    said = call("verify", "run")
    assert "digest" not in said.output + said.stderr
    for name in ("fgsm", "pgd7", "pgd20"):
        assert name in said.output


@pytest.mark.slow
def test_the_same_command_computes_nothing(old):
    before = computed(old / "run")
    said = call("attack", "--ckpt", "model.safetensors", "--suite", SUITE, "--eps", "0.1", "-n", 20, "--batch-size", 10, "--save-adv",
                "--threads", 1, "--out", "run")  # fmt: skip
    assert computed(old / "run") == before and len(before) > 40
    assert "computed again" not in said.stderr
    same_table("summary.csv")
    same_table("verdicts.csv")


@pytest.mark.slow
def test_another_column_is_added_to_it(old):
    before = computed(old / "run")
    call(
        "attack",
        "--ckpt",
        "model.safetensors",
        "--suite",
        "pgd3",
        "--eps",
        "0.1",
        "-n",
        20,
        "--batch-size",
        10,
        "--threads",
        1,
        "--out",
        "run",
    )
    after = computed(old / "run")
    assert {path: after[path] for path in before} == before and any("pgd3" in str(path) for path in after)
    assert "pgd20-margin" in set(pd.read_csv("run/summary.csv")["attack"])
