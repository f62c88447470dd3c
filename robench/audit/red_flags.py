"""Checks that need no attack of their own: numbers that no model can have, or that it has not twice."""

from __future__ import annotations

from robench.audit.evidence import AUDITED_RADIUS, Evidence
from robench.audit.rules import NEGLIGIBLE, reading, unknown
from robench.evaluation.run_folder import CLEAN
from robench.report.accuracy import interval, percent, title
from robench.report.paired import paired
from robench.types import Finding, Level


def above_natural(evidence: Evidence) -> Finding:
    """Nothing is more often right under attack than without: neither a claim nor stored images."""
    right = evidence.correct() | evidence.unclassified()
    n, natural = len(right), int(right.sum())
    level, text = Level.PASS, [f"{percent(natural / n)} % are right without attack"]
    if evidence.claim is not None:
        above = evidence.claim * n - natural > NEGLIGIBLE
        level = Level.FAIL if above and evidence.claim > interval(natural, n).high else Level.WARN if above else Level.PASS
        text.append(f"claimed are {percent(evidence.claim)} %")
    for each in evidence.external:
        rows, clean = evidence.rows(each.column), evidence.rows(CLEAN)
        if rows is None or clean is None:
            continue
        gap = paired((rows["adv_pred"] == rows["label"]).to_numpy(), (clean["clean_pred"] == clean["label"]).to_numpy())
        if gap.only_first - gap.only_second > NEGLIGIBLE:
            level = Level.FAIL if gap.low > 0 else min(level, Level.WARN, key=list(Level).index)
        text.append(f"on {title(each.column)} {100 * gap.difference:+.1f} points, {gap}")
    says = "more is right under attack than without: the images or the labels are not what the number says"
    return reading(level, says if level != Level.PASS else "nothing is above the accuracy without attack", "; ".join(text))


def eps_zero(evidence: Evidence) -> Finding:
    """At eps 0 the accuracy is the natural one: every other radius asks about the same images without attack once more."""
    clean, changed = evidence.rows(CLEAN), {}
    for at in evidence.runs:
        again = evidence.rows(CLEAN, at) if at != AUDITED_RADIUS else None
        if again is not None and clean is not None:
            n = min(len(clean), len(again))
            changed[at] = (int((clean["outcome"].to_numpy()[:n] != again["outcome"].to_numpy()[:n]).sum()), n)
    if not changed:
        return unknown("the images were classified only once")
    at, (count, n) = max(changed.items(), key=lambda item: item[1][0] / item[1][1])
    sure = count > NEGLIGIBLE and interval(count, n).low > 0.01
    level = Level.FAIL if sure else Level.WARN if count > NEGLIGIBLE else Level.PASS
    says = "the same images without attack are not right twice: the model keeps something from what it was asked before"
    return reading(
        level, says if level != Level.PASS else "accuracy at eps 0 is the natural one",
        f"{count:,} of {n:,} samples without attack are judged otherwise when asked again (beside the radius {at})",
        statistic=count / n, threshold=0.01 if level == Level.FAIL else NEGLIGIBLE / n,
    )  # fmt: skip
