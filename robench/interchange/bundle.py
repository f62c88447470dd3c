"""A claim in one file: a run's verdicts and adversarial images with the digest of every part, and the command that verifies it."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from robench import __version__
from robench.data.recorded import as_recorded
from robench.evaluation.results import read_results
from robench.evaluation.run_folder import CLEAN, keeps_images, read_chunk, read_run, split
from robench.files import write_atomically
from robench.report.accuracy import percent, summarise
from robench.types import ExternalModel, RobenchError

SCHEMA = 1
MANIFEST, README = "bundle.json", "VERIFY.txt"
PAGES = ("run.json", "summary.csv", "verdicts.csv", "classes.csv", "report.md", "report.html", "findings.json", "audit.md")
LONGEST = 64 * 2**20  # bytes of a manifest
DAY_ZERO = (1980, 1, 1, 0, 0, 0)  # so that the same run makes the same bytes


class Bundle(NamedTuple):
    """Where a bundle lies, and its sha256."""

    path: Path
    sha256: str


def write_bundle(run: Path, out: Path | None = None, audit: Path | None = None) -> Bundle:
    """Packs a run whose adversarial images were kept; the same run makes the same bytes.

    Args:
        run: a finished folder of ``robench attack --save-adv``.
        out: the file, ``<run>.zip`` beside it by default.
        audit: a folder of ``robench audit`` about the same model, whose findings go in too.

    Raises:
        RobenchError: the run is unfinished or lacks images, the audit is of another model, or the file is there and no bundle.
    """
    description, results = read_run(run), read_results(run)
    if results.unfinished:
        raise RobenchError(f"{run} is unfinished ({', '.join(results.unfinished)}); run the same `robench attack` again")
    _refuse_without_images(run, description)
    parts = {name: (run / name).read_bytes() for name in _names(run, description)}
    if audit is not None:
        parts |= _findings(audit, description)
    path = out or run.with_name(f"{run.name}.zip")
    if path.exists() and not _is_bundle(path):
        raise RobenchError(f"{path} is there already and is no bundle of robench; choose another `out`")
    command = _command(f"{run.name}.zip", description)
    parts[README] = _readme(run.name, command).encode()
    files = {name: {"sha256": _digest(content), "bytes": len(content)} for name, content in sorted(parts.items())}
    manifest = {"schema": SCHEMA, "robench": __version__, "run": run.name, "verify": command, "files": files}
    parts[MANIFEST] = (json.dumps(manifest, indent=2) + "\n").encode()
    content = _zip(parts)
    write_atomically(path, content)
    return Bundle(path, _digest(content))


def command_to_verify(bundle: Path, run: Path) -> str:
    """What whoever has the model types to verify the bundle of a run."""
    return _command(str(bundle), read_run(run))


def _is_bundle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _names(run: Path, description: dict[str, Any]) -> list[str]:
    """The files of the run that the table is made of, and what was made of them."""
    folders = [CLEAN, *(stage["folder"] for column in description["suites"] for stage in column["members"])]
    chunks = [f"{chunk.name}.npz" for chunk in split(description["n"], description["spec"]["chunk"])]
    names = [f"{kind}/{folder}/{chunk}" for kind in ("chunks", "adv") for folder in folders for chunk in chunks]
    names += [*PAGES, *(f"figures/{path.name}" for path in sorted((run / "figures").glob("*.png")))]
    return [name for name in names if (run / name).is_file()]


def _refuse_without_images(run: Path, description: dict[str, Any]) -> None:
    chunks = split(description["n"], description["spec"]["chunk"])
    lacking = [
        column["name"]
        for column in description["suites"]
        if any(
            keeps_images(read_chunk(run / "chunks" / stage["folder"] / f"{chunk.name}.npz"), column["cascade"])
            and not (run / "adv" / stage["folder"] / f"{chunk.name}.npz").is_file()
            for stage in column["members"]
            for chunk in chunks
        )
    ]
    if lacking:
        raise RobenchError(
            f"{run} has no adversarial images of {', '.join(lacking)}, without which nobody can verify it; run the same `robench "
            "attack --save-adv` first"
        )


def _findings(audit: Path, description: dict[str, Any]) -> dict[str, bytes]:
    try:
        about = json.loads((audit / "findings.json").read_bytes())["about"]
        pages = {name: (audit / name).read_bytes() for name in ("findings.json", "audit.md")}
    except (OSError, ValueError, KeyError, TypeError):
        raise RobenchError(f"`audit={audit}` is no folder of `robench audit` (findings.json, audit.md)") from None
    if about.get("weights and code") != description["spec"]["model"]:
        raise RobenchError(f"`audit={audit}` is about another model; the digests of weights and code differ")
    return pages


def _command(name: str, description: dict[str, Any]) -> str:
    origin, data = description["model"]["origin"], description["data"]
    if "checkpoint" in origin:
        return shlex.join(["robench", "verify", name, "--ckpt", Path(origin["checkpoint"]).name])
    weights = Path(origin["weights file"]) if "weights file" in origin else None
    mean, std = tuple(origin.get("mean", ())), tuple(origin.get("std", ()))
    external = ExternalModel(
        str(origin.get("model", "FILE.py:FACTORY")), weights, mean=mean, std=std, classes=str(origin.get("classes", ""))
    )
    return shlex.join(["robench", "verify", name, *external.options, *as_recorded(data).options])


def _readme(name: str, command: str) -> str:
    return (
        f"The run {name} of robench {__version__}: verdicts, adversarial images and tables.\n\n    {command}\n\n"
        "compares every file here with its digest in bundle.json, classifies the adversarial images again with the model that you name,\n"
        "and says whether every sample that is called broken is broken again. Samples that are called robust withstood the attacks that\n"
        "run.json names; no image can show that.\n"
    )


def _zip(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(parts):
            entry = zipfile.ZipInfo(name, DAY_ZERO)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            archive.writestr(entry, parts[name])
    return buffer.getvalue()


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A run folder: itself, or what a bundle holds, unpacked for as long as the context lasts.

    Raises:
        RobenchError: a file that is no bundle, or see ``unpack``.
    """
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / path.stem
        unpack(path, folder)
        yield folder


