"""Adversarial images as the tensor file that RobustBench's and AutoAttack's users exchange, and that ``--adv`` reads again."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from robench.evaluation.external_images import saved_images
from robench.evaluation.results import read_results
from robench.files import write_atomically
from robench.report.accuracy import UNION
from robench.types import Dataset, Outcome, RobenchError


def adv_images_of(run: Path, attack: str, dataset: Dataset) -> Tensor:
    """The images that a run has kept of an attack, float32 (n, C, H, W) in the order of the split.

    Args:
        run: a folder of ``robench attack --save-adv``.
        attack: a column, or "union": of every sample an image that broke it, whichever attack came across it.
        dataset: the split that the run is about.

    Raises:
        RobenchError: there is no such attack, images were not kept, or the run is about other data.
    """
    results = read_results(run)
    n = results.description["n"]
    if attack != UNION:
        return saved_images(run, attack, dataset, n)
    if not results.columns:
        raise RobenchError(f"{run} has no finished attack; run the same `robench attack` again")
    images = saved_images(run, results.columns[0], dataset, n)
    for column in results.columns[1:]:
        rows = results.verdicts[results.verdicts["attack"] == column]
        broken = torch.from_numpy(((rows["outcome"] == Outcome.BROKEN) | (rows["best"] == Outcome.BROKEN)).to_numpy(copy=True))
        images[broken] = saved_images(run, column, dataset, n)[broken]
    return images


def write_adv(run: Path, attack: str, dataset: Dataset, out: Path) -> None:
    """Writes ``{"adv_complete": images, "labels": labels}`` as plain tensors, readable with ``torch.load(weights_only=True)``.

    Args:
        run, attack, dataset: see ``adv_images_of``.
        out: the file.
    """
    images = adv_images_of(run, attack, dataset)
    buffer = io.BytesIO()
    torch.save({"adv_complete": images, "labels": dataset.labels[: len(images)].clone()}, buffer)
    write_atomically(out, buffer.getvalue())
