"""Every type that crosses a module boundary. Importing this module imports no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from enum import StrEnum, nonmember
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from robench.digest import digest_tensors
from robench.identity import NO_REWRITE as NO_REWRITE
from robench.identity import AttackIdentity
from robench.identity import PassOptions as PassOptions
from robench.norms import NORMS as GEOMETRIES
from robench.norms import TOLERANCE as TOLERANCE
from robench.norms import Norm
from robench.norms import norm_named as norm_named

if TYPE_CHECKING:
    from torch import Tensor

    Images = Tensor  # float32 (N, C, H, W), pixel values in [0, 1]
    Labels = Tensor  # int64 (N,), main-task class in [0, n_classes)
    Logits = Tensor  # float32 (N, n_classes), before softmax

NORMS = tuple(GEOMETRIES)

# What a sample that survives AutoAttack standard costs it; a forward pass is 1 unit, a backward pass 2.
AUTOATTACK_UNITS = 11_672


class RobenchError(Exception):
    """A mistake of the user's, or a failure that they can act on: one clear message, exit code 1, no traceback.

    A message names a parameter as Python does, in backticks: `` `step_size=0.5` ``, or `` `out` `` alone. The command line shows it as
    its own option, ``--step-size 0.5``; see ``robench.cli.group.in_options``.
    """


def parse_eps(text: str | float, name: str = "eps") -> float:
    """The number that ``"8/255"``, ``"0.2"`` or ``0.2`` stands for, in pixel units.

    Raises:
        RobenchError: it is no number, or not finite, or negative.
    """
    try:
        parts = [float(part) for part in str(text).split("/")]
        value = parts[0] if len(parts) == 1 else parts[0] / parts[1]
        if len(parts) > 2 or not math.isfinite(value) or value < 0:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise RobenchError(
            f"`{name}={text!r}` is not a number of pixel units, finite and not negative; write it as 8/255 or 0.031; 1 in Linf allows every image"
        ) from None
    return value


def format_eps(eps: float) -> str:
    """eps as people write it: ``8/255`` where a short decimal would not be exact, else the decimal.

    The text parses back to the same float, so that a report never rounds the number which it is about.
    """
    shortest = f"{eps:.3g}"
    if float(shortest) == eps:
        return shortest
    levels = round(eps * 255, 6)
    fraction = f"{levels:g}/255"
    return fraction if parse_eps(fraction) == eps else repr(eps)


def parse_norm(text: Any) -> Norm:
    """The norm that is meant, however it is written: ``Linf``, ``l2``, ``inf``, ``2``.

    Raises:
        RobenchError: there is no such norm.
    """
    name = norm_named(text)
    if name not in tuple(GEOMETRIES):
        raise RobenchError(f"unknown norm {name!r}; expected one of {', '.join(GEOMETRIES)}")
    return GEOMETRIES[name]


@dataclass(frozen=True)
class ThreatModel:
    """What the adversary may do: move each image by at most ``eps`` in ``norm``, inside the box [0, 1].

    Attributes:
        norm: "Linf", "L2" or "L1"; all that depends on it is ``geometry``'s.
        eps: radius in pixel units of [0, 1].
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", parse_norm(self.norm).name)
        if not math.isfinite(self.eps) or self.eps < 0:
            raise RobenchError(f"eps {self.eps} is not a radius; expected a finite number >= 0")
        if self.eps > self.geometry.largest_eps:
            raise RobenchError(
                f"eps {self.eps:g} {self.geometry.too_large}: eps is in pixel units of [0, 1]; did you mean {self.eps:g}/255?"
            )

    @classmethod
    def parse(cls, norm: str, eps: str | float) -> ThreatModel:
        """A threat model from text such as ``("Linf", "8/255")``."""
        return cls(norm, parse_eps(eps))

    @property
    def geometry(self) -> Norm:
        """The norm, with all that depends on it."""
        return GEOMETRIES[self.norm]

    def distance(self, images: Images, adv_images: Images) -> Tensor:
        """Distance of each pair in ``norm``, float32 (N,)."""
        return self.geometry.distance(images, adv_images)

    @property
    def tolerance(self) -> float:
        """What may be measured beyond eps for rounding alone."""
        return self.geometry.tolerance(self.eps)

    def contains(self, images: Images, adv_images: Images) -> Tensor:
        """Which adversarial images lie in the ball around their image, bool (N,), within ``tolerance``."""
        return self.distance(images, adv_images) <= self.eps + self.tolerance

    @property
    def eps_text(self) -> str:
        return format_eps(self.eps)

    def __str__(self) -> str:
        return f"{self.norm} {self.eps_text}"


