"""torchattacks' wheel overwrites robustbench's files: a user must hear of it."""

from importlib.metadata import Distribution

import pytest

from robench.adapters import robustbench
from robench.cli import main


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A robustbench installed in a folder of its own, with two files and their hashes."""
    import base64
    import hashlib

    def record(content):
        return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()

    files = {"robustbench/__init__.py": b"new", "robustbench/data.py": b"data"}
    (tmp_path / "robustbench").mkdir()
    metadata = tmp_path / "robustbench-1.1.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: robustbench\nVersion: 1.1.1\n")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (metadata / "RECORD").write_text("\n".join(f"{name},sha256={record(content)},3" for name, content in files.items()))
    monkeypatch.setattr(robustbench, "distribution", lambda name: Distribution.at(metadata))
    return tmp_path


def test_intact_files_are_no_clash(installed):
    assert robustbench.damaged_files() == [] and robustbench.clash_warning() is None


def test_overwritten_and_deleted_files_are_named_with_the_repair(installed):
    (installed / "robustbench" / "__init__.py").write_text("old")
    (installed / "robustbench" / "data.py").unlink()
    assert sorted(robustbench.damaged_files()) == ["robustbench/__init__.py", "robustbench/data.py"]
    assert "pip install --force-reinstall --no-deps robustbench==1.1.1" in robustbench.clash_warning()


def test_the_attack_command_warns(installed):
    from click.testing import CliRunner

    (installed / "robustbench" / "__init__.py").write_text("old")
    assert "robench: warning: 1 files of robustbench were overwritten" in CliRunner().invoke(main, ["attack"]).output


def test_absent_robustbench_is_no_clash_although_torchattacks_brings_a_copy():
    assert robustbench.clash_warning() is None
