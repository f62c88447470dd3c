"""What is committed about the paper: page, summary and the tables of the text follow from the verdicts, and the weights are those judged."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from robench.checkpoint import load_checkpoint, read_description
from robench.report.trained import trained_short
from robench.reproduce import Settings
from robench.reproduce.measured import load_measured
from robench.reproduce.page import write_page
from robench.reproduce.plan import TABLES

ROOT = Path(__file__).parent.parent
PAPER, WEIGHTS = ROOT / "reports/paper", ROOT / "checkpoints/paper"
COMMITTED = Settings(epochs=100, adversarial_epochs=12)
STORED = sorted(path.name.split(".")[0] for path in WEIGHTS.glob("*.safetensors*"))
FIRST = 250  # samples of the first chunk, which stands by itself


def models():
    return {model.name: model for model in COMMITTED.whole_plan()}


def test_the_committed_page_follows_from_the_committed_verdicts(tmp_path):
    shutil.copytree(PAPER / "verdicts", tmp_path / "verdicts")
    commands = {name: COMMITTED.command(name) for name in TABLES["all"]}
    page = write_page(tmp_path, COMMITTED.whole_plan(), commands)
    assert page.read_text() == (PAPER / "report.md").read_text()
    assert (tmp_path / "summary.csv").read_text() == (PAPER / "summary.csv").read_text()


@pytest.mark.parametrize("name", STORED)
def test_committed_weights_are_those_that_were_judged_and_say_how_they_were_trained(name):
    about = load_measured(PAPER, models()[name])
    described = read_description(WEIGHTS / f"{name}.safetensors")
    assert about is not None and described["digest"] == about.origin["weights"]
    assert trained_short(described) == trained_short(about.origin)
    assert described["clean_accuracy"]["main"] == pytest.approx(about.accuracy("clean"), abs=0.005 if about.n > 1000 else 0.03)


@pytest.mark.parametrize(
    ("page", "header"), [("README.md", "| CIFAR-10, percent right |"), ("docs/paper.md", "| contrastive multitask model |")]
)
def test_every_number_of_the_tables_in_the_text_stands_in_the_summary(page, header):
    summary = pd.read_csv(PAPER / "summary.csv")
    known = {f"{100 * value:.2f}" for value in summary["accuracy"]}
    table = (ROOT / page).read_text().split(header)[1].split("\n\n")[0]
    ours = [line for line in table.splitlines() if line.startswith("|") and "published" not in line and "---" not in line]
    numbers = [number for line in ours for number in re.findall(r"\b\d+\.\d\d\b", line)]
    assert len(numbers) > 20 and set(numbers) <= known


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10-single-0", "cifar10-contrastive-0", "cifar100-contrastive-0"])
def test_committed_weights_give_the_tables_first_rows_again(name, cifar_folder, tmp_path):
    from robench.evaluation.results import read_results
    from robench.run.attack import attack
    from robench.run.request import AttackRequest

    run = attack(AttackRequest("pgd7", n=FIRST), ckpt=WEIGHTS / f"{name}.safetensors", data_dir=Path(cifar_folder), out=tmp_path / "run",
                 threads=1, show_progress=False)  # fmt: skip
    found, kept = read_results(run).verdicts, load_measured(PAPER, models()[name]).verdicts[:FIRST]
    clean = found[found["attack"] == "clean"].sort_values("index")["clean_pred"].to_numpy()
    pgd7 = found[found["attack"] == "pgd7"].sort_values("index")["outcome"].str[0].to_numpy()
    letters = kept["pgd7"].map({"c": "m", "b": "b", "r": "r", "q": "r"}).to_numpy()
    assert (clean != kept["clean"].to_numpy()).sum() <= 1  # the last bits of another processor
    assert (pgd7 != letters).sum() <= 2


def test_the_papers_models_load_where_their_plain_name_is_given():
    assert load_checkpoint(WEIGHTS / "cifar10-contrastive-0.safetensors").epochs == 100
