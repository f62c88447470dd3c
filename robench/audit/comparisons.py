"""Checks that compare verdicts on the same samples, or look at what the attacks spent; pure functions of the evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from robench.audit.evidence import MAIN, Evidence
from robench.audit.readings import (
    GRADIENT_FREE,
    gap_finding,
    left_at,
    missing,
    probed,
    rises,
    stronger_than,
    survivors,
    two,
    unknown,
)
from robench.report.paired import paired
from robench.report.tables import percent, title
from robench.types import Finding, Level, Outcome

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


def provenance(evidence: Evidence) -> Finding:
    """Stored images must have been crafted on the weights that they are used against."""
    if not evidence.stored:
        if evidence.claimed:
            return unknown(
                "nobody gave the images that the claim came from (--adv); those of this audit were crafted on the judged weights"
            )
        return Finding("", Level.PASS, "every image was crafted on the judged weights", f"weights {evidence.model[:12]}", "")
    said, worst = [], Level.PASS
    for stored in evidence.stored:
        if not stored.weights:
            level, text = Level.UNKNOWN, f"{stored.column}: nobody says what it was crafted on; --source names the model"
        elif stored.heads:
            level, text = Level.FAIL, f"{stored.column}: crafted on the heads {', '.join(stored.heads)}, not on the judged one"
        elif stored.weights != evidence.model:
            level = Level.PASS if evidence.protocol == "transfer" else Level.FAIL
            text = (
                f"{stored.column}: crafted on {stored.source or 'a model'} (weights {stored.weights[:12]}), evaluated on weights "
                f"{evidence.model[:12]}"
            )
        else:
            level, text = Level.PASS, f"{stored.column}: crafted on the evaluated weights {evidence.model[:12]}"
        said.append(text)
        worst = min(worst, level, key=Level.ALL.index)
    words = {
        Level.FAIL: "the stored images attack something else than the judged model: their accuracy is transfer, not robustness",
        Level.UNKNOWN: "where the stored images come from is not known",
        Level.PASS: "the stored images come from where the claim says",
    }
    return Finding("", worst, words[worst], "; ".join(said), "")


def transfer_gap(evidence: Evidence) -> Finding:
    """Stored images against a fresh PGD-20 on the model itself."""
    if not evidence.stored:
        return unknown("no stored images were given (--adv)")
    gaps = {each.column: evidence.compare(each.column, "pgd20") for each in evidence.stored}
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    if not known:
        return missing(evidence, *gaps, "pgd20")
    name, gap = max(known.items(), key=lambda item: item[1].difference)
    agreement = evidence.probes.get("sign-agreement", {}).get(name)
    own = evidence.probes.get("sign-agreement", {}).get("own")
    text = (
        ""
        if agreement is None
        else f", sign agreement with the model's own gradient {agreement:.3f} (own PGD {own:.3f}, chance 0.5)"
    )
    found = gap_finding(
        gap, warn=0.01, fail=0.01,
        says="the stored images are far weaker than a fresh attack on the model itself: they were crafted elsewhere, or with less effort",
        fine="the stored images are as strong as a fresh attack",
        text=f"{title(name)} against fresh PGD-20{text}",
        among=len(known),
    )  # fmt: skip
    if evidence.protocol == "transfer" and found.level == Level.FAIL:
        return replace(found, level=Level.WARN, says="as a claim of transfer says: an attack on the model itself leaves far less")
    return found


def one_step(evidence: Evidence) -> Finding:
    """Many small steps must break at least what one large step breaks."""
    single = "fgsm" if evidence.norm == "Linf" else "pgd1"
    return two(
        evidence, "pgd20", single, best=False, warn=0.01, fail=0.0,
        says="a single step breaks more than twenty: the steps do not follow the loss", fine="twenty steps break what one breaks",
        text=f"accuracy under PGD-20 minus that under {title(single)}", calls_for=GRADIENT_FREE,
    )  # fmt: skip


def steps_help(evidence: Evidence) -> Finding:
    """Accuracy must not rise with the number of steps."""
    points = [(title(name), evidence.robust(name, best=False)) for name in ("pgd7", "pgd20", "pgd50", "pgd100")]
    return rises(evidence, points, "steps", "more steps help the defender: the steps do not follow the loss", "it falls with steps")


RADII = ("half", MAIN, "x2", "x4", "large", "unbounded")


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
    return stronger_than(evidence, left, evidence.broken(f"{REST}/square"), "Square", "every white-box attack", 0.002)


def transfer_breaks(evidence: Evidence) -> Finding:
    """Images of another model must not break what attacks on this one left."""
    stored = {each.column for each in evidence.stored}
    columns = [name for name in evidence.columns() if name.startswith(TRANSFER) and name not in stored]
    hits = [hit for name in columns if (hit := evidence.broken(name)) is not None]
    if not hits:
        return unknown("no attack was crafted on a sibling (--sibling)")
    names = " and ".join(title(name) for name in columns)
    return stronger_than(
        evidence, survivors(evidence, WHITE_BOX), np.logical_or.reduce(hits), names, "attacks on the model itself", 0.002
    )


def noise_breaks(evidence: Evidence) -> Finding:
    """Noise must not break what PGD left."""
    return stronger_than(evidence, survivors(evidence, WHITE_BOX), evidence.broken("noise"), "noise", "PGD", 0.002)


def zero_gradients(evidence: Evidence) -> Finding:
    """Gradients of the loss at the image and near it must not vanish."""
    failed = [name for name, message in evidence.failed().items() if "passes no gradient" in message]
    if failed:
        return Finding(
            "", Level.FAIL, "the model passes no gradient: gradient attacks say nothing about it", f"{title(failed[0])} failed: {evidence.failed()[failed[0]]}",
            "", 1.0, 0.0, calls_for=("pgd50-bpda", *GRADIENT_FREE),
        )  # fmt: skip
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
        fine="float64 changes nothing", text="PGD-50 in float32 against float64", calls_for=("pgd50-float64", "pgd50-rescaled", "pgd50-float64", "pgd50-eot",
    "pgd20(restarts=5)",
),
    )  # fmt: skip


def loss_swap(evidence: Evidence) -> Finding:
    """Another loss must not break much more than cross-entropy."""
    gaps = {name: gap for name in ("pgd50-margin", "pgd50-dlr") if (gap := evidence.compare("pgd50-ce", name)) is not None}
    if not gaps:
        return missing(evidence, "pgd50-ce", "pgd50-margin", "pgd50-dlr")
    name, gap = max(gaps.items(), key=lambda item: item[1].difference)
    return gap_finding(
        gap, warn=0.02, fail=0.1, says="another loss breaks much more than cross-entropy: the loss is masked, not the model robust",
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


def budget(evidence: Evidence) -> Finding:
    """An attack must spend its steps and its radius."""
    results = evidence.runs[MAIN]
    shares = {}
    correct = int(evidence.correct().sum())
    for suite in results.description["suites"]:
        name, params = suite["name"], suite["members"][0]["params"]
        ledger = results.ledger[results.ledger["attack"] == name]
        if name in evidence.failed() or not correct:
            continue
        if name.startswith("pgd") and params.get("random_start") and not (ledger["mode"] != "").any() and params["restarts"] == 1:
            shares[f"{title(name)} steps"] = ledger["backwards"].sum() / (correct * params["steps"])
    eps = results.description["threat"]["eps"]
    for name in ["pgd20", *(each.column for each in evidence.stored)]:
        rows = evidence.rows(name)
        if rows is not None and eps:
            # Where an attack finds nothing some keep the clean image, so that those who moved farthest tell.
            moved = rows["distance"][rows["outcome"].isin((Outcome.ROBUST, Outcome.BROKEN))]
            if len(moved):
                shares[f"{title(name)} radius"] = float(moved.quantile(0.9)) / eps
    if not shares:
        return unknown("no PGD of the audit ran to its end")
    name, least = min(shares.items(), key=lambda item: item[1])
    level = Level.FAIL if least < 0.5 else Level.WARN if least < 0.9 else Level.PASS
    return Finding(
        "", level, "an attack did not spend what it was given: its number says little" if level != Level.PASS else "steps and radius were spent",
        "; ".join(f"{name} {share:.2f}" for name, share in shares.items()), "", 1 - least, 0.5 if level == Level.FAIL else 0.1,
    )  # fmt: skip


def randomness(evidence: Evidence) -> Finding:
    """A model that answers differently each time must be attacked in expectation."""
    found = evidence.probes.get("repeats", {})
    if found.get("differs") is None:
        return unknown(str(found.get("failed") or "the probe repeats was not run"))
    if evidence.draws == 1:
        return Finding(
            "",
            Level.PASS,
            "the same image gets the same answer",
            f"largest change of a logit {found['differs']:.2g}",
            "",
            found["differs"],
            1e-4,
        )
    text = f"{percent(found['flips'])} % of the predictions change from draw to draw"
    gap = evidence.compare("pgd50-margin", "pgd50-eot")
    if gap is None:
        return Finding(
            "", Level.WARN, "the model is random: verdicts are by the majority of 100 draws, and attacks must average over draws", text, "",
            found["flips"], 1e-4, calls_for=("pgd50-eot",),
        )  # fmt: skip
    judged = gap_finding(
        gap, warn=0.0, fail=0.01, says="randomness hides the gradient: averaging over draws breaks more",
        fine="", text=f"{text}; PGD-50 with one draw a step against twenty", calls_for=("pgd50-eot",),
    )  # fmt: skip
    if judged.level == Level.FAIL:
        return judged
    says = "the model is random, and averaging over draws breaks no more: judged by the majority of 100 draws"
    return replace(judged, level=Level.WARN, says=says, calls_for=("pgd50-eot",))


def ceiling(evidence: Evidence) -> Finding:
    """Without adversarial training nobody has come near those who have it."""
    best = PUBLISHED_BEST.get((evidence.dataset, evidence.norm, evidence.eps_text))
    if best is None:
        return unknown(f"no published ceiling for {evidence.dataset}, {evidence.norm} {evidence.eps_text}")
    _, most = evidence.union(evidence.columns())
    share = most / len(evidence.correct())
    text = f"{percent(share)} % survive, the best published ResNet-18 keeps {percent(best)} % with adversarial training"
    if evidence.defended is None:
        return unknown(f"{text}; nobody says how this one was trained")
    level = Level.WARN if share > best and not evidence.defended else Level.PASS
    return Finding(
        "", level, "more robust than anything published, without adversarial training" if level == Level.WARN else "not above what is published",
        text, "", share, best, calls_for=GRADIENT_FREE if level == Level.WARN else (),
    )  # fmt: skip


# RobustBench, best ResNet-18 under AutoAttack; our reading of its leaderboard.
PUBLISHED_BEST = {("cifar10", "Linf", "8/255"): 0.5850, ("cifar100", "Linf", "8/255"): 0.2888}