@dataclass(frozen=True)
class ExternalModel:
    """A model that robench did not train, as ``--model`` and the options around it name it.

    Attributes:
        reference: one of the ways of ``robench list models``.
        weights: a file with its state dict, for ways that name an architecture.
        mean, std: of the normalisation in front of it, per channel or one number for all, in pixel units of [0, 1]; where empty,
            what its own files say, or none.
        trust: whether a file that is a program may be run.
        weights_dtype: "float32" computes in it whatever the weights are; "as-is" leaves them.
        data_dir: where downloads lie, see ``robench.data.data_folder``.
        classes: which of its outputs stand for the data's classes: "imagenet"; a file with the name of a class a line, in the order of
            its outputs; or their numbers in the order of the data's classes, such as "0,217,482". Empty where they are the same.
    """

    reference: str
    weights: Path | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    trust: bool = False
    data_dir: Path | None = None
    weights_dtype: str = "float32"
    classes: str = ""

    def __post_init__(self) -> None:
        check_normalisation(self.mean, self.std)

    @property
    def options(self) -> list[str]:
        """What names it on a command line."""
        given = {"--weights": str(self.weights or "")} | {
            f"--{name}": ",".join(map(repr, getattr(self, name))) for name in ("mean", "std")
        }
        given |= {"--classes": self.classes}
        named = [part for option, value in given.items() if value for part in (option, value)]
        return ["--model", self.reference, *named, *(["--trust"] if self.trust else []), *self._dtype]

    @property
    def _dtype(self) -> list[str]:
        return ["--weights-dtype", self.weights_dtype] if self.weights_dtype != "float32" else []


