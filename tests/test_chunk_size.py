"""How many samples a chunk has where nobody says: by a device whose memory is written down here."""

import json
from types import SimpleNamespace

import pytest
import torch
from cases import BrightnessClassifier, brightness_data
from torch import nn

from robench import evaluate
from robench.evaluation import chunk_size
from robench.evaluation.chunk_size import Need, ask_device, largest_chunk
from robench.models.classifier import Classifier
from robench.run import plan as planning
from robench.run.plan import settled_chunk
from robench.run.request import AttackRequest
from robench.types import Dataset, ThreatModel

MiB = 2**20
AUTO = AttackRequest("pgd2", auto_chunk=True)


@pytest.mark.parametrize(
    ("n", "free", "expected"),
    [
        (10_000, 3 * (100 + 4000), 4000), (10_000, 3 * (100 + 4000) - 1, 2000), (10_000, 3 * (100 + 500), 500), (10_000, 0, 250),
        (300, 10**9, 500), (250, 10**9, 250), (20, 10**9, 250), (2001, 10**9, 4000), (2000, 10**9, 2000),
    ],
)  # fmt: skip
def test_a_chunk_is_the_largest_whose_step_fits_in_a_third_and_no_larger_than_the_samples_need(n, free, expected):
    assert largest_chunk(n, Need(free, fixed=100, per_image=1)) == expected


def test_where_nothing_is_known_it_is_250():
    assert largest_chunk(10_000, None) == 250


def on_gpu(n=1000):
    data = Dataset("gray", "test", torch.zeros(n, 3, 4, 4), torch.zeros(n).long(), ("dark", "bright"))
    device = SimpleNamespace(type="cuda")
    return SimpleNamespace(classifier=SimpleNamespace(device=device)), data


class Here:
    """Images that are where they are to go."""

    def __init__(self, images):
        self.images = images

    def to(self, device):
        return self.images


@pytest.fixture
def asked(monkeypatch):
    """Of the probe, in place of a GPU, and of moving images there."""
    seen = []

    def probe(classifier, images):
        seen.append(len(images))
        return Need(3 * 700 * MiB, 0.0, MiB)

    monkeypatch.setattr(planning, "ask_device", probe)
    monkeypatch.setattr(Dataset, "pixels", lambda self, part: Here(self.images[part]))
    return seen


def test_a_gpu_is_asked_once_and_the_answer_is_said(asked, tmp_path, capsys):
    assert settled_chunk(AUTO, *on_gpu(), tmp_path / "run") == 500 and asked == [128]
    assert "chunks of 500: a gradient step takes 1.00 MiB an image, 2.1 GiB are free" in capsys.readouterr().err


def test_a_size_that_was_named_a_cpu_and_several_processes_ask_nobody(asked, tmp_path):
    subject, data = on_gpu()
    on_cpu = SimpleNamespace(classifier=SimpleNamespace(device=torch.device("cpu")))
    assert settled_chunk(AttackRequest("pgd2", chunk=300), subject, data, tmp_path) == 300
    assert settled_chunk(AUTO, on_cpu, data, tmp_path) == settled_chunk(AUTO, subject, data, tmp_path, alone=False) == 250
    assert asked == []


@pytest.mark.slow
def test_a_run_goes_on_with_the_size_that_it_has(asked, tmp_path):
    images, labels = brightness_data([0.2, 0.3, 0.05] * 4)
    chunks = lambda: json.loads((tmp_path / "run" / "run.json").read_text())["spec"]["chunk"]
    for size, suite in ((5, "pgd2"), ("auto", "pgd3"), ("auto", "pgd2")):
        evaluate(BrightnessClassifier(), images, labels, suite=suite, eps=0.1, batch_size=size, out=tmp_path / "run", device="cpu")
        assert chunks() == 5
    assert (
        settled_chunk(AUTO, *on_gpu(), tmp_path / "run") == 5 and settled_chunk(AttackRequest("pgd2"), *on_gpu(), tmp_path) == 250
    )
    assert asked == []


def test_a_folders_name_is_that_of_the_default():
    data, threat = on_gpu()[1], ThreatModel("Linf", 0.1)
    assert AUTO.folder_name("m", threat, data, None) == AttackRequest("pgd2").folder_name("m", threat, data, None)
    assert "chunk300" in AttackRequest("pgd2", chunk=300).folder_name("m", threat, data, None)


class Card:
    """A device that has ``free`` bytes, and on which an image of a pass takes 1000 and any pass 500; counts the steps."""

    free, kept, asked = 10**6, 10**4, ()

    def __init__(self, monkeypatch, raises=None):
        self.sizes = []
        for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated", "memory_reserved", "mem_get_info"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        card = self

        class Model(nn.Module):
            def forward(self, images):
                card.sizes.append(len(images))
                if raises:
                    raise raises
                return images.flatten(1)[:, :2]

        self.classifier = Classifier(Model(), 2)

    def reset_peak_memory_stats(self, device): ...

    def memory_allocated(self, device):
        return 2000

    def max_memory_allocated(self, device):
        return 2000 + 500 + 1000 * self.sizes[-1]

    def memory_reserved(self, device):
        return 2000 + self.kept

    def mem_get_info(self, device):
        return self.free, 2 * self.free


def test_the_probe_draws_a_line_through_two_steps_and_counts_what_torch_keeps_as_free(monkeypatch):
    card = Card(monkeypatch)
    images, state = torch.rand(5, 3, 2, 2), torch.get_rng_state()
    assert ask_device(card.classifier, images) == Need(10**6 + 10**4, 500, 1000)
    assert card.sizes[-2:] == list(chunk_size.PROBED) and card.classifier._passes.forwards == 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("error", [ValueError("no"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_model_that_fails_there_gets_the_default(monkeypatch, error):
    assert ask_device(Card(monkeypatch, error).classifier, torch.rand(5, 3, 2, 2)) is None


def test_a_lost_device_ends_it(monkeypatch):
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ask_device(
            Card(monkeypatch, RuntimeError("CUDA error: an illegal memory access was encountered")).classifier,
            torch.rand(5, 3, 2, 2),
        )
