"""The data of a finished run, named so that they are read again as that run read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from robench.data import DATASETS
from robench.data.preprocessing import Preprocessing
from robench.types import ExternalData


def as_recorded(described: Mapping[str, Any], given: str | ExternalData | None = None) -> ExternalData:
    """What to load.

    Args:
        described: the data as run.json has them.
        given: where they lie now, or how they are to be read in place of it; None for as it was.
    """
    asked = given if isinstance(given, ExternalData) else ExternalData(given)
    path = described.get("path", "")
    there = f"./{path}" if path in DATASETS else path  # a folder that is called as a data set is
    reference = asked.reference or there or described.get("dataset") or described["name"]
    named = replace(asked, reference=reference, subset=asked.subset or described.get("subset"))
    if "steps" not in described or asked.resize or asked.crop or asked.interpolation:
        return named
    steps = Preprocessing.of_json(described["steps"]).to_options()
    return replace(named, resize=steps["resize"], crop=steps["crop"], interpolation=steps["interpolation"], recorded=True)
