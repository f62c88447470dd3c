"""An attack is one function and one line in ATTACKS."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench import __version__
from robench.adapters import autoattack, torchattacks
from robench.attacks.restarts import with_restarts
from robench.types import NORMS, OWN, Attack, Keeps, RobenchError, Search, ThreatModel, format_eps

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


@cache
def _own(*modules: str) -> str:
    """What an attack of ours is computed by: verdicts of a search that has been changed since are not taken for its own."""
    sources = [(Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8") for module in modules]
    return f"robench {__version__}, code {hashlib.sha256(''.join(sources).encode()).hexdigest()[:8]}"


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
        gradients="pairs" not in variant.settings, library=_own("descent", "straight_through"), source=variant.source, family="pgd",
        keeps=Keeps.ANY, params={"steps": steps, "step_size": step_size, "restarts": options.restarts, **variant.settings},
    )  # fmt: skip


def _noise(name: str, match: re.Match, context: Context) -> Attack:
    return Attack(
        name=name, fn=partial(_draw_noise, draws=NOISE_DRAWS), norms=("Linf", "L2"), gradients=False, params={"draws": NOISE_DRAWS},
        library=_own("noise", "descent"), source="Carlini et al. 2019, https://arxiv.org/abs/1902.06705, section 5", family="noise",
        keeps=Keeps.ANY,
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
        library=_own("nearest", "descent"), source="robench; losses of https://arxiv.org/abs/2003.01690 and PMA (CVPR 2025)",
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


def make_attack(name: str, context: Context) -> Attack:
    """The attack that a name of ``ATTACKS`` stands for.

    Raises:
        RobenchError: it is not defined for the norm, or for so few classes.
    """
    attack = make_in_any_norm(name, context)
    if context.threat.norm not in attack.norms:
        raise RobenchError(
            f"attack {name!r} is defined for {', '.join(attack.norms)} only, not for {context.threat.norm}; "
            f"use {'autoattack' if context.threat.norm == 'L1' else 'pgd1 for a single step in another norm'}"
        )
    return attack


def make_in_any_norm(name: str, context: Context) -> Attack:
    """The same, whether or not it is defined for the norm."""
    entry, match = next((entry, match) for entry in ATTACKS.values() if (match := re.fullmatch(entry.pattern, name)))
    attack, asked = entry.make(name, match, context), context.options.search
    search = replace(asked, folded=asked.folded or attack.search.folded)
    return replace(attack, search=search, params=dict(attack.params) | ({"passes": str(search)} if search != OWN else {}))


def check_options(options: AttackOptions, threat: ThreatModel) -> None:
    """Refuses what means nothing.

    Raises:
        RobenchError: an option is out of its range.
    """
    if options.restarts < 1:
        raise RobenchError(f"--restarts {options.restarts}: expected at least 1")
    if options.step_size is not None and not 0 < options.step_size <= max(2 * threat.eps, 1e-12):
        raise RobenchError(
            f"--step-size {format_eps(options.step_size)} with eps {threat.eps_text}: expected a step above 0 and at most twice eps, "
            "in pixel units of [0, 1]"
        )
    if options.budget is not None and not 0 < options.budget <= 1000:
        raise RobenchError(
            f"--budget {options.budget:g}: expected a number above 0 and at most 1000, in multiples of what AutoAttack costs a sample that "
            "survives it"
        )
