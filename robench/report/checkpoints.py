"""All checkpoints below a folder: what each is, how well it does, and how it was trained and stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robench.checkpoint import read_description
from robench.report.trained import trained_short, weights_format
from robench.types import RobenchError

COLUMNS = ("checkpoint", "arch", "dataset", "epochs", "seed", "natural %", "trained on", "stored")


def list_checkpoints(folder: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """A row of ``COLUMNS`` per checkpoint below a folder, in the order of their paths, and what could not be read, with why.

    Raises:
        RobenchError: there is no such folder, or no .safetensors file below it.
    """
    if not folder.is_dir():
        raise RobenchError(f"no folder at {folder}; name the one that checkpoints lie in: `robench list checkpoints DIR`")
    rows, unread = [], []
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.safetensors.xz")]):
        try:
            rows.append((str(path.relative_to(folder)), *_row(read_description(path))))
        except RobenchError as error:
            unread.append(str(error))
    if not rows and not unread:
        raise RobenchError(f"no .safetensors file below {folder}; `robench train` writes them into checkpoints/")
    return rows, unread


def _row(described: dict[str, Any]) -> tuple[str, ...]:
    adversarial = described["recipe"].get("adversarial", "none")
    arch = described["arch"] + ("" if adversarial == "none" else f", {adversarial}")
    natural = f"{100 * described['clean_accuracy']['main']:.2f}"
    numbers = (str(described["epochs"]), str(described["seed"]), natural)
    return (arch, described["dataset"], *numbers, trained_short(described), weights_format(described))
