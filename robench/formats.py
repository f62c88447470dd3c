"""What a file is, by its content and not by its name. Reads no more than its beginning and, of a zip file, its table of contents."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

from robench.types import RobenchError


class Format:
    """What ``recognise`` tells apart."""

    CHECKPOINT = "a robench checkpoint"
    SAFETENSORS = "a safetensors file"
    TORCH = "a file of torch.save"
    PICKLE = "a pickled file"
    TORCHSCRIPT = "a TorchScript program"
    EXPORT = "a program of torch.export"
    HTML = "an HTML page"
    LFS = "a Git LFS pointer in place of the file"
    EMPTY = "an empty file"
    CUT = "the beginning of a zip file, cut off"
    ZIP = "a zip file without a model"
    UNKNOWN = "no format that robench knows"

    PICKLES = (TORCH, PICKLE)
    PROGRAMS = (TORCHSCRIPT, EXPORT)


HEADER = 100_000_000  # bytes; no safetensors header is longer


def recognise(path: Path) -> str:
    """The format of a file, a value of ``Format``.

    Raises:
        RobenchError: it is not there, no file, or not readable.
    """
    path = Path(path)
    if not path.is_file():
        raise RobenchError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; expected a file")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
            if start[8:9] == b"{":  # behind the length of the header, whose first byte may well look like a pickle's
                return _safetensors(start[:8], start[8:] + file.read(min(HEADER, struct.unpack("<Q", start[:8])[0])))
    except OSError as error:
        raise RobenchError(f"cannot read {path}: {error.strerror or error}") from error
    if start[:4] == b"PK\x03\x04":
        return _zip(path)
    return _by_start(start)


def _by_start(start: bytes) -> str:
    if not start:
        return Format.EMPTY
    if start[:1] == b"\x80":
        return Format.PICKLE
    if start.startswith(b"version https://git-lfs"):
        return Format.LFS
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return Format.HTML if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")) else Format.UNKNOWN


def _safetensors(length: bytes, content: bytes) -> str:
    try:
        header = json.loads(content[: struct.unpack("<Q", length)[0]])
        ours = "robench" in header.get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError, TypeError):
        return Format.UNKNOWN
    return Format.CHECKPOINT if ours else Format.SAFETENSORS


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError):
        return Format.CUT
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return Format.EXPORT
    if "data.pkl" in names:
        return Format.TORCHSCRIPT if "constants.pkl" in names else Format.TORCH
    return Format.ZIP
