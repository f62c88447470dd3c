"""What a user asks an audit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robench.models.multihead import MAIN_HEAD
from robench.types import Dataset, RobenchError, parse_norm

PROTOCOLS = ("white-box", "transfer", "unknown")
SAMPLES, QUICK_SAMPLES, GRID_SAMPLES = 1000, 200, 250


@dataclass(frozen=True)
class AuditRequest:
    """What a user asked for. See ``robench audit --help``.

    Attributes:
        claim: robust accuracy as a fraction; None judges what the plain suite reports.
        protocol: what the claim says about itself, one of ``PROTOCOLS``.
        norm, eps: the threat model; eps as text, the data set's own by default.
        n: the first n samples; 1,000 (200 with ``quick``), or all where there are fewer.
        seed: of the attacks.
        adv: stored images, see ``external_column``.
        source: the checkpoint that files of stored images were crafted on.
        siblings: checkpoints of the same classes, on which a transfer attack is crafted too.
        budget: of the stronger attacks that findings call for, in multiples of AutoAttack's cost a surviving sample.
        quick: a first answer from few samples and attacks; it supports nothing, but it can refute.
        head: the task that is judged.
        minutes: that the audit may take, infinite for no limit; by default see ``robench.audit.forecast.allowed_seconds``.
    """

    claim: float | None = None
    protocol: str = "unknown"
    norm: str = "Linf"
    eps: str | None = None
    n: int | None = None
    seed: int = 0
    adv: tuple[str, ...] = ()
    source: Path | None = None
    siblings: tuple[Path, ...] = ()
    budget: float = 3.0
    quick: bool = False
    head: str = MAIN_HEAD
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.claim is not None and not 0 <= self.claim <= 1:
            raise RobenchError(
                f"`claim={self.claim:g}`: expected a robust accuracy as a fraction of all samples, 0 to 1, such as 0.606"
            )
        if self.protocol not in PROTOCOLS:
            raise RobenchError(f"`protocol={self.protocol!r}`: expected one of {', '.join(PROTOCOLS)}")
        norm = parse_norm(self.norm)
        object.__setattr__(self, "norm", norm.name)
        if not norm.has_pgd:
            raise RobenchError(
                f"`norm={norm.name}`: an audit compares attacks of many kinds, of which only AutoAttack's are defined in {norm.name}; "
                f"`robench attack --norm {norm.name}` measures what survives them"
            )
        if self.budget < 0:
            raise RobenchError(f"`budget={self.budget:g}`: expected a multiple of AutoAttack's cost, 0 or more")
        if self.minutes is not None and not self.minutes > 0:
            raise RobenchError(f"`minutes={self.minutes:g}`: expected a number above 0, or inf for no limit")

    def samples(self, data: Dataset) -> int:
        """How many samples are looked at."""
        if self.n is None:
            return min(len(data), QUICK_SAMPLES if self.quick else SAMPLES)
        if not 1 <= self.n <= len(data):
            raise RobenchError(f"`n={self.n}`: expected 1 to {len(data)}, the samples of the test split")
        return self.n

    def folder_name(self, name: str, data: Dataset) -> str:
        """``audit-<name>``, and behind it whatever differs from the defaults."""
        parts = ["audit", name]
        parts += [self.norm] if self.norm != "Linf" else []
        parts += [self.eps.replace("/", "of")] if self.eps and self.eps != data.default_eps.get(self.norm) else []
        parts += [f"head-{self.head}"] if self.head != MAIN_HEAD else []
        parts += [f"seed{self.seed}"] if self.seed else []
        return "-".join([*parts, *(["quick"] if self.quick else [])])
