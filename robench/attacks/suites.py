"""A suite is one line in SUITES; a list of names becomes the columns of a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from robench.adapters import autoattack
from robench.attacks.registry import ATTACKS, FAST_BUDGET, AttackOptions, Context, check_options, make_attack, make_in_any_norm
from robench.data import did_you_mean
from robench.types import AUTOATTACK_UNITS, RobenchError, Search, Suite, ThreatModel

if TYPE_CHECKING:
    from robench.models.loading import Subject

LEAST_SEARCH = 0.24  # of AutoAttack's cost is what ``fast`` has to have for its own search before it pays for stages of AutoAttack


@dataclass(frozen=True)
class SuiteEntry:
    """Names of the attacks of a suite, in order; see ``Suite``."""

    members: tuple[str, ...]
    cascade: bool
    about: str
    counts_best: bool = False
    screens: tuple[str, ...] = ()  # cheap attacks in front of the members, where they are defined for the norm
    doubt: str = ""


SUITES: dict[str, SuiteEntry] = {
    "autoattack": SuiteEntry(
        autoattack.STAGES, True, "AutoAttack standard: four stages, each on what the earlier ones left; one column"
    ),
    "autoattack-screened": SuiteEntry(
        autoattack.STAGES,
        True,
        "AutoAttack on what FGSM (Linf) and PGD-7 leave, best queries counted; one column",
        counts_best=True,
        screens=("fgsm", "pgd7"),
    ),
    "fast": SuiteEntry(
        ("nearest", "suspect", *autoattack.STAGES),
        True,
        "close to AutoAttack's verdict at about a twentieth of its cost or less; the whole of it where Square finds what gradients missed; one column",
        counts_best=True,
        doubt="suspect",
    ),
    "paper": SuiteEntry(("fgsm", "pgd7", "pgd20", "pgd50"), False, "the four columns of the paper's tables"),
}


def parse_suites(
    text: str,
    threat: ThreatModel,
    n_classes: int,
    options: AttackOptions | None = None,
    sources: Mapping[str, Subject] | None = None,
) -> list[Suite]:
    """The columns that ``"fgsm,pgd20,autoattack"`` stands for, in order, each once.

    Args:
        text: names, separated by commas; ``pgd20@FILE`` crafts on the checkpoint FILE.
        threat: the threat model.
        n_classes: of the classifier that is attacked.
        options: what the user changed about attacks.
        sources: the classifier of each FILE, see ``source_paths``.

    Raises:
        RobenchError: a name is unknown, an attack is not defined for the norm, or an option applies to none of the attacks.
    """
    options = options or AttackOptions()
    names = check_names(text)
    check_options(options, threat)
    context = Context(threat, n_classes, options, sources or {})
    columns: dict[str, Suite] = {}
    for name in names:
        for suite in _columns(name, context):
            if columns.setdefault(suite.name, suite).members[0].params != suite.members[0].params:
                raise RobenchError(f"two columns would be called {suite.name!r}; rename one of the checkpoints, or leave one out")
    families = {member.family for suite in columns.values() for member in suite.members}
    if (options.step_size is not None or options.restarts != 1) and "pgd" not in families:
        raise RobenchError(f"--step-size and --restarts change PGD alone, and there is none in {text!r}; leave them out")
    if options.budget is not None and "nearest" not in families:
        raise RobenchError(f"--budget is what the fast suite may spend, and {text!r} is without it; leave it out, or add fast")
    return list(columns.values())


def check_names(text: str) -> list[str]:
    """The names in a list separated by commas, all of them known; needs no data and no model.

    Raises:
        RobenchError: the list is empty, or a name is unknown.
    """
    names = [_lower(name.strip()) for name in text.split(",") if name.strip()]
    if not names:
        raise RobenchError("the suite is empty; for example --suite pgd20,autoattack")
    known = [shown for entry in ATTACKS.values() for shown in entry.shown] + list(SUITES)
    for given in names:
        name, at, source = given.partition("@")
        if at and not Path(source).is_file():
            raise RobenchError(f"{given!r} crafts on the checkpoint {source!r}, which is no file; write ATTACK@FILE")
        if at and name in SUITES and SUITES[name].cascade:
            raise RobenchError(
                f"{given!r}: a cascade has no images to transfer, each stage stops where one model is fooled; use pgd50@FILE"
            )
        if name not in SUITES and not any(re.fullmatch(entry.pattern, name) for entry in ATTACKS.values()):
            raise RobenchError(
                f"unknown attack {name!r}{did_you_mean(name, known)}; `robench list attacks` shows all {len(known) - len(SUITES)}"
            )
    return names


def source_paths(text: str) -> list[str]:
    """The checkpoints that attacks of a suite are crafted on, each once."""
    return list(dict.fromkeys(name.partition("@")[2] for name in check_names(text) if "@" in name)) if text else []


def _lower(name: str) -> str:
    attack, at, source = name.partition("@")
    return attack.lower() + at + source


def _marked(name: str, usual: Search, search: Search, *more: str) -> str:
    """A column's name with what is not usual about how it was computed, since it may differ in last bits or more."""
    unusual = [word for word in str(search).split(", ") if word not in str(usual).split(", ") and search != usual]
    said = ", ".join((*more, *unusual))
    return f"{name}({said})" if said else name


