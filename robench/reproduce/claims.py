"""The paper's claims, and whether they hold, in words computed from verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from robench.report.accuracy import UNION, Interval, percent
from robench.report.paired import paired
from robench.report.published import ROBUSTBENCH
from robench.reproduce.measured import Measured
from robench.reproduce.plan import ATTACKS, AUTOATTACK, PUBLISHED

REFUTED_BY = 0.05  # a number is refuted where the upper bound lies further below it than this
POINT = 0.01  # less than this between two models is no difference worth a claim
PGD7, PGD20 = 1 + ATTACKS.index("pgd7"), 1 + ATTACKS.index("pgd20")  # places in ``PUBLISHED``


def claims(dataset: str, models: list[Measured]) -> Iterator[str]:
    """Each claim with its verdict and the evidence, in markdown.

    Args:
        dataset: of the table.
        models: the finished models on it.
    """
    evaluated = [measured for measured in models if measured.has_stored]
    first = {measured.model.arch: measured for measured in evaluated if measured.model.role == "paper" and measured.model.seed == 0}
    if "single" not in first:
        return
    for arch in ("contrastive", "supervised"):
        if arch in first:
            yield from _of_variant(dataset, first[arch], first["single"])
    if "contrastive" in first and "supervised" in first:
        yield _contrastive_or_supervised(first["contrastive"], first["supervised"])
    if "contrastive" in first and dataset in ROBUSTBENCH:
        yield _state_of_the_art(dataset, first["contrastive"])
    trained = [measured for measured in models if measured.model.role == "adversarial"]
    if "contrastive" in first and trained:
        yield _without_adversarial_training(first["contrastive"], trained)
    for measured in evaluated:
        if measured.model.role in ("views", "second seed"):
            yield _undefended_control(measured)
        if measured.model.role == "paper" and measured.model.seed != 0 and measured.model.arch in first:
            yield _other_seed(dataset, measured, first[measured.model.arch])


def verdict(claim: float, low: float, high: float) -> str:
    """What an interval says about a claimed accuracy: refuted, weakened, supported or exceeded."""
    if high < claim - REFUTED_BY:
        return "refuted"
    return "weakened" if high < claim else "supported" if low <= claim else "exceeded"


def _of_variant(dataset: str, measured: Measured, single: Measured) -> Iterator[str]:
    published = PUBLISHED.get(dataset, {}).get(measured.model.arch)
    name = measured.model.title.capitalize()
    if published:
        claim = published[PGD20] / 100
        yield (
            f"**{name} keeps {percent(claim)} % under PGD-20.** As a white-box number: **{verdict(claim, *measured.bounds('pgd20'))}**, "
            f"{_share(measured, 'pgd20')} of all test images survive PGD-20 on the model itself and {_share(measured, UNION)} survive every attack "
            f"({percent(measured.accuracy('clean'))} % are right without any). As what it was, transfer from the single-task model: "
            f"**{verdict(claim, *measured.bounds('pgd20', stored=True))}**, ours is {_share(measured, 'pgd20', stored=True)}."
        )
        gain = (published[PGD7] - PUBLISHED[dataset]["single"][PGD7]) / 100
        real = _difference(measured.correct("pgd7"), single.correct("pgd7"))
        seeming = measured.accuracy("pgd7", stored=True) - single.accuracy("pgd7")
        yield (
            f"**{100 * gain:+.1f} points over the single-task model (PGD-7).** With both attacked alike: **{verdict(gain, *real.interval)}**, "
            f"{100 * real.value:+.2f} points [{100 * real.interval.low:.2f}, {100 * real.interval.high:.2f}]. With the single-task model attacked and the other evaluated on its "
            f"images: {100 * seeming:+.1f}."
        )
    change = _difference(measured.correct("clean"), single.correct("clean"))
    by_how_much = ""
    if published:
        claimed = published[0] - PUBLISHED[dataset]["single"][0]
        holds = change.interval.low > 0 if claimed > 0 else change.interval.high < 0
        by_how_much = f" by {claimed:+.1f} points.** The direction **{'holds' if holds else 'does not hold'}**: ours"
    yield (
        f"**Natural accuracy changes{by_how_much or '.** Ours'} is {100 * change.value:+.1f} points "
        f"[{100 * change.interval.low:.1f}, {100 * change.interval.high:.1f}] "
        f"({measured.model.title} against single-task; {paired(measured.correct('clean'), single.correct('clean'))})."
    )


def _contrastive_or_supervised(contrastive: Measured, supervised: Measured) -> str:
    first, second = contrastive.correct(UNION), supervised.correct(UNION)
    gain = _difference(first, second)
    holds = gain.interval.low > 0 and gain.value >= POINT
    one, two = (measured.accuracy("pgd20", stored=True) for measured in (contrastive, supervised))
    return (
        f"**Contrastive is more robust than supervised.** White-box, all attacks together: **{'holds' if holds else 'does not hold'}**, "
        f"{percent(contrastive.accuracy(UNION))} against {percent(supervised.accuracy(UNION))} % ({paired(first, second)}). Under the paper's "
        f"protocol: {percent(one)} against {percent(two)} % "
        f"({paired(contrastive.correct('pgd20', stored=True), supervised.correct('pgd20', stored=True))})."
    )


def _state_of_the_art(dataset: str, measured: Measured) -> str:
    accuracy, high = measured.accuracy(UNION), measured.bounds(UNION).high
    weakest, best = ROBUSTBENCH[dataset]
    word = "Holds" if 100 * accuracy >= best else "Not refuted" if 100 * high >= best else "Does not hold"
    return (
        f"**State of the art.** **{word}**: {percent(accuracy)} % survive (at most {100 * high:.2f} %, the upper 95 % bound), where "
        f"RobustBench's adversarially trained ResNet-18s keep {weakest} to {best} % under AutoAttack on the same threat model."
    )


def _without_adversarial_training(measured: Measured, trained: list[Measured]) -> str:
    controls = "; ".join(
        f"{other.model.title} {_share(other, AUTOATTACK)} under AutoAttack, natural {percent(other.accuracy('clean'))}, n = {other.n:,}{_epochs(other, measured)}"
        for other in trained
    )
    control = next((other for other in trained if other.model.arch == "single"), trained[0])
    if control.accuracy(UNION) < REFUTED_BY:
        word = "Cannot be told: the control itself is not robust"
    else:
        word = "Holds" if measured.accuracy(UNION) >= control.accuracy(UNION) else "Does not hold"
    return f"**Robust without adversarial training.** **{word}**: {_share(measured, UNION)} white-box, the same backbone with it: {controls}."


def _epochs(control: Measured, measured: Measured) -> str:
    """That a control was trained for longer or shorter than what it is compared with, or ""."""
    control_epochs, others = control.origin["recipe"]["epochs"], measured.origin["recipe"]["epochs"]
    return "" if control_epochs == others else f", {control_epochs} epochs (against {others})"


def _undefended_control(measured: Measured) -> str:
    return (
        f"**Control: {measured.model.title}.** No second head and no defence of any kind: {_share(measured, 'pgd20', stored=True)} under the paper's protocol "
        f"(PGD-20), {_share(measured, UNION)} white-box."
    )


def _other_seed(dataset: str, measured: Measured, same: Measured) -> str:
    """The same training begun elsewhere; the model of seed 0 shares first weights and the order of images with the one that was attacked."""
    published = PUBLISHED.get(dataset, {}).get(measured.model.arch)
    judged = (
        f" (published {published[PGD20]}: **{verdict(published[PGD20] / 100, *measured.bounds('pgd20', stored=True))}**)"
        if published
        else ""
    )
    return (
        f"**Control: {measured.model.title}.** Under the paper's protocol (PGD-20) {_share(measured, 'pgd20', stored=True)}{judged}, where the model with "
        f"the seed of the single-task one, and so with its backbone's first weights and its order of images, has {_share(same, 'pgd20', stored=True)}. "
        f"White-box {_share(measured, UNION)}."
    )


def _share(measured: Measured, attack: str, *, stored: bool = False) -> str:
    low, high = measured.bounds(attack, stored=stored)
    return f"{percent(measured.accuracy(attack, stored=stored))} % [{100 * low:.2f}, {100 * high:.2f}]"


class Difference(NamedTuple):
    """Of two shares of the same samples, a fraction, with its 95 % interval."""

    value: float
    interval: Interval


def _difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """How much more often the first is correct."""
    gap = paired(first, second)
    return Difference(gap.difference, Interval(gap.low, gap.high))
