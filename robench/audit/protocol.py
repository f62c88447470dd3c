"""Checks of how a number came about: where its images come from, what its attacks spent, what the model draws, what others reached."""

from __future__ import annotations

from dataclasses import replace

from robench.audit.evidence import AUDITED_RADIUS, Evidence
from robench.audit.rules import GRADIENT_FREE, gap_finding, missing, reading, unknown
from robench.identity import AttackIdentity
from robench.report.accuracy import percent, title
from robench.report.published import ROBUSTBENCH
from robench.types import Finding, Level, Outcome


def provenance(evidence: Evidence) -> Finding:
    """Stored images must have been crafted on the weights that they are used against."""
    if not evidence.external:
        if evidence.claimed:
            return unknown(
                "nobody gave the images that the claim came from (`robench audit --adv`); those of this audit were crafted on the judged weights"
            )
        return reading(Level.PASS, "every image was crafted on the judged weights", f"weights {evidence.model[:12]}")
    sentences, worst = [], Level.PASS
    for external in evidence.external:
        if not external.weights:
            level, text = (
                Level.UNKNOWN,
                f"{external.column}: nobody says what it was crafted on; `robench audit --source` names the model",
            )
        elif external.heads:
            level, text = Level.FAIL, f"{external.column}: crafted on the heads {', '.join(external.heads)}, not on the judged one"
        elif external.weights != evidence.model:
            level = Level.PASS if evidence.protocol == "transfer" else Level.FAIL
            text = (
                f"{external.column}: crafted on {external.source or 'a model'} (weights {external.weights[:12]}), evaluated on weights "
                f"{evidence.model[:12]}"
            )
        else:
            level, text = Level.PASS, f"{external.column}: crafted on the evaluated weights {evidence.model[:12]}"
        sentences.append(text)
        worst = min(worst, level, key=list(Level).index)
    words = {
        Level.FAIL: "the stored images attack something else than the judged model: their accuracy is transfer, not robustness",
        Level.UNKNOWN: "where the stored images come from is not known",
        Level.PASS: "the stored images come from where the claim says",
    }
    return reading(worst, words[worst], "; ".join(sentences))


def transfer_gap(evidence: Evidence) -> Finding:
    """Stored images against a fresh PGD-20 on the model itself."""
    if not evidence.external:
        return unknown("no stored images were given (`robench audit --adv`)")
    gaps = {each.column: evidence.compare(each.column, "pgd20") for each in evidence.external}
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    if not known:
        return missing(evidence, *gaps, "pgd20")
    name, gap = max(known.items(), key=lambda item: item[1].difference)
    agreement = evidence.probes.get("sign-agreement", {}).get(name)
    own_agreement = evidence.probes.get("sign-agreement", {}).get("own")
    text = (
        ""
        if agreement is None
        else f", sign agreement with the model's own gradient {agreement:.3f} (own PGD {own_agreement:.3f}, chance 0.5)"
    )
    finding = gap_finding(
        gap, warn=0.01, fail=0.01,
        says="the stored images are far weaker than a fresh attack on the model itself: they were crafted elsewhere, or with less effort",
        fine="the stored images are as strong as a fresh attack",
        text=f"{title(name)} against fresh PGD-20{text}",
        among=len(known),
    )  # fmt: skip
    if evidence.protocol == "transfer" and finding.level == Level.FAIL:
        return replace(finding, level=Level.WARN, says="as a claim of transfer says: an attack on the model itself leaves far less")
    return finding


def budget(evidence: Evidence) -> Finding:
    """An attack must spend its steps and its radius."""
    results = evidence.runs[AUDITED_RADIUS]
    shares = {}
    correct = int(evidence.correct().sum())
    for column in results.description["suites"]:
        name, identity = column["name"], AttackIdentity.of_member(column["members"][0])
        ledger = results.ledger[results.ledger["attack"] == name]
        if name in evidence.failed() or not correct:
            continue
        alone = identity.random_start and identity.restarts == 1 and not (ledger["mode"] != "").any()
        if name.startswith("pgd") and alone and identity.steps:
            shares[f"{title(name)} steps"] = ledger["backwards"].sum() / (correct * identity.steps)
    eps = results.description["threat"]["eps"]
    for name in ["pgd20", *(each.column for each in evidence.external)]:
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
    says = "an attack did not spend what it was given: its number says little"
    return reading(
        level,
        says if level != Level.PASS else "steps and radius were spent",
        "; ".join(f"{name} {share:.2f}" for name, share in shares.items()),
        statistic=1 - least,
        threshold=0.5 if level == Level.FAIL else 0.1,
    )


def randomness(evidence: Evidence) -> Finding:
    """A model that answers differently each time must be attacked in expectation."""
    probed = evidence.probes.get("repeats", {})
    if probed.get("differs") is None:
        return unknown(str(probed.get("failed") or "the probe repeats was not run"))
    if evidence.draws == 1:
        return reading(
            Level.PASS,
            "the same image gets the same answer",
            f"largest change of a logit {probed['differs']:.2g}",
            statistic=probed["differs"],
            threshold=1e-4,
        )
    text = f"{percent(probed['flips'])} % of the predictions change from draw to draw"
    gap = evidence.compare("pgd50-margin", "pgd50-eot")
    if gap is None:
        return reading(
            Level.WARN,
            "the model is random: verdicts are by the majority of 100 draws, and attacks must average over draws",
            text,
            statistic=probed["flips"],
            threshold=1e-4,
            calls_for=("pgd50-eot",),
        )
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
    if evidence.dataset not in ROBUSTBENCH or (evidence.norm, evidence.eps_text) != ("Linf", "8/255"):
        return unknown(f"no published ceiling for {evidence.dataset}, {evidence.norm} {evidence.eps_text}")
    best = ROBUSTBENCH[evidence.dataset][1] / 100
    share = evidence.union(evidence.columns()).most / len(evidence.correct())
    text = f"{percent(share)} % survive, the best published ResNet-18 keeps {percent(best)} % with adversarial training"
    if evidence.defended is None:
        return unknown(f"{text}; nobody says how this one was trained")
    level = Level.WARN if share > best and not evidence.defended else Level.PASS
    says = "more robust than anything published, without adversarial training"
    return reading(
        level,
        says if level == Level.WARN else "not above what is published",
        text,
        statistic=share,
        threshold=best,
        calls_for=GRADIENT_FREE,
    )