def _columns(name: str, context: Context) -> list[Suite]:
    name, at, path = name.partition("@")
    if at:
        from robench.attacks.elsewhere import crafted_on

        source = context.sources[path]
        if source.classifier.n_classes != context.n_classes:
            raise RobenchError(
                f"{name}@{path}: that model has {source.classifier.n_classes} classes, the one under test {context.n_classes}; images of one "
                "mean nothing to the other"
            )
        crafted = [crafted_on(suite.members[0], source) for suite in _columns(name, context)]
        return [Suite(attack.name, (attack,), cascade=False) for attack in crafted]
    if name not in SUITES:
        attack = make_attack(name, context)
        usual = Search(folded=attack.family == "nearest")
        attack = replace(attack, name=_marked(attack.name, usual, attack.search))
        return [Suite(attack.name, (attack,), cascade=False)]
    entry = SUITES[name]
    if entry.cascade:
        members, doubt, inner = fast_members(context) if name == "fast" else (entry.members, entry.doubt, context)
        screens = [screen for each in entry.screens if context.threat.norm in (screen := make_in_any_norm(each, context)).norms]
        attacks = (*screens, *(make_attack(member, inner) for member in members))
        budget = [f"budget={context.options.budget:g}"] if name == "fast" and context.options.budget is not None else []
        usual = Search(folded=name == "fast")
        name = _marked(name, usual, replace(context.options.search, folded=usual.folded or context.options.search.folded), *budget)
        blind = entry is SUITES["fast"]
        return [Suite(name, attacks, cascade=True, about=entry.about, counts_best=entry.counts_best, doubt=doubt, blind=blind)]
    return [column for member in entry.members for column in _columns(member, context)]


def fast_members(context: Context) -> tuple[tuple[str, ...], str, Context]:
    """The stages of ``fast``, which of them must have broken something before those behind it run, and what is left of the budget for the
    first: a large one pays for AutoAttack's APGD, or for all of it, which look for what our search is blind to. Without the targeted
    loss where there are too few classes for it."""
    budget, n_classes = context.options.budget or FAST_BUDGET, context.n_classes
    stages = tuple(stage for stage in autoattack.STAGES if stage != "apgd-t" or n_classes >= 4)
    first = tuple(stage for stage in stages if stage.startswith("apgd"))
    rest = tuple(stage for stage in stages if stage not in first)
    apgd, whole = (sum(autoattack.stage_units(each, n_classes) for each in some) / AUTOATTACK_UNITS for some in (first, stages))
    if budget < apgd + LEAST_SEARCH:
        return ("nearest", "suspect", *stages), "suspect", context
    doubt, spent = ("suspect", apgd) if budget < whole + LEAST_SEARCH else ("", whole)
    left = replace(context, options=replace(context.options, budget=budget - spent))
    return ("nearest", *first, "suspect", *rest), doubt, left
