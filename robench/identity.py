"""Who a column's attack is: its parameters, and what robench itself made of it, as types; the one way to run.json's ``params`` and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any


@dataclass(frozen=True)
class PassOptions:
    """How a classifier is computed while adversarial images are looked for; see ``robench.models.rewrite``.

    Attributes:
        folded: BatchNorm folded into convolutions and channels last, where the function stays the same but for last bits.
        precision: "fp32", "bf16", or "tf32", which is of CUDA.
        compiled: by ``torch.compile``.
    """

    folded: bool = False
    precision: str = "fp32"
    compiled: bool = False

    def __str__(self) -> str:
        words = ["folded"] * self.folded + [self.precision] * (self.precision != "fp32") + ["compiled"] * self.compiled
        return ", ".join(words) or "own"


NO_REWRITE = PassOptions()


# The names that the typed parts have among the parameters on disk; they are in the keys of finished columns.
PASSES, PASSES_VERSION, TRANSFER, HEADS, WEIGHTS, IMAGES, LEFT = (
    "passes", "passes version", "transfer from", "heads", "weights", "images", "on what was left",
)  # fmt: skip
RESERVED = (PASSES, PASSES_VERSION, TRANSFER, HEADS, WEIGHTS, IMAGES, LEFT)
# Of what ``robench.models.rewrite`` computes. To be raised where a change of it may let a search find other images: columns with such
# passes are then computed again. The first is in no key.
REWRITE_VERSION = 1
_REWRITES = {
    str(each): each for each in (PassOptions(*chosen) for chosen in product((False, True), ("fp32", "bf16", "tf32"), (False, True)))
}  # fmt: skip


@dataclass(frozen=True)
class SourceModel:
    """Another model that images were crafted on.

    Attributes:
        name: as columns have it behind their "@".
        digest: of its weights and code.
    """

    name: str
    digest: str


@dataclass(frozen=True)
class CraftedHeads:
    """Heads that images were crafted on, in place of the judged one.

    Attributes:
        names: of the heads, in order.
        weights: digest of the weights that these heads compute with.
    """

    names: tuple[str, ...]
    weights: str


@dataclass(frozen=True)
class ImagesOfFile:
    """Images that were made before, by whomever.

    Attributes:
        digest: sha256 over them.
    """

    digest: str


@dataclass(frozen=True)
class ImagesOfRun:
    """Images that a column of another run kept.

    Attributes:
        spec: what that run is about, as its run.json has it.
        folders: of the column's stages in it, which are their keys.
    """

    spec: Mapping[str, Any]
    folders: tuple[str, ...]


@dataclass(frozen=True)
class AttackIdentity:
    """What decides whether a finished column is an attack's own.

    Attributes:
        name: of the attack.
        library: who computes it, with the version.
        parameters: what a user or the registry set, defaults included.
        passes: how the model's passes are computed while the attack searches.
        passes_version: of the code that computes them so, see ``robench.models.rewrite``.
        crafted_on: the other model that its images are crafted on.
        heads: the other heads that its images are crafted on.
        images: its images, where they were made before.
        left: digest of which samples were decided before it ran, where it ran on what an audit's panel left.
    """

    name: str = ""
    library: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    passes: PassOptions = NO_REWRITE
    passes_version: int = 1
    crafted_on: SourceModel | None = None
    heads: CraftedHeads | None = None
    images: ImagesOfFile | ImagesOfRun | None = None
    left: str = ""

    @property
    def steps(self) -> int | None:
        """The steps that it takes, None where it has no such parameter."""
        steps = self.parameters.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def restarts(self) -> int:
        """Its independent starts."""
        return self.parameters.get("restarts", 1)

    @property
    def random_start(self) -> bool:
        """Whether it is known to start at a random point."""
        return bool(self.parameters.get("random_start"))

    def to_params(self) -> dict[str, Any]:
        """The parameters as ``Attack.params``, run.json and the keys of columns have them; a part that is absent has no entry."""
        params = dict(self.parameters)
        if self.passes != NO_REWRITE:
            params |= {PASSES: str(self.passes)} | ({PASSES_VERSION: self.passes_version} if self.passes_version != 1 else {})
        if self.crafted_on is not None:
            params[TRANSFER] = self.crafted_on.digest
        if self.heads is not None:
            params |= {HEADS: list(self.heads.names), WEIGHTS: self.heads.weights}
        if isinstance(self.images, ImagesOfFile):
            params[IMAGES] = self.images.digest
        elif self.images is not None:
            params[IMAGES] = {"run": self.images.spec, "of": list(self.images.folders)}
        return params | ({LEFT: self.left} if self.left else {})

    @classmethod
    def from_params(cls, params: Mapping[str, Any], name: str = "", library: str = "") -> AttackIdentity:
        """The identity that ``to_params`` wrote. What is no part that robench writes, as a decorator's own "weights", stays a parameter.

        Args:
            params: the parameters on disk.
            name, library: of the attack, which are written beside them.
        """
        passes = _passes(params.get(PASSES))
        parts = cls(
            name, library, passes=passes, passes_version=_version(params.get(PASSES_VERSION)) if passes != NO_REWRITE else 1,
            crafted_on=_source_model(params.get(TRANSFER), name), heads=_heads(params.get(HEADS), params.get(WEIGHTS)),
            images=_images(params.get(IMAGES)), left=_left(params.get(LEFT)),
        )  # fmt: skip
        taken = parts.to_params().keys()
        return replace(parts, parameters={key: value for key, value in params.items() if key not in taken})

    @classmethod
    def of_member(cls, member: Mapping[str, Any]) -> AttackIdentity:
        """The identity of a column's stage in run.json."""
        return cls.from_params(member["params"], member.get("name", ""), member.get("library", ""))


def _passes(written: Any) -> PassOptions:
    return _REWRITES.get(written, NO_REWRITE) if isinstance(written, str) else NO_REWRITE


def _version(written: Any) -> int:
    return written if type(written) is int else 1


def _source_model(written: Any, name: str) -> SourceModel | None:
    return SourceModel(name.partition("@")[2], written) if isinstance(written, str) else None


def _heads(names: Any, weights: Any) -> CraftedHeads | None:
    named = isinstance(names, list) and all(isinstance(each, str) for each in names)
    return CraftedHeads(tuple(names), weights) if named and isinstance(weights, str) else None


def _images(written: Any) -> ImagesOfFile | ImagesOfRun | None:
    if isinstance(written, str):
        return ImagesOfFile(written)
    if isinstance(written, Mapping) and written.keys() == {"run", "of"} and isinstance(written["of"], list):
        return ImagesOfRun(written["run"], tuple(written["of"]))
    return None


def _left(written: Any) -> str:
    return written if isinstance(written, str) else ""
