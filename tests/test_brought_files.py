"""The same kinds of models from the command: FILE.py:NAME, one message or the right number, never a traceback."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from robench.cli import main

CODE = """
import sys
import torch
from torch import nn

torch.manual_seed(0)


class Linear(nn.Module):
    def __init__(self, outputs=5):
        super().__init__()
        self.fc = nn.Linear(48, outputs)

    def forward(self, images):
        return self.fc(images.flatten(1))


class InPlace(Linear):
    def forward(self, images):
        return super().forward(images.sub_(0.5).div_(0.5))


class Eight(Linear):
    def forward(self, images):
        if len(images) != 8:
            raise ValueError("this engine was built for batches of 8")
        return super().forward(images)


class Four(Linear):
    def forward(self, images):
        assert images.shape[0] <= 4
        return super().forward(images)


class Flaky(Linear):
    calls = 0

    def forward(self, images):
        Flaky.calls += 1
        if Flaky.calls % 3 == 0:
            raise ConnectionError("server gone")
        return super().forward(images)


def seeded(kind, *arguments):
    torch.manual_seed(0)
    return kind(*arguments)


plain = lambda: seeded(Linear)
in_place = lambda: seeded(InPlace)
eight = lambda: seeded(Eight)
four = lambda: seeded(Four)
exported = lambda: torch.export.export(seeded(Linear), (torch.rand(1, 3, 4, 4),))
meta = lambda: seeded(Linear).to("meta")
numbers = lambda: (lambda model: lambda images: model(images).argmax(1))(seeded(Linear))
half = lambda: seeded(Linear).half()
lazy = lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
ready = seeded(Linear)
function = lambda: seeded(Linear).forward
leaves = lambda: sys.exit(3)


class BadConstructor(Linear):
    def __init__(self):
        raise KeyError("config")


class BadForward(Linear):
    def forward(self, images):
        return self.missing(images)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), dtype=np.uint8)
    torch.manual_seed(0)
    fc = torch.nn.Linear(48, 5)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    labels = fc(pixels.flatten(1)).argmax(1).numpy()
    labels[0] = 4
    np.savez("data.npz", images=images, labels=labels)
    return tmp_path


def attack(model, *more):
    arguments = [
        "attack",
        "--model",
        f"mine.py:{model}",
        "--dataset",
        "data.npz",
        "--suite",
        "fgsm,pgd7",
        "--eps",
        "4/255",
        "--device",
        "cpu",
    ]
    return CliRunner().invoke(main, [*arguments, "--out", f"run-{model}", *more])


def verdicts(model):
    return pd.read_csv(f"run-{model}/verdicts.csv")[["attack", "index", "outcome", "adv_pred"]]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["eight", "four", "ready", "function", "exported"])
def test_a_model_in_another_shape_has_the_verdicts_of_the_plain_one(model, here):
    assert attack("plain").exit_code == 0
    result = attack(model)
    assert result.exit_code == 0, result.output
    assert verdicts(model).equals(verdicts("plain"))


@pytest.mark.slow
def test_a_model_that_normalises_in_place_has_the_verdicts_of_one_normalised_by_options(here):
    assert attack("plain", "--mean", "0.5", "--std", "0.5").exit_code == 0
    assert attack("in_place").exit_code == 0
    assert verdicts("in_place").equals(verdicts("plain"))


def test_kept_images_of_a_model_that_writes_into_its_input_are_verified(here):
    assert attack("in_place", "--save-adv").exit_code == 0
    kept = {path: path.read_bytes() for path in here.rglob("run-in_place/**/*.npz")}
    result = CliRunner().invoke(main, ["verify", "run-in_place", "--trust", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert kept and all(path.read_bytes() == content for path, content in kept.items())


@pytest.mark.slow
def test_half_weights_are_computed_in_float32_or_as_they_are(here):
    result = attack("half")
    assert result.exit_code == 0 and "weights are float16; the model is computed in float32" in result.stderr
    as_is = attack("half", "--weights-dtype", "as-is", "--out", "run-as-is")
    assert as_is.exit_code in (0, 1) and "the model computes in them" in as_is.stderr


def test_a_lazy_module_is_initialised_and_said_to_be_random(here):
    result = attack("lazy")
    assert result.exit_code == 0 and "they hold random numbers" in result.stderr


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("leaves", "raised SystemExit: 3"),
        ("BadConstructor", "raised KeyError: 'config'"),
        ("BadForward", "cannot classify images of shape .*AttributeError: .*missing"),
        ("Flaky", "ConnectionError: server gone.*it fails at random"),
        ("meta", "tensors are on the device meta"),
        ("numbers", "whole numbers .*numbers of classes"),
        ("nothing", "has no function 'nothing'"),
    ],
)
def test_whatever_a_models_code_raises_is_one_message(model, message, here):
    import re

    result = attack(model)
    assert result.exit_code == 1
    assert "Traceback" not in result.output and re.search(message, result.stderr)
    assert not (here / f"run-{model}").exists()
