"""What an audit says about a number: refuted, weakened, supported, or not established."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from robench.audit.comparisons import REST
from robench.audit.evidence import AUDITED_RADIUS, Evidence, RobustCount
from robench.audit.panel import CONSEQUENCES, steps_of
from robench.report.accuracy import interval, percent, title
from robench.types import Finding, Level, Outcome

REFUTED, WEAKENED, SUPPORTED, OPEN = "refuted", "weakened", "supported", "not established"
NAMED = 5  # samples that a reason names
REFUTED_BY = 0.05  # a number is refuted where the upper bound lies further below it than this
# Checks without whose experiment no number is supported.
REQUIRED = (
    "one-step", "steps", "eps", "large-eps", "unbounded", "noise", "zero-gradients", "rescaling", "loss-swap", "more-steps", "restarts",
    "silent-success", "randomness", "train-mode", "batch-dependence", "softmax-outputs", "black-box", "input-stage", "continuity",
    "finite-differences", "budget",
)  # fmt: skip
EXCUSED_WHERE_RANDOM = ("batch-dependence",)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judged number and what became of it. Accuracies are fractions of all n samples.

    Attributes:
        word: "refuted", "weakened", "supported" or "not established".
        claim: the judged number; None where there is none.
        claimed: what it is, in words.
        robust, most: samples that survive, and at most where an attack failed.
        low, high: 95 % interval of what it is judged against.
        n: samples.
        against: what it is judged against, in words.
        why: reasons, each a sentence.
        took_away: (step, accuracy after it), in the order of the audit.
        transfer: accuracy on stored images, where there are any.
        all_ran: whether every experiment came to its end.
    """

    word: str
    claim: float | None
    claimed: str
    robust: int
    most: int
    low: float
    high: float
    n: int
    against: str
    why: tuple[str, ...]
    took_away: tuple[tuple[str, float], ...]
    transfer: float | None = None
    all_ran: bool = True


def judge_number(evidence: Evidence, findings: list[Finding], claim: float | None, not_run: list[str]) -> Verdict:
    """The verdict on a claim, or, without one, on what the plain suite or the stored images report.

    Args:
        evidence: of the audit.
        findings: of its checks.
        claim: robust accuracy as a fraction, or None.
        not_run: attacks that findings call for and the budget did not allow.
    """
    union, n, whole = _judged_on(evidence)
    external = evidence.external_bounds()
    judged = JudgedNumber(claim, f"the claim ({evidence.protocol})") if claim is not None else _plain(evidence, external)
    number = judged.accuracy
    left, against = union, "all attacks on the model itself, per sample"
    against += f", on a random {n:,} of the {whole:,} samples, for want of time" if n < whole else ""
    why = _reasons(evidence, findings, not_run) + _unclassified(evidence)
    if evidence.protocol == "transfer":
        why = _reasons_of_transfer(evidence, findings, claim) + _unclassified(evidence)
        left, against = (external, "the stored images, as transfer") if external is not None else (left, against)
        n = whole if external is not None else n
    low, high = interval(left.robust, n).low, interval(left.most, n).high
    if number is None:
        word = OPEN
        why.insert(0, "there is no number to judge: the plain attacks failed on this model")
    elif evidence.protocol == "transfer" and (external is None or claim is None):
        word = OPEN
    elif high < number - REFUTED_BY:
        word = REFUTED
    elif high < number:
        word = WEAKENED
    elif number < low:
        word = OPEN
        why.insert(0, f"the number is below what is left after {against}: whoever measured it broke more")
    else:
        word = OPEN if why else SUPPORTED
    return Verdict(
        word=word, claim=number, claimed=judged.said, robust=union.robust, most=union.most, low=low, high=high, n=n, against=against,
        why=tuple(why), took_away=tuple(_steps(evidence)), transfer=None if external is None else external.most / whole,
        all_ran=not evidence.missed,
    )  # fmt: skip


class Judged(NamedTuple):
    """What a number is judged on: what is left, of how many samples, and how many there are."""

    union: RobustCount
    n: int
    whole: int


def _judged_on(evidence: Evidence) -> Judged:
    """All samples; or those that no attack left out for want of time, where less is left of them: both are valid, the second is nearer."""
    whole = len(evidence.correct())
    all_ = Judged(evidence.union(evidence.columns()), whole, whole)
    if evidence.covered is None or not evidence.covered.any():
        return all_
    n = int(evidence.covered.sum())
    part = Judged(evidence.union(evidence.columns(), evidence.covered), n, whole)
    return min(all_, part, key=lambda each: interval(each.union.most, each.n).high)


def _missed(evidence: Evidence) -> list[str]:
    """What gave nothing, and the command that runs it, as a reason, or nothing."""
    if not evidence.missed:
        return []
    named = "; ".join(dict.fromkeys(f"{each.name} {each.why}" for each in evidence.missed))
    return [named + (f": {evidence.remedy}" if any(each.seconds for each in evidence.missed) else "")]