@dataclass(frozen=True)
class ExternalData:
    """Data as ``--dataset`` and the options around it name them.

    Attributes:
        reference: a name of ``robench list datasets`` or a path; None for the data of the checkpoint.
        resize: of pictures in files: the short side in pixels, such as "256", or height x width; "none" takes them as they are.
        crop: the centre that is kept, such as "224"; "none" keeps all.
        interpolation: of the resize, such as "bicubic".
        check: decode every file first, to see that it is whole.
        subset: a named part of the data set, such as "robustbench".
        recorded: it is what a finished run did, and done again without asking whether that makes sense.
    """

    reference: str | None
    _: KW_ONLY
    resize: str | None = None
    crop: str | None = None
    interpolation: str | None = None
    check: bool = False
    subset: str | None = None
    recorded: bool = False

    @property
    def options(self) -> list[str]:
        """What names it on a command line."""
        given = {f"--{name}": getattr(self, name) for name in ("resize", "crop", "interpolation", "subset")}
        named = {"--dataset": self.reference} | given
        return [part for option, value in named.items() if value is not None for part in (option, value)]

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the reference is given."""
        return self == ExternalData(self.reference)


def check_normalisation(mean: Sequence[float], std: Sequence[float], channels: int | None = None) -> None:
    """Refuses a normalisation that cannot be meant.

    Args:
        mean, std: per channel, or one number for all, in pixel units of [0, 1].
        channels: of the images, None where they are not known yet.

    Raises:
        RobenchError: one is missing, has another number of values, or is in units of 255.
    """
    if len(mean) != len(std):
        raise RobenchError(
            f"`mean` has {len(mean)} values and `std` {len(std)}; give both, one value a channel; a std of 1 leaves the scale as it is"
        )
    if any(not 0 <= value <= 1 for value in mean) or any(not 0 < value <= 1 for value in std):
        raise RobenchError(
            f"`mean={_listed(mean)}` `std={_listed(std)}`: expected values in pixel units of [0, 1], and no std of 0; divide values of "
            "0 to 255 by 255"
        )
    if channels is not None and len(mean) not in (0, 1, channels):
        raise RobenchError(
            f"normalisation by mean {list(mean)} and std {list(std)}, but the images have {channels} channel{'s' * (channels > 1)}"
        )


def parse_channels(text: str | None, name: str) -> tuple[float, ...]:
    """What ``--mean 0.49,0.48,0.45`` means, () for None.

    Raises:
        RobenchError: a part is no number.
    """
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise RobenchError(f"`{name}={text!r}`: expected numbers separated by commas, such as 0.4914,0.4822,0.4465") from None


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


class AttackFn(Protocol):
    """What an attack computes: adversarial images, of the shape of the images that it is given.

    Called with five arguments by position: the model (a ``Classifier``: images in [0, 1] to logits), images and labels, which are its to
    write into, the threat model, and the seed that torch's global generator has been given inside a fork.
    """

    def __call__(self, model: Any, images: Images, labels: Labels, threat: ThreatModel, seed: int, /) -> Images: ...


class ReturnPolicy(StrEnum):
    """Which of the adversarial images that an attack came across it returns; when a call may be cut short follows from it."""

    LAST = "last"  # what it ends with, adversarial or not
    ANY = "any"  # one that the model misclassified, if there was any
    FORWARD = "forward"  # one that it classified without asking for a gradient, within eps to the last bit
    LATE = "late"  # one that the model misclassified, but not if it came across it early


@dataclass(frozen=True)
class Attack:
    """One way to look for adversarial images, as the engine sees it.

    Attributes:
        name: its column in every table; unique for its parameters.
        fn: ``fn(model, images, labels, threat, seed) -> adv_images``, same shape; draws from torch's global generator,
            which the engine has seeded inside a fork.
        norms: the norms that it is defined for.
        gradients: whether it asks the model for gradients.
        params: every parameter that changes what it does, defaults included, as run.json has them; ``identity`` has them as types.
        library: who computes it, with the version: "torchattacks 3.5.1".
        source: the paper or URL that defines it.
        family: attacks of one family start from the same random draws.
        returns: which of the adversarial images that it came across it returns, see ``ReturnPolicy``.
        prefix_of: attacks with an equal, non-empty ``prefix_of`` take the same steps, ``identity.steps`` of them: one run of the
            longest holds what the shorter ones return.
        crafting_target: what the images are crafted on, where that is not the classifier under test.
        external_images: adversarial images (N, C, H, W) that were made before, one per sample from the data set's first; ``fn`` is then
            not called.
        pass_options: how the model's passes are computed while the attack searches; the verdict is always by the model's own.
    """

    name: str
    fn: AttackFn
    norms: tuple[str, ...]
    gradients: bool
    params: Mapping[str, Any]
    library: str
    source: str
    family: str
    returns: ReturnPolicy = ReturnPolicy.LAST
    prefix_of: str = ""
    crafting_target: CraftingTarget | None = None
    external_images: Tensor | None = None
    pass_options: PassOptions = NO_REWRITE

    @classmethod
    def of(cls, fn: AttackFn, **overrides: Any) -> Attack:
        """The attack that a function is, keyed by its source: see ``robench.authoring.attack_of``.

        Args:
            fn: with or without the decorator ``robench.attack``.
            overrides: of its parameters, such as ``steps=20``, or of what the decorator says: name, norms, returns, source.

        Raises:
            RobenchError: it takes other arguments, or has no such parameter.
        """
        from robench.authoring import attack_of

        return attack_of(fn, **overrides)

    @property
    def identity(self) -> AttackIdentity:
        """What its column is keyed by, as types: see ``AttackIdentity``, which reads ``params`` and writes them."""
        return AttackIdentity.from_params(self.params, self.name, self.library)

    def identified(self, identity: AttackIdentity) -> Attack:
        """The same computation under another identity."""
        return replace(self, name=identity.name, library=identity.library, params=identity.to_params())


class CraftingTarget(Protocol):
    """Something that images are crafted on in place of the classifier under test: another model, or other heads."""

    @property
    def whole_chunks(self) -> bool:
        """Whether to craft on every sample of a chunk, so that the images do not depend on the classifier under test."""
        ...

    def prepare(self, images: Images, labels: Labels, index: Tensor) -> tuple[Any, Labels]:
        """The classifier to craft on for a chunk, and the labels that it is to be turned away from.

        Args:
            images, labels: of the whole chunk.
            index: their places in the data set, int64 (N,).
        """
        ...


@dataclass(frozen=True)
class Column:
    """One column of every table: an attack, or attacks that run one after the other.

    Attributes:
        name: its heading; the stages of a cascade are shown as ``name/stage``.
        stages: the attacks.
        is_cascade: whether each stage sees only what the earlier ones left.
        about: one line for ``robench list``.
        count_queries: a stage's outcome is what its best query shows, not what it returned.
        skip: of a cascade, places in the data set of samples that are left out because something else decided them.
        gate: of a cascade, the stage behind which the others run only in chunks where it broke a sample.
        blind: of a cascade, whether members that the model passes no gradient to count as left out, so that the others decide.
    """

    name: str
    stages: tuple[Attack, ...]
    is_cascade: bool
    about: str = ""
    count_queries: bool = False
    skip: frozenset[int] = frozenset()
    gate: str = ""
    blind: bool = False


class Outcome(StrEnum):
    """What one attack did to one sample. Only ROBUST counts as robust; only BROKEN and MISCLASSIFIED as broken.

    Files and tables hold the strings.
    """

    MISCLASSIFIED = "misclassified"  # wrong before any attack
    BROKEN = "broken"
    ROBUST = "robust"
    SKIPPED = "skipped"  # broken by an earlier stage of the cascade
    INVALID = "invalid"  # the attack returned NaN, or left the box or the ball: says nothing about the model
    ERROR = "error"  # the attack raised: says nothing about the model

    UNDECIDED = nonmember((INVALID, ERROR))


class StoredImages(Protocol):
    """Images that are read when they are asked for, uint8 (N, C, H, W), all of one size. They can be pickled, as for another process.

    Attributes:
        shape: (N, C, H, W).
        digest: sha256 over whatever decides the pixels, and their order.
        name: of an image by its place, for messages.
    """

    @property
    def shape(self) -> tuple[int, int, int, int]: ...

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, places: Sequence[int]) -> Tensor:
        """The images at some places, uint8 (len(places), C, H, W).

        Raises:
            RobenchError: a file is gone, has changed or is damaged; says which.
        """

    def name(self, place: int) -> str: ...

    def is_here(self) -> bool:
        """Whether this process can read them; another machine may lack the files."""


def pixels_of(images: Tensor | StoredImages, places: slice | Tensor) -> Tensor:
    """Some of a data set's images, (n, C, H, W), uint8, or float32 in [0, 1].

    Args:
        images: held as a tensor, or stored.
        places: a range without a step, or their numbers, int64 (n,).
    """
    if not hasattr(images, "read"):
        return images[places]
    numbers = range(*places.indices(len(images))) if isinstance(places, slice) else places.tolist()
    return images.read(numbers)


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a labelled image set: held as one tensor, or stored in files that are read when they are needed.

    Attributes:
        name: "digits", "cifar10", "cifar100", or the folder's name.
        split: "train" or "test".
        images: uint8 (N, C, H, W); of people's own data also float32 in [0, 1]. Contiguous. Or ``StoredImages``.
        labels: int64 (N,).
        classes: name of each class, in label order.
        default_eps: eps per norm where the user names none; by default CIFAR's, the three radii of Croce & Hein 2022,
            https://arxiv.org/abs/2105.12508.
        coarse_labels: int64 (N,), or None where the set has no coarser labels.
        coarse_classes: their names.
        mirror: whether a mirrored image keeps its label (a digit does not).
        path: of people's own data, where it lies.
        reading: how its files became pixels, as run.json has it; empty where they are taken as they are.
    """

    name: str
    split: str
    images: Tensor | StoredImages
    labels: Tensor
    classes: tuple[str, ...]
    default_eps: Mapping[str, str] = field(default_factory=lambda: {"Linf": "8/255", "L2": "0.5", "L1": "12"})
    coarse_labels: Tensor | None = None
    coarse_classes: tuple[str, ...] = ()
    mirror: bool = True
    path: str = ""
    reading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images: Any = self.images
        if not self.is_stored:
            # Libraries draw their random starts in the order of memory: a verdict is to depend on values alone.
            object.__setattr__(self, "images", images.contiguous())

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        shown = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        channels, height, width = self.image_shape
        return f"{len(self):,} {self.split} images, {channels} x {height} x {width}, {len(self.classes)} classes: {shown}"

    @property
    def is_stored(self) -> bool:
        """Whether images are read when they are asked for."""
        return hasattr(self.images, "read")

    def pixels(self, places: slice | Tensor) -> Tensor:
        """Some of the images, see ``pixels_of``."""
        return pixels_of(self.images, places)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def tasks(self) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
        """Labels, int64 (N,), and class names by the head that can be judged on them: the main one, and a coarser one where there are."""
        coarse = {} if self.coarse_labels is None else {"coarse": (self.coarse_labels, self.coarse_classes)}
        return {"main": (self.labels, self.classes), **coarse}

    @cached_property
    def digest(self) -> str:
        """sha256 over shape, pixels and labels in their order; of stored images over their files in place of pixels."""
        images: Any = self.images
        if self.is_stored:
            return hashlib.sha256(f"{images.digest} {digest_tensors({'labels': self.labels})}".encode()).hexdigest()
        return digest_tensors({"images": images, "labels": self.labels})


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """A trained model as it lies on disk: plain tensors and what is needed to rebuild and judge it.

    Attributes:
        arch: the variant, a name in ``OBJECTIVES``.
        backbone: a name in ``robench.models.BACKBONES``.
        dataset: name of the training set.
        classes: main-task class names, in the order of the logits.
        image_shape: (C, H, W).
        heads: head name to {"layers": "linear" | "mlp", "width": outputs, "classes": classes that count}.
        preprocessing: {"mean": ..., "std": ...} applied inside the model, or {} for none.
        recipe: every setting of the training, as ``TrainSpec`` has them.
        seed: of the training.
        epochs: finished.
        clean_accuracy: of every classification head on the test split, fractions.
        history: one entry an epoch: loss terms and images per second.
        versions: of the software that trained it, and, where recorded, its ``device``, what ``convolutions`` were computed in there,
            what is particular about its ``step``, and how weights are ``stored``.
        weights: name to tensor.
    """

    arch: str
    backbone: str
    dataset: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    heads: Mapping[str, Mapping[str, Any]]
    preprocessing: Mapping[str, Any]
    recipe: Mapping[str, Any]
    seed: int
    epochs: int
    clean_accuracy: Mapping[str, float]
    history: tuple[Mapping[str, float], ...]
    versions: Mapping[str, str]
    weights: Mapping[str, Tensor]

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def digest(self) -> str:
        """sha256 over the weights: names, dtypes, shapes and bytes."""
        return digest_tensors(self.weights)


