"""robench doctor: says what is broken and how to repair it, and exits with 1 only then."""

import json

import pytest
from click.testing import CliRunner

from robench import doctor
from robench.cli import main
from robench.doctor import diagnose, images_per_second

ROOM = 100 * 2**30


@pytest.fixture(autouse=True)
def healthy(monkeypatch, tmp_path):
    """No robustbench, room on the disk, data in a folder of its own: what this machine is like must not matter."""
    monkeypatch.setattr(doctor, "clash_warning", lambda: None)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": ROOM}))
    monkeypatch.setenv("ROBENCH_DATA", str(tmp_path / "data"))


def call(*arguments):
    return CliRunner().invoke(main, ["doctor", "--no-measure", *map(str, arguments)])


def found(name, topic=None):
    return next(each for each in diagnose(measure=False) if each.name == name and topic in (None, each.topic))


def test_a_healthy_installation_has_nothing_to_repair():
    result = call()
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "nothing to repair"
    for word in ("packages", "clashes", "device", "files", "torchattacks", "cores usable", "data folder", "free disk"):
        assert word in result.stdout


def test_overwritten_robustbench_files_are_a_repair_and_exit_1(monkeypatch):
    monkeypatch.setattr(doctor, "clash_warning", lambda: "2 files of robustbench were overwritten; repair: pip install this")
    result = call()
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "1 to repair"
    assert "! robustbench" in result.stdout and "repair: pip install this" in result.stdout


def test_json_holds_the_same(monkeypatch):
    monkeypatch.setattr(doctor, "clash_warning", lambda: "overwritten; repair: pip install this")
    result = call("--json")
    assert result.exit_code == 1
    assert {"topic": "clashes", "name": "robustbench", "says": "overwritten", "repair": "pip install this"} in json.loads(
        result.stdout
    )


def test_an_old_or_absent_library_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(doctor, "_required", lambda: {"click": ">=999", "surely-not-installed": ">=2", "numpy": ""})
    old, absent, fine = (found(name, "packages") for name in ("click", "surely-not-installed", "numpy"))
    assert "expected >=999" in old.says and old.repair == "pip install 'click>=999'"
    assert absent.says == "not installed" and absent.repair == "pip install 'surely-not-installed>=2'"
    assert not fine.repair


def test_a_library_that_fails_on_import_is_a_clash(monkeypatch):
    import importlib

    def fails(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", fails)
    assert "RuntimeError: operator torchvision::nms" in found("torchvision", "clashes").says
    assert found("torchvision", "clashes").repair and not found("torch", "clashes").repair


def test_a_full_disk_must_be_repaired(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    assert found("free disk, here").repair.startswith("make room")


def test_data_sets_are_complete_absent_or_damaged(tmp_path):
    from torchvision.datasets import CIFAR10

    assert found("digits").says == "complete"
    assert found("cifar10").says == "not there; downloaded when it is needed"
    folder = tmp_path / "data" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"cut off")
    assert "damaged: data_batch_1" in found("cifar10").says and str(folder) in found("cifar10").repair
    assert not found("cifar100").repair


@pytest.mark.slow
def test_real_cifar_is_complete(cifar_folder, monkeypatch):
    monkeypatch.setenv("ROBENCH_DATA", cifar_folder)
    assert found("cifar10").says.startswith("complete") and found("cifar100").says.startswith("complete")


def test_speed_counts_images_over_seconds(monkeypatch):
    clock = iter([0, 0.1, 0.1, 0.5, 1.0, 1.0])  # a first call of 0.1 s that does not count, then two of 0.45 s
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(clock))
    calls = []
    assert images_per_second(lambda: calls.append(1)) == pytest.approx(2 * doctor.BATCH / 0.9)
    assert len(calls) == 3


def test_a_first_call_that_takes_long_is_the_measurement(monkeypatch):
    clock = iter([0, 10])
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(clock))
    assert images_per_second(lambda: None) == doctor.BATCH / 10


def test_measured_speed_is_shown_for_both_precisions(monkeypatch):
    monkeypatch.setattr(doctor, "images_per_second", lambda step: step() or 12345)
    monkeypatch.setattr(doctor, "BATCH", 2)
    says = {each.name: each.says for each in diagnose() if each.topic == "device"}
    assert says["fp32"].startswith("12,345 images/s on ") and says["bf16"].startswith("12,345 images/s on ")


def test_a_copy_of_imagenet_is_found(tmp_path):
    from robench.doctor import _data_set

    assert "only your own copy can be read" in _data_set("imagenet", tmp_path).says
    (tmp_path / "imagenet" / "val" / "n01440764").mkdir(parents=True)
    assert _data_set("imagenet", tmp_path).says == f"there, in {tmp_path / 'imagenet' / 'val'}"
