"""How anything of ours reaches the disk."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from robench.types import RobenchError

PARTIAL = ".partial"  # what a killed process leaves behind ends so, and is nobody's result


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that exists exactly when it is complete: temporary name, fsync, rename.

    Raises:
        RobenchError: the folder cannot be written, or the disk is full; nothing that was there is damaged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True) if partial.parent.is_dir() and os.access(partial.parent, os.W_OK) else None
        raise RobenchError(
            f"cannot write {path}: {error.strerror or error}; what was finished before is kept: make room or choose another "
            "`out`, then run the same command again"
        ) from error
