"""Checks that compare verdicts on the same samples, or look at what the attacks spent; pure functions of the evidence."""

from __future__ import annotations

import numpy as np

from robench.audit.evidence import AUDITED_RADIUS, Evidence
from robench.audit.rules import (
    GRADIENT_FREE,
    gap_finding,
    left_at,
    missing,
    probed,
    reading,
    rises,
    stronger_than,
    survivors,
    two,
    unknown,
)
from robench.norms import NORMS
from robench.report.accuracy import title
from robench.report.paired import paired
from robench.types import Finding, Level

REST = "autoattack-rest"
TRANSFER = "pgd50@"
WHITE_BOX = (
    "fgsm",
    "pgd7",
    "pgd20",
    "pgd50",
    "pgd100",
    "pgd50-ce",
    "pgd50-margin",
    "pgd50-dlr",
    "pgd50-rescaled",
    "pgd50-float64",
    "pgd50-eot",
    "pgd20(restarts=5)",
)


def one_step(evidence: Evidence) -> Finding:
    """Many small steps must break at least what one large step breaks."""
    single = NORMS[evidence.norm].single_step
    return two(
        evidence, "pgd20", single, best=False, warn=0.01, fail=0.0,
        says="a single step breaks more than twenty: the steps do not follow the loss", fine="twenty steps break what one breaks",
        text=f"accuracy under PGD-20 minus that under {title(single)}", calls_for=GRADIENT_FREE,
    )  # fmt: skip


def steps_help(evidence: Evidence) -> Finding:
    """Accuracy must not rise with the number of steps."""
    points = [(title(name), evidence.robust(name, best=False)) for name in ("pgd7", "pgd20", "pgd50", "pgd100")]
    return rises(evidence, points, "steps", "more steps help the defender: the steps do not follow the loss", "it falls with steps")


RADII = ("half", AUDITED_RADIUS, "x2", "x4", "large", "unbounded")


def eps_helps(evidence: Evidence) -> Finding:
    """Accuracy must not rise with eps."""
    radii = sorted((evidence.runs[at].description["threat"]["eps"], at) for at in RADII if at in evidence.runs)
    points = [(f"{eps:.3g}", evidence.robust("pgd20", best=False, at=at)) for eps, at in radii]
    return rises(evidence, points, "eps", "a larger ball helps the defender: the attack loses its way in it", "it falls with eps")


def large_eps(evidence: Evidence) -> Finding:
    """At half of the pixel range an image can be made plain gray: nothing above chance can survive."""
    return left_at(evidence, "large", 1 / evidence.classes, "chance")


def unbounded(evidence: Evidence) -> Finding:
    """An unbounded attack must reach zero."""
    return left_at(evidence, "unbounded", 0.0, "zero")


def black_box(evidence: Evidence) -> Finding:
    """Square, which sees no gradient, must add nothing to PGD and APGD."""
    left = survivors(evidence, WHITE_BOX)
    for stage in ("apgd-ce", "apgd-t"):
        hit = evidence.broken(f"{REST}/{stage}")
        left = left if left is None or hit is None else left & ~hit
    return stronger_than(
        evidence, left, evidence.broken(f"{REST}/square"), what="Square", over="every white-box attack", fail=0.005
    )


def transfer_breaks(evidence: Evidence) -> Finding:
    """Images of another model must not break what attacks on this one left."""
    external = {each.column for each in evidence.external}
    columns = [name for name in evidence.columns() if name.startswith(TRANSFER) and name not in external]
    hits = [hit for name in columns if (hit := evidence.broken(name)) is not None]
    if not hits:
        return unknown("no attack was crafted on a sibling (`robench audit --sibling`)")
    names = " and ".join(title(name) for name in columns)
    return stronger_than(
        evidence,
        survivors(evidence, WHITE_BOX),
        np.logical_or.reduce(hits),
        what=names,
        over="attacks on the model itself",
        fail=0.005,
    )


def noise_breaks(evidence: Evidence) -> Finding:
    """Noise must not break what PGD left."""
    return stronger_than(evidence, survivors(evidence, WHITE_BOX), evidence.broken("noise"), what="noise", over="PGD", fail=0.005)