def unpack(path: Path, folder: Path) -> None:
    """Writes a bundle's files below a folder, once every one has the digest that the manifest gives.

    Raises:
        RobenchError: it is no bundle, it is damaged, a file was changed, added or removed (each is named), or would lie outside.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _safe_entries(path, archive)
            files = _manifest(path, archive, entries)
            parts = _checked(path, archive, entries, files)
    except (zipfile.BadZipFile, OSError) as error:
        raise RobenchError(f"{path} is no bundle of robench, or a damaged one: {error}; `robench bundle RUN` makes one") from None
    for name, content in parts.items():
        write_atomically(folder / name, content)


def _safe_entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.orig_filename
        plain = PurePosixPath(name)
        if plain.is_absolute() or ".." in plain.parts or str(plain) != name or any(letter in name for letter in "\\:\0"):
            raise RobenchError(f"{path} holds a file called {name!r}, which could lie outside its folder; nothing was unpacked")
        if name in entries:
            raise RobenchError(f"{path} holds {name} twice; nothing was unpacked")
        entries[name] = entry
    return entries


def _manifest(path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> dict[str, dict[str, Any]]:
    if MANIFEST not in entries or entries[MANIFEST].file_size > LONGEST:
        raise RobenchError(f"{path} is a zip file, but no bundle of robench (no {MANIFEST}); `robench bundle RUN` makes one")
    try:
        manifest = json.loads(archive.read(MANIFEST))
        schema, files = manifest["schema"], {name: dict(entry) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, zlib.error, zipfile.BadZipFile):
        raise RobenchError(f"{path}: {MANIFEST} was changed or is damaged; get the original file") from None
    if schema != SCHEMA:
        raise RobenchError(f"{path} has bundle schema {schema}, this robench reads {SCHEMA}; update robench")
    return files


def _checked(
    path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], files: dict[str, dict[str, Any]]
) -> dict[str, bytes]:
    """Every file's content, all of them as the manifest has them."""
    parts: dict[str, bytes] = {}
    wrong = [f"{name} is missing" for name in files if name not in entries]
    wrong += [f"{name} was added" for name in entries if name not in files and name != MANIFEST]
    for name in files.keys() & entries.keys():
        try:
            content = archive.read(name) if entries[name].file_size == files[name].get("bytes") else b""
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError):
            content = b""
        parts[name] = content
        if _digest(content) != files[name].get("sha256"):
            wrong.append(f"{name} was changed")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise RobenchError(f"{path} is not as it was bundled: {'; '.join(sorted(wrong)[:3])}{more}; get the original file")
    return parts


def refuse_other_table(run: Path) -> None:
    """Compares the table that run.json carries with the verdicts beside it.

    Raises:
        RobenchError: it claims another robust accuracy than follows from them.
    """
    claimed = {row["attack"]: row["robust_accuracy"] for row in read_run(run).get("results", [])}
    if not claimed:
        return
    for _, row in summarise(read_results(run)).iterrows():
        claim, accuracy = claimed.get(row["attack"]), row["robust_accuracy"]
        if accuracy == accuracy and (claim is None or abs(claim - accuracy) > 1e-9):
            claim_text = "nothing" if claim is None else f"{percent(claim)} %"
            raise RobenchError(f"{run}: run.json says {claim_text} of {row['attack']}, its verdicts say {percent(accuracy)} %")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
