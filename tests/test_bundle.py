"""A bundle holds a claim, is the same for the same run, and no byte of it can be changed unnoticed."""

import hashlib
import io
import json
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
from cases import column, darken
from click.testing import CliRunner
from test_engine import raises as raising
from test_engine import run as run_on_gray

from robench.cli import main
from robench.evaluation.packed_images import PackedImages, read_packed
from robench.evaluation.run_folder import read_run
from robench.interchange.bundle import opened, unpack, write_bundle
from robench.run.attack import attack
from robench.run.request import AttackRequest
from robench.run.verify import verify
from robench.training import TrainSpec, train
from robench.types import ExternalModel, RobenchError


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def checkpoint(digits_train, digits_test, tmp_path_factory):
    spec = TrainSpec.of("single", digits_train, backbone="small", epochs=3, batch_size=64, lr=5e-3)
    return train(spec, digits_train, digits_test, out=tmp_path_factory.mktemp("ckpt") / "m.safetensors", show_progress=False)


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    request = AttackRequest("fgsm,pgd3", n=20, chunk=10, save_adv=True)
    return attack(request, ckpt=checkpoint, out=tmp_path_factory.mktemp("runs") / "run", threads=1, show_progress=False)


@pytest.fixture(scope="module")
def bundle(run):
    return write_bundle(run)[0]


@pytest.mark.slow
def test_a_stage_that_was_needed_on_no_chunk_is_not_replayed(checkpoint, tmp_path):
    where = {"ckpt": checkpoint, "threads": 1}
    attack(AttackRequest("fast", n=20, chunk=10, save_adv=True), out=tmp_path / "run", show_progress=False, **where)
    assert [each.attack for each in verify(tmp_path / "run", **where)[0]] == ["fast/nearest", "fast/suspect"]


def parts_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path, parts):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def with_own_manifest(parts):
    """The digests made to fit again, as a forger would."""
    manifest = json.loads(parts["bundle.json"])
    for name in manifest["files"]:
        manifest["files"][name] = {"sha256": hashlib.sha256(parts[name]).hexdigest(), "bytes": len(parts[name])}
    return parts | {"bundle.json": json.dumps(manifest).encode()}


def test_the_same_run_makes_the_same_bytes_and_says_how_it_is_verified(run, bundle, tmp_path):
    again, digest = write_bundle(run, tmp_path / "of another name.zip")
    assert again.read_bytes() == bundle.read_bytes()
    assert digest == hashlib.sha256(bundle.read_bytes()).hexdigest()
    parts = parts_of(bundle)
    assert json.loads(parts["bundle.json"])["verify"] == "robench verify run.zip --ckpt m.safetensors"
    assert b"    robench verify run.zip --ckpt m.safetensors\n" in parts["VERIFY.txt"]
    assert {"run.json", "summary.csv", "verdicts.csv", "report.md"} < parts.keys()
    assert sum(name.startswith("adv/") for name in parts) == 4 and sum(name.startswith("chunks/") for name in parts) == 6


def test_a_file_that_is_no_bundle_is_not_overwritten(run, bundle, tmp_path):
    thesis = zipped(tmp_path / "thesis.zip", {"thesis.tex": b"mine"})
    before = thesis.read_bytes()
    with pytest.raises(RobenchError, match="thesis.zip is there already and is no bundle of robench; choose another `out`"):
        write_bundle(run, thesis)
    assert thesis.read_bytes() == before
    older = zipped(tmp_path / "older.zip", parts_of(bundle) | {"report.md": b"old"})
    write_bundle(run, older)
    assert older.read_bytes() == bundle.read_bytes()


def test_a_bundle_is_verified_as_the_run_is(run, bundle, checkpoint):
    assert verify(bundle, ckpt=checkpoint, threads=1) == verify(run, ckpt=checkpoint, threads=1)
    result = call("verify", bundle, "--ckpt", checkpoint, "--threads", 1)
    assert result.exit_code == 0 and "every broken sample is broken again" in result.stdout.splitlines()[-1]


