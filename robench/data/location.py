"""Where data sets lie, and what is kept beside them."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Where data sets lie: ``data_dir``, else ``$ROBENCH_DATA``, else the user's cache."""
    if data_dir:
        return Path(data_dir).expanduser()
    if os.environ.get("ROBENCH_DATA"):
        return Path(os.environ["ROBENCH_DATA"]).expanduser()
    return cache_folder()


def cache_folder() -> Path:
    """Where robench keeps what it can make again: ``$XDG_CACHE_HOME/robench``, else ``~/.cache/robench``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robench"