def _reasons(evidence: Evidence, findings: list[Finding], not_run: list[str]) -> list[str]:
    """Why a number that lies inside the interval is not supported yet."""
    excused = EXCUSED_WHERE_RANDOM if evidence.draws > 1 else ()
    missing = [
        each.check for each in findings if each.check in REQUIRED and each.level == Level.UNKNOWN and each.check not in excused
    ]
    averaged = evidence.draws > 1 and evidence.robust("pgd50-eot") is not None  # the union holds what averaging breaks
    failed = [each.check for each in findings if each.level == Level.FAIL and not (each.check == "randomness" and averaged)]
    reasons = [f"required experiments are missing: {', '.join(missing)}"] if missing else []
    reasons += [f"checks fail: {', '.join(failed)}"] if failed else []
    reasons += [f"attacks failed: {', '.join(map(title, broken))}"] if (broken := evidence.failed()) else []
    reasons += _missed(evidence)
    return reasons + ([f"the budget did not allow {', '.join(map(title, not_run))}"] if not_run else [])


def _reasons_of_transfer(evidence: Evidence, findings: list[Finding], claim: float | None) -> list[str]:
    """Why a claim of transfer that lies inside the interval is not supported yet."""
    if not evidence.external:
        return ["a claim of transfer is judged by the stored images: give them with `robench audit --adv`"]
    reasons = [] if claim is not None else ["without a claim there is nothing to hold the stored images against"]
    reasons += [
        f"nobody says what {each.column} was crafted on: name it with `robench audit --source`"
        for each in evidence.external
        if not each.weights
    ]
    reasons += [
        f"{each.column} was crafted on the judged weights, which is no transfer"
        for each in evidence.external
        if each.weights == evidence.model
    ]
    failed = [each.check for each in findings if each.level == Level.FAIL and each.check in ("provenance", "budget")]
    return reasons + ([f"checks fail: {', '.join(failed)}"] if failed else [])


def _unclassified(evidence: Evidence) -> list[str]:
    """The samples that stay open whatever attacks do, as a reason, or nothing."""
    places = np.flatnonzero(evidence.unclassified()).tolist()
    if not places:
        return []
    named = ", ".join(map(str, places[:NAMED])) + (", ..." if len(places) > NAMED else "")
    return [
        f"{len(places)} of {len(evidence.correct())} samples cannot be classified even without attack and count as undecided ({named})"
    ]


class JudgedNumber(NamedTuple):
    """An accuracy, a fraction of all samples, None where there is none, and what it is, in words."""

    accuracy: float | None
    said: str


def _plain(evidence: Evidence, external: RobustCount | None) -> JudgedNumber:
    """What would have been reported: by the stored images, else by FGSM and PGD-20, whichever is lower; at most, where samples are open."""
    n, open_ = len(evidence.correct()), int(evidence.unclassified().sum())
    if external is not None:
        return JudgedNumber(external.most / n, "accuracy on the stored images")
    shares = [
        (int(robust.sum()) + open_) / n
        for name in ("fgsm", "pgd1", "pgd20")
        if (robust := evidence.robust(name, best=False)) is not None
    ]
    return JudgedNumber(min(shares) if shares else None, "what FGSM and PGD-20 report")


def _steps(evidence: Evidence) -> list[tuple[str, float]]:
    """What is left after each step of the audit, all attacks before it counted; at most, where samples are open."""
    left = evidence.correct() | evidence.unclassified()
    n, steps = len(left), [("right without attack", float(left.mean()))]
    given = [each.column for each in evidence.external]
    if (external := evidence.external_bounds()) is not None:
        steps.append(("on the stored images", external.most / n))
    left &= ~_broken(evidence, given, n)
    columns = [name for name in evidence.columns() if name not in given]
    plain = [name for name in columns if name in ("fgsm", "pgd1", "pgd20")]
    others = [name for name in columns if name not in plain and steps_of(name)]
    late = [name for name in columns if name not in plain and name not in others and name != CONSEQUENCES]
    groups = [("FGSM and PGD-20, white-box, what they came across", plain), ("more steps, starts and losses", others)]
    groups += [("AutoAttack, on what was left" if name == REST else title(name), [name]) for name in late]
    for step, names in groups:
        left &= ~_broken(evidence, names, n)
        if names:
            steps.append((step, float(left.mean())))
    stages = evidence.runs[AUDITED_RADIUS].stages.get(CONSEQUENCES, [])
    for stage in stages:
        left &= ~_broken(evidence, [stage], n)
        steps.append((f"{title(stage.partition('/')[2])}, called for by a finding", float(left.mean())))
    return steps


def _broken(evidence: Evidence, names: list[str], n: int) -> np.ndarray:
    broken = np.zeros(n, dtype=bool)
    for name in names:
        rows = evidence.rows(name)
        if rows is not None:
            broken |= rows["best"].to_numpy() == Outcome.BROKEN
    return broken


def verdict_line(verdict: Verdict) -> str:
    """The verdict in one sentence."""
    left = (
        percent(verdict.robust / verdict.n)
        if verdict.robust == verdict.most
        else (f"{percent(verdict.robust / verdict.n)} to {percent(verdict.most / verdict.n)}")
    )
    which = "" if verdict.all_ran else " that was run"
    left_text = f"{left} % of {verdict.n:,} samples survive every attack on the model itself{which}"
    if verdict.claim is None:
        return f"**Not established.** {left_text}."
    claim_text = f"{percent(verdict.claim)} % ({verdict.claimed})"
    bounds = f"95 % interval {percent(verdict.low)} to {percent(verdict.high)}, n = {verdict.n:,}"
    by = f"judged against {verdict.against}: {bounds}"
    return f"**{verdict.word[0].upper()}{verdict.word[1:]}: {claim_text}.** {left_text}; {by}."
