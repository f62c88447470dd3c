"""What a user may ask of an attack run."""

from __future__ import annotations

from dataclasses import dataclass

from robench.attacks import Asked, AttackOptions
from robench.models.multihead import MAIN_HEAD
from robench.types import Column, Dataset, PassOptions, RobenchError, ThreatModel, norm_named, parse_eps, parse_norm

DEFAULT_CHUNK = 250


@dataclass(frozen=True)
class AttackRequest:
    """What a user asked for; None means the default. See ``robench attack --help``.

    Attributes:
        suite: names of attacks and suites, separated by commas, or a list of names, attacks and functions; by default pgd20 (not in
            L1) and autoattack, or none where ``adv`` is given.
        norm, eps: the threat model; eps as text, the data set's own by default.
        n: the first n samples, all by default.
        step_size: of PGD, as text.
        restarts: of PGD.
        seed: of the attacks.
        chunk: samples a chunk.
        auto_chunk: on a GPU take as many as fit in place of ``chunk``; see ``robench.run.plan.settled_chunk``.
        attack_heads: the head that images are crafted on, or "joint" for all; None for ``head``, whose the verdict is.
        head: the task that is judged.
        save_adv: keep the adversarial images.
        adv: stored images to evaluate too, see ``external_column``.
        share: let one trajectory serve pgd7, pgd20 and pgd50.
        budget: of the fast suite, in multiples of AutoAttack's cost; None for its own.
        passes: "own", or "folded": while attacks search, see ``PassOptions``.
        precision: "fp32", "tf32" (of CUDA), "bf16", or "auto" for what the processor does faster; while attacks search.
        compiled: let torch.compile have the passes of the search.
        columns: columns that are made already, as an audit's are; they stand in place of ``suite``.
        graphed: on CUDA, record the passes of the search as CUDA graphs and replay them, see ``robench.models.graphed``.
    """

    suite: Asked | None = None
    norm: str = "Linf"
    eps: str | None = None
    n: int | None = None
    step_size: str | None = None
    restarts: int = 1
    seed: int = 0
    chunk: int = DEFAULT_CHUNK
    attack_heads: str | None = None
    head: str = MAIN_HEAD
    save_adv: bool = False
    adv: tuple[str, ...] = ()
    share: bool = True
    budget: float | None = None
    passes: str = "own"
    precision: str = "fp32"
    compiled: bool = False
    columns: tuple[Column, ...] = ()
    graphed: bool = True
    auto_chunk: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", norm_named(self.norm))
        for option, number in (("restarts", self.restarts), ("seed", self.seed), ("batch_size", self.chunk)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise RobenchError(f"`{option}={number!r}`: expected a whole number")
        if not 0 <= self.seed < 2**63:
            raise RobenchError(f"`seed={self.seed}`: expected 0 to 2^63 - 1")
        if self.budget is not None and (isinstance(self.budget, bool) or not isinstance(self.budget, int | float)):
            raise RobenchError(
                f"`budget={self.budget!r}`: expected a number, in multiples of what AutoAttack costs a sample that survives it"
            )
        for option, given, known in (
            ("passes", self.passes, ("own", "folded")), ("precision", self.precision, ("fp32", "tf32", "bf16", "auto")),
        ):  # fmt: skip
            if given not in known:
                raise RobenchError(f"`{option}={given}`: expected {' or '.join(known)}")

    @property
    def names(self) -> Asked | None:
        """The suite, or its default."""
        return self.suite if self.suite is not None else None if self.adv or self.columns else default_suite(self.norm)

    def threat(self, dataset: Dataset) -> ThreatModel:
        """The threat model, see ``threat_of``."""
        return threat_of(self.norm, self.eps, dataset)

    def options(self, precision: str = "fp32") -> AttackOptions:
        """The attacks' options, where ``precision`` is settled."""
        step_size = None if self.step_size is None else parse_eps(self.step_size, "step_size")
        return AttackOptions(step_size, self.restarts, self.budget, PassOptions(self.passes == "folded", precision, self.compiled))

    def folder_name(self, name: str, threat: ThreatModel, dataset: Dataset, trained_on: str | None) -> str:
        """``<checkpoint>-<norm>-<eps>``, and behind it whatever differs from the defaults."""
        parts = [name, threat.norm, threat.eps_text.replace("/", "of")]
        parts += [f"on-{dataset.name}"] if trained_on not in (None, dataset.name) else []
        parts += [f"head-{self.head}"] if self.head != MAIN_HEAD else []
        parts += [f"step{self.step_size.replace('/', 'of')}"] if self.step_size else []
        parts += [f"restarts{self.restarts}"] if self.restarts != 1 else []
        parts += [f"seed{self.seed}"] if self.seed != 0 else []
        parts += [f"chunk{self.chunk}"] if self.chunk != DEFAULT_CHUNK else []
        return "-".join(parts)


def threat_of(norm: str, eps: str | None, dataset: Dataset) -> ThreatModel:
    """A norm and a radius; where no radius is given, the data set's own.

    Raises:
        RobenchError: the data set has none for this norm; or see ``ThreatModel``.
    """
    named = parse_norm(norm).name
    if eps is None and named not in dataset.default_eps:
        raise RobenchError(f"{dataset.name} has no radius of its own in {named}: give `eps`")
    return ThreatModel.parse(named, dataset.default_eps[named] if eps is None else eps)


def default_suite(norm: str) -> str:
    """What is run where no suite is named.

    Raises:
        RobenchError: there is no such norm.
    """
    return parse_norm(norm).suite


def parse_chunk(text: str) -> int:
    """What ``--batch-size`` means: a number of samples, or "auto", which is this number where no GPU is asked.

    Raises:
        RobenchError: it is neither.
    """
    if text == "auto":
        return DEFAULT_CHUNK
    if not text.isdecimal() or int(text) < 1:
        raise RobenchError(f"`batch_size={text!r}`: expected auto, or a number of samples of at least 1")
    return int(text)