def zero_gradients(evidence: Evidence) -> Finding:
    """Gradients of the loss at the image and near it must not vanish."""
    failed = [name for name, message in evidence.failed().items() if "passes no gradient" in message]
    if failed:
        return reading(
            Level.FAIL,
            "the model passes no gradient: gradient attacks say nothing about it",
            f"{title(failed[0])} failed: {evidence.failed()[failed[0]]}",
            statistic=1.0,
            threshold=0.0,
            calls_for=("pgd50-bpda", *GRADIENT_FREE),
        )
    return probed(
        evidence, "gradients", "zero", warn=0.0, fail=0.05, what="share of correct samples without any gradient",
        says="the loss has no gradient: gradient attacks stand still", fine="every sample has a gradient",
        calls_for=("pgd50-rescaled", "pgd50-bpda", *GRADIENT_FREE),
    )  # fmt: skip


def ce_zero(evidence: Evidence) -> Finding:
    """Cross-entropy that is exactly zero in float32 is saturated."""
    return probed(
        evidence, "gradients", "ce zero", warn=0.0, fail=0.5, what="share of correct samples with a cross-entropy of exactly 0",
        says="cross-entropy is saturated in float32: attacks on it are blunt", fine="cross-entropy is above zero",
        calls_for=("pgd50-rescaled",),
    )  # fmt: skip


def rescaling(evidence: Evidence) -> Finding:
    """Dividing large logits must not help the attack."""
    return two(
        evidence, "pgd50-ce", "pgd50-rescaled", warn=0.002, fail=0.002, says="dividing the logits helps the attack: cross-entropy had underflowed",
        fine="dividing large logits changes nothing", text="PGD-50 as it is against logits brought to a margin of 10",
        calls_for=("pgd50-rescaled", "pgd50-margin"),
    )  # fmt: skip


def precision(evidence: Evidence) -> Finding:
    """Computing in float64 must not help the attack."""
    return two(
        evidence, "pgd50-ce", "pgd50-float64", warn=0.002, fail=0.002, says="float64 helps the attack: float32 had lost the gradient",
        fine="float64 changes nothing", text="PGD-50 in float32 against float64", calls_for=("pgd50-float64", "pgd50-rescaled"),
    )  # fmt: skip


def loss_swap(evidence: Evidence) -> Finding:
    """Another loss must not break much more than cross-entropy."""
    gaps = {name: gap for name in ("pgd50-margin", "pgd50-dlr") if (gap := evidence.compare("pgd50-ce", name)) is not None}
    if not gaps:
        return missing(evidence, "pgd50-ce", "pgd50-margin", "pgd50-dlr")
    name, gap = max(gaps.items(), key=lambda item: item[1].difference)
    return gap_finding(
        gap, warn=0.02, fail=0.1, says="another loss breaks more than cross-entropy: attacks on cross-entropy alone leave too much",
        fine="other losses break as much", text=f"PGD-50 on cross-entropy against {title(name)}", among=len(gaps), calls_for=("pgd100-margin",),
    )  # fmt: skip


def more_steps(evidence: Evidence) -> Finding:
    """Twice the steps must add nothing."""
    return two(
        evidence, "pgd50", "pgd100", warn=0.002, fail=0.01, says="the attack had not converged: twice the steps break more",
        fine="twice the steps add nothing", text="PGD-50 against PGD-100", calls_for=("pgd100-margin",),
    )  # fmt: skip


def restarts(evidence: Evidence) -> Finding:
    """Restarts must add little."""
    return two(
        evidence, "pgd20", "pgd20(restarts=5)", warn=0.002, fail=0.02, says="the start decides: restarts break more",
        fine="restarts add nothing", text="PGD-20 against the best of five starts", calls_for=("pgd100-margin",),
    )  # fmt: skip


def silent_success(evidence: Evidence) -> Finding:
    """An attack must return the adversarial image that it came across."""
    for column in ("pgd50", "pgd20"):
        returned, best = evidence.robust(column, best=False), evidence.robust(column)
        if returned is not None and best is not None:
            return gap_finding(
                paired(returned, best), warn=0.0, fail=0.005, says="the attack came across adversarial images and returned others: its number is too high",
                fine="what it found, it returned", text=f"{title(column)} by what it returned against what it came across",
                calls_for=("pgd50-ce",),
            )  # fmt: skip
    return missing(evidence, "pgd50", "pgd20")
