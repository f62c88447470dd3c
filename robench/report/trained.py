"""How a checkpoint was trained and is stored, in words: what its header says, and a run that attacked it repeats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_RECORDED = "not recorded"
PRECISIONS = {"fp32": "float32", "tf32": "TF32", "bf16": "bf16"}


def trained_on(origin: Mapping[str, Any]) -> str:
    """Where and how exactly, such as "NVIDIA H200 with TF32 convolutions" or "cpu in bf16".

    Args:
        origin: with ``versions`` and ``recipe``, as in ``Checkpoint``.
    """
    device = origin["versions"].get("device", f"a device {NOT_RECORDED},")
    return f"{device} with TF32 convolutions" if _tf32(origin) else f"{device} in {PRECISIONS[origin['recipe']['precision']]}"


def trained_short(origin: Mapping[str, Any]) -> str:
    """The same for a cell: "NVIDIA H200, TF32", "cpu, bf16"."""
    device = origin["versions"].get("device", f"device {NOT_RECORDED}")
    return f"{device}, {'TF32' if _tf32(origin) else origin['recipe']['precision']}"


def _tf32(origin: Mapping[str, Any]) -> bool:
    """Whether it was torch's default, when fp32 was not yet exact for those who called ``train`` from Python."""
    return origin["versions"].get("convolutions") == "TF32" and origin["recipe"]["precision"] == "fp32"


def trained_and_evaluated(origin: Mapping[str, Any], device: str) -> str:
    """One sentence: "trained on NVIDIA H200 with TF32 convolutions, evaluated on cpu in float32".

    Args:
        origin: see ``trained_on``.
        device: type of the device that verdicts were computed on; they are float32 always.
    """
    return f"trained on {trained_on(origin)}, evaluated on {device} in float32"


def training_facts(origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was recorded of the training and of the file, as names and texts; a device that was not is said to be missing."""
    versions, recipe = origin["versions"], origin["recipe"]
    return [
        ("epochs", str(recipe["epochs"])),
        ("device", versions.get("device", NOT_RECORDED)),
        ("precision", recipe["precision"]),
        *((name, versions[name]) for name in ("convolutions", "step") if name in versions),
        ("stored", weights_format(origin)),
    ]


def weights_format(origin: Mapping[str, Any]) -> str:
    """How the weights lie in the file: rounded to what, where that was recorded."""
    return str(origin["versions"].get("stored", NOT_RECORDED))
