"""CHECKS: what gives a false robustness number away, each a function of the evidence and one line in the registry.

Thresholds are those of the sources; where it says "calibrated", see reports/audit/README.md for the models and the margin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from robench.audit import comparisons, protocol, red_flags
from robench.audit.evidence import Evidence
from robench.audit.panel import AVERAGED
from robench.audit.rules import GRADIENT_FREE, probed, unknown
from robench.report.paired import holm, p_text
from robench.types import Finding, Level

CONFIDENCE = 0.05  # of the exact tests, after Holm's correction
ATHALYE = "Athalye et al. 2018, section 3.1"
CARLINI = "Carlini et al. 2019, section 5"
AUTOATTACK = "Croce & Hein 2020; AutoAttack's own flag"
PINTOR = "Pintor et al. 2022"
OURS = "robench, calibrated on the controls"
# They hold something against all that attacks with gradients left: one of those that is missing could clear the model.
ACQUITTED_BY_MORE = ("noise", "black-box", "sibling", "large-eps", "unbounded")


@dataclass(frozen=True)
class Check:
    """One registered check.

    Attributes:
        judge: reads the evidence.
        about: what an honest model shows.
        source: who proposed it.
    """

    judge: Callable[[Evidence], Finding]
    about: str
    source: str


def run_checks(evidence: Evidence) -> list[Finding]:
    """Every check, with p-values corrected over the panel, the gravest first.

    A failure that rests on a paired test which is not significant after the correction becomes a warning.
    """
    findings = [
        _with_reason(replace(check.judge(evidence), check=name, source=check.source), evidence) for name, check in CHECKS.items()
    ]
    tested = [place for place, finding in enumerate(findings) if finding.p is not None]
    for place, p in zip(tested, holm([findings[place].p or 0.0 for place in tested]), strict=True):
        finding = findings[place]
        level = Level.WARN if finding.level == Level.FAIL and p > CONFIDENCE else finding.level
        findings[place] = replace(finding, level=level, p_corrected=p, evidence=f"{finding.evidence}; corrected {p_text(p)}")
    return sorted(findings, key=lambda finding: list(Level).index(finding.level))


def _with_reason(finding: Finding, evidence: Evidence) -> Finding:
    """A check that an experiment is missing for is unknown, and says which and how to run that. It fails or warns all the same where more
    experiments cannot take that back."""
    missed = [each for each in evidence.missed if finding.check in each.feeds]
    if not missed or (finding.level in (Level.FAIL, Level.WARN) and finding.check not in ACQUITTED_BY_MORE):
        return finding
    why = "; ".join(f"{each.name}: {each.why}" for each in missed)
    run = f"; {evidence.remedy}" if any(each.seconds for each in missed) else ""
    return replace(unknown(f"{why}{run}"), check=finding.check, source=finding.source)


def _probe_check(probe: str, statistic: str, **judged: Any) -> Callable[[Evidence], Finding]:
    return partial(probed, probe=probe, statistic=statistic, **judged)


CHECKS: dict[str, Check] = {
    "provenance": Check(protocol.provenance, "stored images were crafted on the judged weights", f"{PINTOR}, I5"),
    "transfer-gap": Check(protocol.transfer_gap, "stored images are as strong as fresh ones", OURS),
    "one-step": Check(comparisons.one_step, "iterative attacks beat one step", ATHALYE),
    "steps": Check(comparisons.steps_help, "accuracy falls with steps", CARLINI),
    "eps": Check(comparisons.eps_helps, "accuracy falls with eps", CARLINI),
    "eps-zero": Check(red_flags.eps_zero, "accuracy at eps 0 is the natural one", OURS),
    "above-natural": Check(red_flags.above_natural, "nothing is above the accuracy without attack", OURS),
    "large-eps": Check(comparisons.large_eps, "chance at eps 0.5", CARLINI),
    "unbounded": Check(comparisons.unbounded, "zero without a bound", ATHALYE),
    "black-box": Check(comparisons.black_box, "Square adds nothing to the white-box attacks", AUTOATTACK),
    "sibling": Check(comparisons.transfer_breaks, "images of another model add nothing to attacks on this one", CARLINI),
    "noise": Check(comparisons.noise_breaks, "noise adds nothing to PGD", CARLINI),
    "zero-gradients": Check(comparisons.zero_gradients, "gradients do not vanish", AUTOATTACK),
    "saturation": Check(comparisons.ce_zero, "cross-entropy is not exactly zero", OURS),
    "rescaling": Check(comparisons.rescaling, "dividing the logits changes nothing", OURS),
    "float64": Check(comparisons.precision, "float64 changes nothing", OURS),
    "loss-swap": Check(comparisons.loss_swap, "other losses break no more", OURS),
    "more-steps": Check(comparisons.more_steps, "the attack has converged", CARLINI),
    "restarts": Check(comparisons.restarts, "the start does not matter", CARLINI),
    "silent-success": Check(comparisons.silent_success, "attacks return what they find", f"{PINTOR}, I3"),
    "incomplete": Check(
        _probe_check(
            "trajectory", "still falling", warn=0.05, fail=0.2, what="mean fall of the normalised loss over the last 10 of 50 steps",
            says="the attack was still making progress when it ended", fine="the attack had come to rest", calls_for=("pgd100-margin",),
        ),
        "the attack comes to rest", f"{PINTOR}, I4",
    ),
    "unstable": Check(
        _probe_check(
            "neighbourhood", "change", warn=0.1, fail=0.2, what="mean relative change of the margin within half of eps",
            says="the loss changes much from point to point: gradients reach not far", fine="the loss is smooth", calls_for=GRADIENT_FREE,
        ),
        "the loss is smooth around images", f"{PINTOR}, I2",
    ),
    "randomness": Check(protocol.randomness, "the same image gets the same answer, or attacks average", ATHALYE),
    "train-mode": Check(
        _probe_check(
            "state", "changed", warn=0.0, fail=0.0, what="buffers that a forward pass changes",
            says="a forward pass changes the model: part of it is in training mode", fine="a forward pass changes nothing",
        ),
        "forward passes leave the model alone", OURS,
    ),
    "batch-dependence": Check(
        _probe_check(
            "batch", "differs", warn=1e-3, fail=1e-2, what="largest change of a logit, relative, between a batch and one image",
            says="an image's class depends on what else is in the batch", fine="images are classified by themselves",
        ),
        "an image is classified alone as in a batch", OURS,
    ),
    "softmax-outputs": Check(
        _probe_check(
            "outputs", "probabilities", warn=0.5, fail=0.99, what="share of outputs that are probabilities",
            says="the model returns probabilities: attacks on cross-entropy take a second softmax of them", fine="outputs are logits",
            calls_for=("pgd50-log", "pgd50-margin"),
        ),
        "outputs are logits", AUTOATTACK,
    ),
    "input-stage": Check(
        _probe_check(
            "input stage", "blind", warn=0.0, fail=0.2, what="share of images whose logits do not feel a step of 1e-4",
            says="a stage in front of the model rounds its input away, and its gradient with it", fine="the model feels small steps",
            calls_for=("pgd50-bpda", *GRADIENT_FREE),
        ),
        "small steps change the logits", OURS,
    ),
    "finite-differences": Check(
        _probe_check(
            "differences", "mismatch", warn=0.02, fail=0.2, what="1 - correlation of gradients with finite differences",
            says="the gradient is not the slope of the loss", fine="gradients are the slope of the loss",
            calls_for=("pgd50-bpda", *GRADIENT_FREE),
        ),
        "gradients agree with finite differences", OURS,
    ),
    "secants": Check(
        _probe_check(
            "secants", "astray", warn=0.05, fail=0.2, what="share of samples whose mean gradient over neighbours raises the loss twice as much",
            says="gradients lead astray at the attack's scale: their mean over neighbours does not", fine="gradients lead where their mean does",
            calls_for=(AVERAGED,),
        ),
        "gradients agree with secants at the attack's scale", OURS,
    ),
    "continuity": Check(
        _probe_check(
            "jumps", "share", warn=0.0, fail=0.2, what="share of samples whose margin jumps along a random segment",
            says="the loss is not continuous: gradients cannot see its jumps", fine="the loss is continuous", calls_for=GRADIENT_FREE,
        ),
        "the loss is continuous", OURS,
    ),
    "budget": Check(protocol.budget, "attacks spend their steps and their radius", OURS),
    "ceiling": Check(protocol.ceiling, "nothing above the best published", "RobustBench; a prior, not a proof"),
}  # fmt: skip