def test_the_command_in_a_bundle_of_somebodys_model_verifies_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import torch\ndef make():\n    torch.manual_seed(0)\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))\n"
    )
    own = ExternalModel("mine.py:make", mean=(0.49139968, 0.48, 0.45), std=(0.2, 0.2, 0.2))
    asked = AttackRequest("pgd2", n=40, save_adv=True)
    attack(asked, model=own, dataset="digits", out=Path("run"), threads=1, show_progress=False)
    path, _ = write_bundle(Path("run"))
    command = shlex.split(json.loads(parts_of(path)["bundle.json"])["verify"])
    assert command[:5] == ["robench", "verify", "run.zip", "--model", "mine.py:make"] and "0.49139968,0.48,0.45" in command
    result = call(*command[1:], "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "is code that would be run: add --trust" in call("verify", path).stderr  # not because a bundle says so


def test_the_command_prints_the_path_last_and_the_digest_beside_it(run, tmp_path):
    out = tmp_path / "b.zip"
    result = call("bundle", run, "--out", out)
    assert result.exit_code == 0 and result.stdout == f"{out}\n"
    assert (
        hashlib.sha256(out.read_bytes()).hexdigest() in result.stderr
        and f"robench verify {out} --ckpt m.safetensors" in result.stderr
    )


@pytest.mark.parametrize("name", ["run.json", "verdicts.csv", "VERIFY.txt", "chunks/clean/0000000-0000010.npz"])
@pytest.mark.parametrize("same_length", [True, False])
def test_a_changed_file_is_named(bundle, tmp_path, name, same_length):
    parts = parts_of(bundle)
    parts[name] = parts[name][:-1] + bytes([parts[name][-1] ^ 1]) if same_length else parts[name] + b" "
    forged = zipped(tmp_path / "forged.zip", parts)
    with pytest.raises(RobenchError, match=f"{name} was changed; get the original file"):
        unpack(forged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_flipped_byte_is_named_with_its_file(bundle, tmp_path):
    content = bundle.read_bytes()
    with zipfile.ZipFile(bundle) as archive:
        places = [
            # Short of the last bytes: what lies behind the last letter (end of stream, padding) changes no content.
            (entry.header_offset + 30 + len(entry.filename) + share * (entry.compress_size - 16) // 2, entry.filename)
            for entry in archive.infolist()
            for share in (0, 1, 2)
        ]
    for place, name in places:
        flipped = tmp_path / "flipped.zip"
        flipped.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(RobenchError, match=name):
            unpack(flipped, tmp_path / "out")
    assert len(places) > 40 and not (tmp_path / "out").exists()


def test_files_that_were_removed_or_added_are_named(bundle, tmp_path):
    parts = parts_of(bundle)
    del parts["verdicts.csv"]
    with pytest.raises(RobenchError, match="other.txt was added; verdicts.csv is missing"):
        unpack(zipped(tmp_path / "b.zip", parts | {"other.txt": b""}), tmp_path / "out")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "chunks/../../evil", "a\\..\\evil", "C:evil", "./evil", "a//evil"])
def test_no_file_can_be_unpacked_outside_the_folder(bundle, tmp_path, name):
    parts = parts_of(bundle) | {name: b"evil"}
    manifest = json.loads(parts["bundle.json"])
    manifest["files"][name] = {"sha256": hashlib.sha256(b"evil").hexdigest(), "bytes": 4}
    forged = zipped(tmp_path / "b.zip", parts | {"bundle.json": json.dumps(manifest).encode()})
    with pytest.raises(RobenchError, match="could lie outside its folder; nothing was unpacked"):
        unpack(forged, tmp_path / "in" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["b.zip"]


def test_a_file_that_is_there_twice_is_refused(bundle, tmp_path):
    path = tmp_path / "b.zip"
    path.write_bytes(bundle.read_bytes())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("run.json", b"{}")
    with pytest.raises(RobenchError, match="holds run.json twice"):
        unpack(path, tmp_path / "out")


def empty_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w"):
        pass
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"hello", "is no bundle of robench, or a damaged one"), (empty_zip(), "is a zip file, but no bundle"), (b"", "is no bundle")],
)
def test_what_is_no_bundle_is_refused(tmp_path, content, message):
    path = tmp_path / "b.zip"
    path.write_bytes(content)
    result = call("verify", path)
    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.output


