"""What others read of a run: golden texts, and images that come back as they went."""

import json
import os

import pytest
import torch
from cases import column, darken
from click.testing import CliRunner
from test_engine import SPEC, raises, run
from test_report import darken_half

from robench import __version__
from robench.cli import main
from robench.evaluation.results import read_results
from robench.interchange.adv import adv_images_of
from robench.interchange.export import export_run
from robench.interchange.model_card import model_card
from robench.interchange.robustbench import model_info
from robench.run.attack import attack
from robench.run.request import AttackRequest
from robench.training import TrainSpec, train
from robench.types import Column, RobenchError

NOON = 1_767_268_800  # 2026-01-01 12:00 UTC


@pytest.fixture
def gray(tmp_path):
    """Ten gray images: 80 % right, 40 % left by darkening, 60 % by half of it."""
    cascade = Column("autoattack", (column("half", darken_half).stages[0], column("darken", darken).stages[0]), is_cascade=True)
    run(tmp_path / "run", [column("half", darken_half), cascade])
    for path in (tmp_path / "run" / "chunks").rglob("*.npz"):
        os.utime(path, (NOON, NOON))
    return tmp_path / "run"


def test_the_robustbench_entry_has_their_fields_in_their_order_and_null_for_what_is_not_known(gray):
    assert list(model_info(gray).items()) == [
        ("link", None),
        ("name", "brightness"),
        ("authors", None),
        ("additional_data", None),
        ("number_forward_passes", 1),
        ("dataset", "gray"),
        ("venue", None),
        ("architecture", None),
        ("eps", "0.1"),
        ("clean_acc", "80.00"),
        ("reported", None),
        ("autoattack_acc", "40.00"),
        ("footnote", "Fields that are null are not known to robench."),
        (
            "robench",
            {
                "version": __version__,
                "eval_date": "2026-01-01",
                "threat_model": "Linf",
                "n": 10,
                "n_test": 10,
                "union_acc": "40.00",
                "union_of": ["half", "autoattack"],
                "weights_and_code": SPEC.model,
            },
        ),
    ]


def test_the_robustbench_entry_claims_no_autoattack_that_was_not_run_or_that_failed(tmp_path):
    run(tmp_path / "other", [column("half", darken_half)])
    entry = model_info(tmp_path / "other")
    assert entry["autoattack_acc"] is None and "Standard AutoAttack was not run." in entry["footnote"]
    run(tmp_path / "failed", [column("autoattack", raises)])
    entry = model_info(tmp_path / "failed")
    assert entry["autoattack_acc"] is None and entry["robench"]["union_acc"] is None and "failed on samples" in entry["footnote"]


def test_a_part_of_the_split_is_said_to_be_one(gray):
    described = json.loads((gray / "run.json").read_text())
    described["data"]["n"] = 10_000
    (gray / "run.json").write_text(json.dumps(described))
    assert "Measured on the first 10 of 10000 test samples only." in model_info(gray)["footnote"]
    assert "on the first 10 of 10,000 test samples of gray" in model_card(gray)


def test_the_entry_lies_where_their_repository_has_it(gray):
    path = export_run(gray, "robustbench")
    assert path.relative_to(gray).parts == ("export", "model_info", "gray", "Linf", "brightness.json")
    assert json.loads(path.read_text()) == model_info(gray)


CARD = """---
model-index:
- name: "brightness"
  results:
  - task:
      type: "image-classification"
      name: "Image classification under attack"
    dataset:
      type: "gray"
      name: "gray"
      split: "test"
    metrics:
    - type: "accuracy"
      name: "accuracy without attack"
      value: 0.8
      args:
        samples: 10
        ci95_low: 0.490162
        ci95_high: 0.943318
    - type: "accuracy"
      name: "robust accuracy, Linf 0.1, half"
      value: 0.6
"""


def test_the_model_card_is_the_golden_one(gray):
    card = model_card(gray)
    assert card.startswith(CARD)
    assert (
        "| natural | 80.00 | 49.02 to 94.33 |\n| half | 60.00 | 31.27 to 83.18 |\n| AutoAttack | 40.00 | 16.82 to 68.73 |" in card
    )


def test_the_model_card_header_is_yaml_that_says_what_was_measured(gray):
    yaml = pytest.importorskip("yaml")
    _, header, _ = model_card(gray).split("---\n", 2)
    (model,) = yaml.safe_load(header)["model-index"]
    (result,) = model["results"]
    assert model["name"] == "brightness" and result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"type": "gray", "name": "gray", "split": "test"}
    values = {metric["name"].rpartition(", ")[2]: metric["value"] for metric in result["metrics"]}
    assert values == {"accuracy without attack": 0.8, "half": 0.6, "AutoAttack": 0.4, "union": 0.4}  # no stage of a cascade
    union = result["metrics"][-1]["args"]
    assert union["attacks"] == ["half", "autoattack"] and union["eps"] == "0.1" and union["samples"] == 10


def test_the_model_card_leaves_out_an_attack_that_failed(tmp_path):
    run(tmp_path / "run", [column("half", darken_half), column("bad", raises)])
    named = [line for line in model_card(tmp_path / "run").splitlines() if "name: " in line]
    assert any(", half" in line for line in named) and not any(", bad" in line or ", union" in line for line in named)


@pytest.fixture(scope="module")
def checkpoint(digits_train, digits_test, tmp_path_factory):
    spec = TrainSpec.of("single", digits_train, backbone="small", epochs=3, batch_size=64, lr=5e-3)
    return train(spec, digits_train, digits_test, out=tmp_path_factory.mktemp("ckpt") / "m.safetensors", show_progress=False)


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory):
    request = AttackRequest("pgd1,pgd5", eps="0.06", n=40, chunk=20, save_adv=True)
    return attack(request, ckpt=checkpoint, out=tmp_path_factory.mktemp("runs") / "run", threads=1, show_progress=False)


def robust(run_folder, column):
    rows = read_results(run_folder).verdicts
    return set(rows[(rows["attack"] == column) & (rows["outcome"] == "robust")]["index"])


@pytest.mark.parametrize("name", ["pgd5", "union"])
def test_images_come_back_with_the_verdicts_that_they_went_with(saved, checkpoint, digits_test, tmp_path, name):
    path = tmp_path / "images.pt"
    result = CliRunner().invoke(main, ["export", str(saved), "--format", "adv", "--attack", name, "--out", str(path)])
    assert result.exit_code == 0 and result.stdout == f"{path}\n"
    content = torch.load(path, weights_only=True)
    assert list(content) == ["adv_complete", "labels"] and torch.equal(content["labels"], digits_test.labels[:40])
    assert content["adv_complete"].shape == (40, 3, 32, 32) and content["adv_complete"].dtype == torch.float32
    request = AttackRequest(None, eps="0.06", n=40, chunk=20, adv=(str(path),))
    again = attack(request, ckpt=checkpoint, out=tmp_path / "again", threads=1, show_progress=False)
    if name == "pgd5":
        assert robust(again, "adv@images") == robust(saved, "pgd5")
    else:
        expected = robust(saved, "pgd1") & robust(saved, "pgd5")
        assert robust(again, "adv@images") == expected and len(expected) < len(robust(saved, "pgd1"))


def test_images_that_were_not_kept_cannot_be_exported(gray, saved, digits_test):
    with pytest.raises(RobenchError, match="that run is about gray with other images"):
        adv_images_of(gray, "half", digits_test)
    with pytest.raises(RobenchError, match=r"has no attack 'pgd7'; with images: pgd1, pgd5"):
        adv_images_of(saved, "pgd7", digits_test)
