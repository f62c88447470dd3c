"""The benchmark for a GPU, tried on a CPU with tiny numbers: every row of its tables is there."""

import importlib
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from robench.types import Dataset

FOLDER = Path(__file__).parents[1] / "benchmarks"
ROWS = [
    "`fast`, first call of a fresh model", "`fast`, warm", "torchattacks PGD-50", "`pgd50`", "`pgd50`, folded",
    *(f"{name}: {needs}" for needs in ("gradient", "forward") for name in ("own, fp32", "folded, fp32", "folded, TF32", "folded, bf16")),
    "single", "contrastive", "at once: single, contrastive", "a training's state", "`pgd50`", "`fast`", "training step, contrastive",
    "`autoattack`", "pyautoattack", "`fast(compiled)`",
]  # fmt: skip


@pytest.fixture
def script(monkeypatch):
    """Modules of the benchmark by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.slow
def test_every_row_is_there_on_a_cpu(tmp_path):
    command = [sys.executable, str(FOLDER / "gpu.py"), "--device", "cpu", "--quick", "--threads", "1", "--seconds", "3000"]
    path = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, timeout=1500
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    print(ended.stdout, ended.stderr)
    rows = [line.split(" | ")[0].removeprefix("| ") for line in ended.stdout.splitlines() if line.startswith("| ")]
    places = [next((place for place, row in enumerate(rows) if row.startswith(named)), None) for named in ROWS]
    assert None not in places, [named for named, place in zip(ROWS, places, strict=True) if place is None]
    assert "time over" not in ended.stdout and "failed" not in ended.stdout and "which measure nothing" in ended.stdout
    verdicts = [line for line in ended.stdout.splitlines() if line.startswith(("| fast, graphed |", "| pgd50, eager |"))]
    assert verdicts and all(line.endswith(("| 0 |", "| not both finished |")) for line in verdicts)


def test_a_mosaic_of_images_is_read_as_it_was_written(script, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8, generator=generator)
    data = Dataset("random", "test", images, torch.arange(30) % 10, tuple("0123456789"))
    gpu = script("gpu")
    gpu.write_mosaic(tmp_path / "all.png", data, 27)  # more than a row of tiles
    again, labels = gpu.read_mosaic(tmp_path / "all.png")
    assert torch.equal(again, images[:27]) and torch.equal(labels, data.labels[:27])


def test_what_takes_too_long_is_ended_from_inside_the_model(script):
    from cases import BrightnessClassifier

    from robench.models.classifier import Classifier

    gpu, classifier = script("gpu_bench"), Classifier(BrightnessClassifier(), 2)
    bench = gpu.Bench(lambda: classifier, torch.zeros(4, 3, 2, 2), torch.zeros(4).long(), "cpu", False)

    def forever():
        while True:
            with suppress(Exception):  # as an attack that catches all
                classifier(bench.images)

    said = gpu.cell(bench, "forever", forever, most=0.05)
    assert said.startswith("cut off after 0.") and said.endswith("units/s") and "forever" not in bench.robust
    assert gpu.cell(bench, "once", lambda: classifier(bench.images).argmax(1).numpy() == 0).endswith("left")
    bench.deadline = 0.0
    assert gpu.cell(bench, "late", forever) == "time over"