def test_a_forger_who_mends_the_digests_is_caught_by_the_images_themselves(bundle, checkpoint, tmp_path):
    parts = parts_of(bundle)
    name = next(name for name in parts if name.startswith("adv/"))
    (tmp_path / "images.npz").write_bytes(parts[name])
    packed = read_packed(tmp_path / "images.npz")
    levels = packed.levels.copy()
    levels[:, 0, 0, 0] ^= 1
    forged = PackedImages(packed.index, packed.kind, levels, packed.exact_rows, packed.exact)
    path = zipped(tmp_path / "b.zip", with_own_manifest(parts | {name: forged.to_bytes()}))
    replays, _ = verify(path, ckpt=checkpoint, threads=1)
    assert sum(replay.tampered for replay in replays) == 1


def test_a_table_that_does_not_follow_from_the_verdicts_is_refused(bundle, checkpoint, tmp_path):
    parts = parts_of(bundle)
    described = json.loads(parts["run.json"])
    for row in described["results"]:
        if row["attack"] == "pgd3":
            row["robust_accuracy"] = 0.99
    path = zipped(tmp_path / "b.zip", with_own_manifest(parts | {"run.json": json.dumps(described).encode()}))
    with pytest.raises(RobenchError, match=r"run.json says 99.00 % of pgd3, its verdicts say \d+.\d\d %"):
        verify(path, ckpt=checkpoint, threads=1)


def test_other_weights_do_not_confirm_a_bundle(bundle, few, tmp_path):
    spec = TrainSpec.of("single", few, backbone="small", epochs=1, batch_size=64, seed=7)
    other = train(spec, few, few, out=tmp_path / "o.safetensors", show_progress=False)
    result = call("verify", bundle, "--ckpt", other, "--threads", 1)
    assert result.exit_code == 1 and "this is not the model that was attacked" in result.stderr


def test_a_run_without_images_or_unfinished_makes_no_bundle(run, tmp_path):
    run_on_gray(tmp_path / "gray", [column("darken", darken)])
    with pytest.raises(RobenchError, match="has no adversarial images of darken, without which nobody can verify it"):
        write_bundle(tmp_path / "gray")
    run_on_gray(tmp_path / "saved", [column("darken", darken), column("broken", raising)], save=True)
    with pytest.raises(RobenchError, match="has no adversarial images of broken"):
        write_bundle(tmp_path / "saved")
    copy = shutil.copytree(run, tmp_path / "copy")
    next((copy / "chunks").glob("pgd3-*/*.npz")).unlink()
    with pytest.raises(RobenchError, match=r"is unfinished \(pgd3\)"):
        write_bundle(copy)
    with pytest.raises(RobenchError, match="is no run folder"):
        write_bundle(tmp_path)


def test_findings_of_an_audit_go_in_where_it_is_of_the_same_model(run, tmp_path):
    audit = tmp_path / "audit"
    audit.mkdir()
    (audit / "audit.md").write_text("# page")
    with pytest.raises(RobenchError, match="is no folder of `robench audit`"):
        write_bundle(run, tmp_path / "b.zip", audit)
    (audit / "findings.json").write_text(json.dumps({"about": {"weights and code": "f" * 64}}))
    with pytest.raises(RobenchError, match="is about another model"):
        write_bundle(run, tmp_path / "b.zip", audit)
    about = {"about": {"weights and code": read_run(run)["spec"]["model"]}}
    (audit / "findings.json").write_text(json.dumps(about))
    path, _ = write_bundle(run, tmp_path / "b.zip", audit)
    with opened(path) as folder:
        assert json.loads((folder / "findings.json").read_text()) == about and (folder / "audit.md").read_text() == "# page"
    assert not folder.exists()
