"""Replays a run's stored adversarial images against the model: what of its verdicts can be seen again, by anyone, without an attack."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robench.data.augment import in_unit
from robench.evaluation.judge import NOT_FINITE, answers, classes_of, in_box
from robench.evaluation.memory import retry_in_smaller_passes
from robench.evaluation.packed_images import PackedImages, read_packed
from robench.evaluation.run_folder import LEFT_OUT, ChunkVerdicts, read_chunk, read_run, split
from robench.models.classifier import Classifier
from robench.types import Dataset, Outcome, RobenchError, ThreatModel

if TYPE_CHECKING:
    from robench.types import Images


@dataclass(frozen=True)
class Replay:
    """What still holds of one attack's broken samples.

    Attributes:
        attack: its name, with the stage in a cascade.
        claimed: samples that the run calls broken, by what was returned or by the best query.
        float32: those whose stored image lies in the box and the ball and is misclassified in float32, in batches.
        float64: the same in float64; None where the model cannot be computed so, as a program that names float32 inside.
        single: in float32, one image at a time.
        rounded: as images of 8 bits a pixel inside the ball, see ``in_8_bits``, in float32.
        tampered: chunks whose images are not the ones that were stored.
        missing: broken samples without a stored image.
        unclassified: places in the data of those whose stored image the model cannot classify in float32, by raising or by saying no class:
            such an image is neither broken nor robust.
        said: what it raised or said on the first of these, or "".
    """

    attack: str
    _: KW_ONLY
    claimed: int = 0
    float32: int = 0
    float64: int | None = 0
    single: int = 0
    rounded: int = 0
    tampered: int = 0
    missing: int = 0
    unclassified: tuple[int, ...] = ()
    said: str = ""

    @property
    def unkept(self) -> bool:
        """Whether no image was stored of any broken sample: nothing was contradicted, and nothing can be confirmed."""
        return self.claimed > 0 and self.missing == self.claimed

    @property
    def holds(self) -> bool:
        """Whether every claim was seen again in float32, on the images that were stored."""
        return self.float32 == self.claimed and not self.tampered and not self.missing

    def __add__(self, other: Replay) -> Replay:
        counted = [f.name for f in fields(self) if f.name not in ("attack", "float64", "said")]
        sums = {name: getattr(self, name) + getattr(other, name) for name in counted}
        doubles = None if self.float64 is None or other.float64 is None else self.float64 + other.float64
        return Replay(self.attack, **sums, float64=doubles, said=self.said or other.said)


def replay_run(run: Path, classifier: Classifier, dataset: Dataset) -> list[Replay]:
    """Judges the stored images of every attack of a run again.

    Args:
        run: a folder of ``robench attack --save-adv``.
        classifier: the model, or any other one that is to be tried on these images.
        dataset: the split that the run is about.

    Returns:
        An entry for every attack and stage, but those that a cascade needed on no chunk.

    Raises:
        RobenchError: it is no run folder, has no stored images, or is about other data.
    """
    description = read_run(run)
    if description["spec"]["data"] != dataset.digest:
        raise RobenchError(f"{run} is about other images than {dataset.name} here; name the same data with `dataset` or `data_dir`")
    threat = ThreatModel(description["threat"]["norm"], description["threat"]["eps"])
    doubled = copy.deepcopy(classifier).double()
    results = []
    for name, folder in _attacks(description):
        total, modes = Replay(name), []
        for chunk in split(description["n"], description["spec"]["chunk"]):
            verdict_file, image_file = run / "chunks" / folder / f"{chunk.name}.npz", run / "adv" / folder / f"{chunk.name}.npz"
            if not verdict_file.exists():
                continue
            verdicts = read_chunk(verdict_file)
            modes.append(verdicts.mode)
            packed = read_packed(image_file) if image_file.exists() else None
            total += _replay_chunk(name, verdicts, packed, classifier=classifier, doubled=doubled, dataset=dataset, threat=threat)
        if not modes or not all(mode.startswith(LEFT_OUT) for mode in modes):
            results.append(total)
    if all(total.claimed == total.missing for total in results) and any(total.claimed for total in results):
        raise RobenchError(f"{run} has no stored adversarial images; run the same `robench attack --save-adv` first")
    return results


def _attacks(description: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for column in description["suites"]:
        for stage in column["members"]:
            yield f"{column['name']}/{stage['name']}" if column["cascade"] else column["name"], stage["folder"]


def _replay_chunk(
    name: str, verdicts: ChunkVerdicts, packed: PackedImages | None, *, classifier: Classifier, doubled: Classifier, dataset: Dataset,
    threat: ThreatModel,
) -> Replay:  # fmt: skip
    broken = verdicts.index[(verdicts.outcome == Outcome.BROKEN) | (verdicts.best == Outcome.BROKEN)]
    if packed is None:
        return Replay(name, claimed=len(broken), missing=len(broken))
    rows = np.flatnonzero(np.isin(packed.index, broken))
    tampered = int(packed.digest != verdicts.adv_digest)
    counts = Replay(name, claimed=len(broken), missing=len(broken) - len(rows), tampered=tampered)
    if not len(rows):
        return counts
    index = torch.from_numpy(packed.index[rows])
    pixels = dataset.pixels(index)
    images = in_unit(pixels)
    labels, adv_images = dataset.labels[index], packed.unpack()[rows]
    near = threat.contains(images, adv_images) & in_box(adv_images)
    rounded = in_8_bits(images, adv_images, threat)

    def counted(classes: Tensor, tried: Images) -> int:
        return int(((classes >= 0) & (classes != labels) & near & threat.contains(images, tried.float())).sum())

    own, twice = _classes(classifier, adv_images, labels), _classes(doubled, adv_images.double(), labels)
    is_float32 = len(twice.errors) == len(rows) > len(own.errors)  # a program names float32 inside
    silent = np.flatnonzero((own.classes < 0).numpy())
    return counts + Replay(
        name,
        float32=counted(own.classes, adv_images),
        float64=None if is_float32 else counted(twice.classes, adv_images),
        single=counted(_classes(classifier, adv_images, labels, size=1).classes, adv_images),
        rounded=counted(_classes(classifier, rounded, labels).classes, rounded),
        unclassified=tuple(packed.index[rows][silent].tolist()),
        said=own.errors.get(int(silent[0]), NOT_FINITE) if len(silent) else "",
    )


def in_8_bits(images: Images, adv_images: Images, threat: ThreatModel) -> Images:
    """Adversarial images as a picture file holds them, float32 (N, C, H, W): rounded to the nearest of 256 values a pixel.

    Where that leaves the ball, as it does where eps is no multiple of 1/255, rounded towards the clean image, which stays inside where the
    clean image has 8 bits itself.
    """
    nearest = (adv_images * 255).round() / 255
    change = (adv_images - images) * 255
    towards = ((images * 255 + change.sign() * (change.abs() + 1e-3).floor()).round() / 255).clamp(0, 1)
    return torch.where(threat.contains(images, nearest)[:, None, None, None], nearest, towards)


class Predictions(NamedTuple):
    """The class of every image, int64 (N,), -1 where the model says none, and what it raised by place of the image."""

    classes: Tensor
    errors: dict[int, str]


@torch.no_grad()
def _classes(classifier: Classifier, images: Images, labels: Tensor, size: int | None = None) -> Predictions:
    """What the model says of every image, by vote of a random one.

    Args:
        size: of the batches, a random model's excepted; all at once by default.
    """
    images, labels = images.to(classifier.device), labels.to(classifier.device)
    size = len(images) if size is None or classifier.draws > 1 else size
    classes: list[Tensor] = []
    errors: dict[int, str] = {}
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        found = retry_in_smaller_passes(classifier, size, partial(answers, classifier, images[part], labels[part]))
        classes.append(classes_of(found.logits).cpu())
        errors |= {start + place: said for place, said in found.errors.items()}
    return Predictions(torch.cat(classes), errors)