class Level(StrEnum):
    """What a check says, the gravest first. UNKNOWN is a check whose experiment is missing; it never passes."""

    FAIL = "fail"
    WARN = "warn"
    UNKNOWN = "unknown"
    PASS = "pass"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check of an audit found.

    Attributes:
        check: its name in ``CHECKS``.
        level: see ``Level``.
        says: what that means, in a sentence.
        evidence: the numbers that it was read from.
        source: who proposed the check, and the threshold.
        statistic: what was compared with the threshold, None where nothing was measured.
        threshold: above it the check trips.
        p: of the exact paired test, where two accuracies were compared on the same samples.
        p_corrected: after Holm's correction over all findings of the audit that have a p.
        calls_for: the attacks that the finding leads to.
    """

    check: str
    level: Level
    says: str
    evidence: str
    source: str
    statistic: float | None = None
    threshold: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    calls_for: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run folder is about. Two runs may share a folder only if every field is equal.

    Attributes:
        model: digest of weights and model code.
        data: digest of the data set's images and labels, in their order.
        norm: of the threat model.
        eps: of the threat model, pixel units.
        seed: of the attacks.
        chunk: samples a chunk.
        device_type: "cpu", "cuda", ...
        precision: of the forward pass, "fp32".
    """

    model: str
    data: str
    norm: str
    eps: float
    seed: int
    chunk: int
    device_type: str
    precision: str = "fp32"
