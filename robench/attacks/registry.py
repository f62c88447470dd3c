"""An attack is one function and one line in ATTACKS; a suite one line in SUITES."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench import __version__
from robench.adapters import autoattack, torchattacks
from robench.attacks.restarts import with_restarts
from robench.data import did_you_mean
from robench.types import NORMS, OWN, Attack, Keeps, RobenchError, Search, Suite, ThreatModel, format_eps

if TYPE_CHECKING:
    from robench.models.loading import Subject


@dataclass(frozen=True)
class AttackOptions:
    """What a user may change about the attacks of a call.

    Attributes:
        step_size: of PGD in pixel units; None for eps/4.
        restarts: independent starts of PGD.
        budget: of the fast suite, in multiples of what AutoAttack costs a sample that survives it; None for its own.
        search: how passes are computed while attacks search.
    """

    step_size: float | None = None
    restarts: int = 1
    budget: float | None = None
    search: Search = OWN


@dataclass(frozen=True)
class Context:
    """What an attack may depend on besides its name."""

    threat: ThreatModel
    n_classes: int
    options: AttackOptions
    sources: Mapping[str, Subject] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackEntry:
    """One registered attack.

    Attributes:
        pattern: names that mean it, as a regular expression; its group is handed to ``make``.
        make: ``make(name, match, context) -> Attack``.
        shown: names for ``robench list`` and for suggestions.
        about: one line.
    """

    pattern: str
    make: Callable[[str, re.Match, Context], Attack]
    shown: tuple[str, ...]
    about: str


def _fgsm(name: str, match: re.Match, context: Context) -> Attack:
    return Attack(
        name=name, fn=torchattacks.fgsm, norms=("Linf",), gradients=True, params={}, library=torchattacks.library(),
        source="Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572", family="fgsm",
    )  # fmt: skip


def _pgd(name: str, match: re.Match, context: Context) -> Attack:
    steps, options = int(match[1]), context.options
    if steps < 1:
        raise RobenchError(f"attack {name!r} has no steps; pgd20 is PGD with 20")
    step_size = context.threat.eps / 4 if options.step_size is None else options.step_size
    label = f"pgd{steps}" + "".join(
        f"({key}={value})"
        for key, value, given in (
            ("step", format_eps(step_size), options.step_size is not None and step_size != context.threat.eps / 4),
            ("restarts", options.restarts, options.restarts > 1),
        )
        if given
    )
    once = partial(torchattacks.pgd, steps=steps, step_size=step_size)
    return Attack(
        name=label, fn=with_restarts(once, options.restarts) if options.restarts > 1 else once, norms=("Linf", "L2"), gradients=True,
        params={"steps": steps, "step_size": step_size, "restarts": options.restarts, "random_start": True, "loss": "cross-entropy"},
        library=torchattacks.library(), source="Madry et al. 2018, https://arxiv.org/abs/1706.06083", family="pgd",
        prefix_of=f"pgd of {step_size!r}" if options.restarts == 1 else "",
    )  # fmt: skip


def _autoattack_stage(name: str, match: re.Match, context: Context) -> Attack:
    targeted, n_classes = name in ("apgd-t", "fab-t"), context.n_classes
    if name == "apgd-t" and n_classes < 4:
        raise RobenchError(
            f"AutoAttack's targeted DLR loss needs 4 classes or more, the model has {n_classes}; use fast, or apgd-ce,fab-t,square"
        )
    norm = context.threat.norm
    n_targets = min(autoattack.most_targets(name, norm), n_classes - 1)
    sparse = norm == "L1" and name.startswith("apgd")  # begins in balls of three and two times eps, and keeps nothing from there
    restarts = {"restarts": autoattack.L1_RESTARTS} if sparse and not targeted else {}
    return Attack(
        name=name, fn=partial(autoattack.stage, name=name, n_targets=n_targets), norms=NORMS, gradients=name != "square",
        params={"version": "standard"} | ({"n_targets": n_targets} if targeted else {}) | restarts
        | ({"radii": "3, 2 and 1 times eps"} if sparse else {}), library=autoattack.library(),
        source=_AA if norm != "L1" else f"{_AA}; in L1 Croce & Hein 2021, https://arxiv.org/abs/2103.01208", family="autoattack",
        keeps=Keeps.LATE if sparse else Keeps.FORWARD if name == "fab-t" else Keeps.ANY,
    )  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """What a variant of our PGD changes; see ``descend``."""

    about: str
    source: str
    settings: Mapping[str, Any]


_CW, _AA = "Carlini & Wagner 2017, https://arxiv.org/abs/1608.04644", "Croce & Hein 2020, https://arxiv.org/abs/2003.01690"
_ATHALYE = "Athalye et al. 2018, https://arxiv.org/abs/1802.00420"
VARIANTS: dict[str, Variant] = {
    "ce": Variant("cross-entropy, as pgdN", "Madry et al. 2018, https://arxiv.org/abs/1706.06083", {"loss": "ce"}),
    "margin": Variant("the difference of logits", _CW, {"loss": "margin"}),
    "dlr": Variant("the difference of logits ratio", _AA, {"loss": "dlr"}),
    "rescaled": Variant(
        "logits divided by the clean margin", "Carlini & Wagner 2016, https://arxiv.org/abs/1607.04311", {"loss": "rescaled"}
    ),
    "log": Variant("outputs taken for probabilities", _ATHALYE, {"loss": "log"}),
    "float64": Variant("cross-entropy in float64", _AA, {"loss": "ce", "double": True}),
    "eot": Variant("gradients over 20 draws of a random model", _ATHALYE, {"loss": "margin", "draws": 20}),
    "bpda": Variant("rounding and detaching pass gradients", _ATHALYE, {"loss": "margin", "through": True}),
    "spsa": Variant(
        "gradients estimated from 64 pairs", "Uesato et al. 2018, https://arxiv.org/abs/1802.05666", {"loss": "margin", "pairs": 64}
    ),
}


def _descend(*given, **settings):
    from robench.attacks.descent import descend  # imports torch, which `robench list` can do without

    return descend(*given, **settings)


def _draw_noise(*given, **settings):
    from robench.attacks.noise import noise

    return noise(*given, **settings)


def _descent(name: str, match: re.Match, context: Context) -> Attack:
    steps, variant, options = int(match[1]), VARIANTS[match[2]], context.options
    if steps < 1:
        raise RobenchError(f"attack {name!r} has no steps; pgd20-{match[2]} takes 20")
    if match[2] == "dlr" and context.n_classes < 3:
        raise RobenchError(f"{name}: the difference of logits ratio needs 3 classes or more, the model has {context.n_classes}")
    step_size = context.threat.eps / 4 if options.step_size is None else options.step_size
    once = partial(_descend, steps=steps, step_size=step_size, **variant.settings)
    return Attack(
        name=name, fn=with_restarts(once, options.restarts) if options.restarts > 1 else once, norms=("Linf", "L2"),
        gradients="pairs" not in variant.settings, library=f"robench {__version__}", source=variant.source, family="pgd", keeps=Keeps.ANY,
        params={"steps": steps, "step_size": step_size, "restarts": options.restarts, **variant.settings},
    )  # fmt: skip


def _noise(name: str, match: re.Match, context: Context) -> Attack:
    return Attack(
        name=name, fn=partial(_draw_noise, draws=NOISE_DRAWS), norms=("Linf", "L2"), gradients=False, params={"draws": NOISE_DRAWS}, library=f"robench {__version__}",
        source="Carlini et al. 2019, https://arxiv.org/abs/1902.06705, section 5", family="noise", keeps=Keeps.ANY,
    )  # fmt: skip


def _long_square(name: str, match: re.Match, context: Context) -> Attack:
    queries = int(match[1])
    return Attack(
        name=name, fn=partial(autoattack.square, queries=queries), norms=NORMS, gradients=False, params={"queries": queries},
        library=autoattack.library(), source="Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049", family="square",
        keeps=Keeps.ANY,
    )  # fmt: skip


def _search_nearest(*given, **settings):
    from robench.attacks.nearest import nearest

    return nearest(*given, **settings)


def _nearest(name: str, match: re.Match, context: Context) -> Attack:
    budget = FAST_BUDGET if context.options.budget is None else context.options.budget
    return Attack(
        name=name, fn=partial(_search_nearest, budget=budget), norms=("Linf", "L2"), gradients=True, params={"budget": budget},
        library=f"robench {__version__}", source="robench; losses of https://arxiv.org/abs/2003.01690 and PMA (CVPR 2025)",
        family="nearest", keeps=Keeps.ANY, search=Search(folded=True),  # ours: no other code's verdicts are promised
    )  # fmt: skip


def _suspect(name: str, match: re.Match, context: Context) -> Attack:
    return Attack(
        name=name, fn=partial(_suspecting_square, queries=SUSPECT_QUERIES, most=SUSPECTS), norms=("Linf", "L2"), gradients=False,
        params={"queries": SUSPECT_QUERIES, "samples": SUSPECTS}, library=autoattack.library(),
        source="Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049", family="suspect", keeps=Keeps.ANY,
    )  # fmt: skip


def _suspecting_square(model, images, labels, threat, seed, *, queries: int, most: int):
    """A short Square on the first few of the images; the others come back as they are."""
    adv_images = images.clone()
    adv_images[:most] = autoattack.square(model, images[:most], labels[:most], threat, seed, queries=queries)
    return adv_images


FAST_BUDGET = 0.03  # the rest of a twentieth is Square's, and what breaking the others costs
SUSPECT_QUERIES, SUSPECTS = 200, 16

NOISE_DRAWS = 25  # of each kind

ATTACKS: dict[str, AttackEntry] = {
    "fgsm": AttackEntry(r"fgsm", _fgsm, ("fgsm",), "one signed gradient step of eps (Linf)"),
    "pgd": AttackEntry(
        r"pgd(\d{1,6})", _pgd, ("pgd7", "pgd20", "pgd50"), "pgdN: N gradient steps of eps/4 from a random start, any N (Linf, L2)"
    ),
    **{
        f"pgd-{name}": AttackEntry(
            rf"pgd(\d{{1,6}})-({name})", _descent, (f"pgd50-{name}",), f"pgdN of ours, best iterate: {variant.about}"
        )
        for name, variant in VARIANTS.items()
    },
    "noise": AttackEntry(r"noise", _noise, ("noise",), f"uniform and sign noise, the worst of {2 * NOISE_DRAWS} draws (Linf, L2)"),
    "apgd-ce": AttackEntry(
        r"apgd-ce", _autoattack_stage, ("apgd-ce",), "AutoAttack's first stage alone: APGD on cross-entropy, 100 steps (all norms)"
    ),
    "apgd-t": AttackEntry(
        r"apgd-t", _autoattack_stage, ("apgd-t",), "its second: APGD on targeted DLR, 9 targets of 100 steps, 5 in L1"
    ),
    "fab-t": AttackEntry(r"fab-t", _autoattack_stage, ("fab-t",), "its third: targeted FAB, 9 targets of 100 steps"),
    "nearest": AttackEntry(
        r"nearest", _nearest, ("nearest",), "ours: one target class at a time, where a query came nearest to success (Linf, L2)"
    ),
    "suspect": AttackEntry(
        r"suspect",
        _suspect,
        ("suspect",),
        f"Square with {SUSPECT_QUERIES} queries on {SUSPECTS} samples a chunk: do gradients lead astray?",
    ),
    "square": AttackEntry(r"square", _autoattack_stage, ("square",), "its fourth: Square, 5000 queries without gradients"),
    "long-square": AttackEntry(r"square(\d{1,7})", _long_square, ("square20000",), "squareN: Square with any number of queries"),
}


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
        "close to AutoAttack's verdict at about a twentieth of its cost; the whole of it where Square finds what gradients missed; one column",
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
    _check_options(options, threat)
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


def _make_attack(name: str, context: Context) -> Attack:
    attack = _undoubted(name, context)
    if context.threat.norm not in attack.norms:
        raise RobenchError(
            f"attack {name!r} is defined for {', '.join(attack.norms)} only, not for {context.threat.norm}; "
            f"use {'autoattack' if context.threat.norm == 'L1' else 'pgd1 for a single step in another norm'}"
        )
    return attack


def _undoubted(name: str, context: Context) -> Attack:
    """The attack of a name, whether or not it is defined for the norm."""
    entry, match = next((entry, match) for entry in ATTACKS.values() if (match := re.fullmatch(entry.pattern, name)))
    attack, asked = entry.make(name, match, context), context.options.search
    search = replace(asked, folded=asked.folded or attack.search.folded)
    return replace(attack, search=search, params=dict(attack.params) | ({"passes": str(search)} if search != OWN else {}))


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
        attack = _make_attack(name, context)
        usual = Search(folded=attack.family == "nearest")
        attack = replace(attack, name=_marked(attack.name, usual, attack.search))
        return [Suite(attack.name, (attack,), cascade=False)]
    entry = SUITES[name]
    if entry.cascade:
        screens = [screen for each in entry.screens if context.threat.norm in (screen := _undoubted(each, context)).norms]
        # The fast search takes any number of classes, which AutoAttack behind it does without the targeted loss that needs four.
        wanted = [each for each in entry.members if not (name == "fast" and each == "apgd-t" and context.n_classes < 4)]
        members = (*screens, *(_make_attack(member, context) for member in wanted))
        budget = [f"budget={context.options.budget:g}"] if name == "fast" and context.options.budget is not None else []
        usual = Search(folded=name == "fast")
        name = _marked(name, usual, replace(context.options.search, folded=usual.folded or context.options.search.folded), *budget)
        return [Suite(name, members, cascade=True, about=entry.about, counts_best=entry.counts_best, doubt=entry.doubt)]
    return [column for member in entry.members for column in _columns(member, context)]


def _check_options(options: AttackOptions, threat: ThreatModel) -> None:
    if options.restarts < 1:
        raise RobenchError(f"--restarts {options.restarts}: expected at least 1")
    if options.step_size is not None and not 0 < options.step_size <= max(2 * threat.eps, 1e-12):
        raise RobenchError(
            f"--step-size {format_eps(options.step_size)} with eps {threat.eps_text}: expected a step above 0 and at most twice eps, "
            "in pixel units of [0, 1]"
        )
    if options.budget is not None and not 0 < options.budget <= 1000:
        raise RobenchError(
            f"--budget {options.budget:g}: expected a number above 0, in multiples of what AutoAttack costs a sample that survives it"
        )
