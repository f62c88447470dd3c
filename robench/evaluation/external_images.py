"""Adversarial images that were made before: by a run of ours, by torchattacks, by RobustBench's and AutoAttack's scripts."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from robench.data.augment import in_unit
from robench.digest import digest_tensors
from robench.evaluation.packed_images import read_packed
from robench.evaluation.run_folder import keeps_images, read_chunk, read_run, split
from robench.identity import AttackIdentity, ImagesOfFile, ImagesOfRun, SourceModel
from robench.norms import NORMS
from robench.types import Attack, Column, Dataset, RobenchError

LIBRARY = "stored images"
# torchattacks' save, RobustBench's and AutoAttack's scripts, and names that people give.
IMAGE_KEYS = ("adv_inputs", "adv_complete", "x_adv", "adv_images", "adv", "images")
LABEL_KEYS = ("labels", "y", "y_orig", "targets")


def external_column(source: str, dataset: Dataset, n: int) -> Column:
    """A column of images that were made before, one per sample of the data set from its first.

    Args:
        source: a ``.pt`` file, or ``RUN:ATTACK`` for what ``--save-adv`` kept in a run folder.
        dataset: the split that they belong to.
        n: samples that are to be evaluated.

    Raises:
        RobenchError: there is no such file, it holds no images or code, or they belong to other data.
    """
    run, colon, attack = source.rpartition(":")
    if colon and (Path(run) / "run.json").is_file():
        made = _of_run(Path(run), attack, dataset, n, f"`adv={source}`")
    elif (Path(source) / "run.json").is_file():
        raise RobenchError(
            f"`adv={source}` is a run folder; name the attack too: {source}:ATTACK, one of {_kept(Path(source), read_run(Path(source)))}"
        )
    else:
        made = _of_file(Path(source), dataset, n)
    identity, shape = made.identity, tuple(made.images.shape[1:])
    if shape != dataset.image_shape:
        raise RobenchError(f"`adv={source}`: images of shape {shape}, {dataset.name} has {dataset.image_shape}")
    attack_of = Attack(
        name=identity.name, fn=_never, norms=tuple(NORMS), gradients=False, params=identity.to_params(), library=identity.library,
        source=Path(source).name, family="stored", external_images=made.images,
    )  # fmt: skip
    return Column(identity.name, (attack_of,), is_cascade=False)


class StoredColumn(NamedTuple):
    """What identifies images that were made before, and the images, float32 (n, C, H, W) in [0, 1]."""

    identity: AttackIdentity
    images: Tensor


def _of_file(path: Path, dataset: Dataset, n: int) -> StoredColumn:
    if not path.is_file():
        raise RobenchError(
            f"`adv={path}`: no such file; expected a .pt file of images, or RUN:ATTACK of a run of `robench attack --save-adv`"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        message = str(error).strip()
        first = message.splitlines()[0] if " " in message else "it is no file of torch.save"
        raise RobenchError(
            f"`adv={path}` cannot be read as plain tensors ({first[:120]}); robench runs no code from such files: save a tensor, or a "
            "dictionary of tensors, with torch.save"
        ) from None
    images, labels = _images_and_labels(content, path)
    images = in_unit(images)
    if len(images) < n:
        raise RobenchError(f"`adv={path}` has {len(images)} images for {n} samples; use `n={len(images)}`")
    if labels is not None:
        if labels.shape != images.shape[:1]:
            raise RobenchError(
                f"`adv={path}` has labels of shape {tuple(labels.shape)} for {len(images)} images, expected one label an image"
            )
        wrong = int((labels[:n].long() != dataset.labels[:n]).sum())
        if wrong:
            raise RobenchError(
                f"`adv={path}`: {wrong} of its first {n} labels are not those of {dataset.name}; its images are of other data, or in "
                "another order"
            )
    return StoredColumn(
        AttackIdentity(f"adv@{path.stem}", LIBRARY, images=ImagesOfFile(digest_tensors({"images": images}))), images[:n]
    )


class Stored(NamedTuple):
    """Images (N, C, H, W), uint8 or float, and labels, as a file holds them; None where it holds no labels."""

    images: Tensor
    labels: Tensor | None


def _images_and_labels(content: Any, path: Path) -> Stored:
    labels = None
    if isinstance(content, Mapping):
        labels = next((content[key] for key in LABEL_KEYS if isinstance(content.get(key), Tensor)), None)
        images = next((content[key] for key in IMAGE_KEYS if key in content), None)
        if images is None:
            raise RobenchError(
                f"`adv={path}` has the entries {', '.join(map(str, content))}; images are looked for in {IMAGE_KEYS}"
            )
        content = images
    if isinstance(content, list | tuple) and content:
        labels = content[1] if len(content) > 1 and isinstance(content[1], Tensor) and content[1].ndim == 1 else labels
        content = content[0]
    if not isinstance(content, Tensor) or content.ndim != 4:
        kind = tuple(content.shape) if isinstance(content, Tensor) else type(content).__name__
        raise RobenchError(f"`adv={path}` holds {kind}, expected images of shape (N, C, H, W)")
    return Stored(content, labels)


def _of_run(run: Path, attack: str, dataset: Dataset, n: int, said: str) -> StoredColumn:
    description = read_run(run)
    if description["spec"]["data"] != dataset.digest:
        raise RobenchError(f"{said}: that run is about {description['data']['name']} with other images; its order is not ours")
    column = next((column for column in description["suites"] if column["name"] == attack), None)
    if column is None:
        raise RobenchError(f"{said}: that run has no attack {attack!r}; with images: {_kept(run, description)}")
    images = in_unit(dataset.pixels(slice(0, n)))
    covered = torch.zeros(n, dtype=torch.bool)
    for chunk in split(description["n"], description["spec"]["chunk"]):
        if chunk.start >= n:
            break
        covered[chunk.start : chunk.stop] = True
        for stage in column["members"]:  # of a cascade, the last stage that attacked a sample decided it
            verdicts, file = (run / part / stage["folder"] / f"{chunk.name}.npz" for part in ("chunks", "adv"))
            if file.exists() and verdicts.exists():
                packed = read_packed(file)
                rows = torch.from_numpy(packed.index < n)
                images[torch.from_numpy(packed.index)[rows]] = packed.unpack()[rows]
            elif not verdicts.exists() or keeps_images(read_chunk(verdicts), column["cascade"]):
                covered[chunk.start : chunk.stop] = False
    if not covered.all():
        raise RobenchError(
            f"{said} has images for {int(covered.sum())} of {n} samples; run that attack again: `robench attack --save-adv -n {n}`"
        )
    name = f"{attack}@{description['model']['name']}"
    source = SourceModel(name.partition("@")[2], description["spec"]["model"])
    folders = tuple(stage["folder"] for stage in column["members"])
    return StoredColumn(AttackIdentity(name, LIBRARY, crafted_on=source, images=ImagesOfRun(description["spec"], folders)), images)


def saved_images(run: Path, attack: str, dataset: Dataset, n: int) -> Tensor:
    """The images that ``--save-adv`` kept of an attack, float32 (n, C, H, W).

    Raises:
        RobenchError: they are not there, or belong to other data.
    """
    return _of_run(run, attack, dataset, n, f"{run}:{attack}").images


def _kept(run: Path, description: dict[str, Any]) -> str:
    """The columns of a run that have images."""
    columns = (
        column for column in description["suites"] if any((run / "adv" / each["folder"]).is_dir() for each in column["members"])
    )
    return ", ".join(column["name"] for column in columns) or "none; `robench attack --save-adv` keeps them"


def _never(*_: Any) -> Tensor:
    raise AssertionError("stored images are not crafted")
