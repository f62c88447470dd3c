"""ATTACKS: a name on the command line -> the function that it stands for, imported when it is asked for."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from robench import __version__
from robench.adapters import autoattack
from robench.attacks.restarts import with_restarts
from robench.authoring import FIELDS, Description, description_of, make_value
from robench.identity import REWRITE_VERSION
from robench.types import NO_REWRITE, Attack, PassOptions, ReturnPolicy, RobenchError, ThreatModel, format_eps

if TYPE_CHECKING:
    from robench.models.subject import Subject


@dataclass(frozen=True)
class AttackOptions:
    """What a user may change about the attacks of a call.

    Attributes:
        step_size: of PGD in pixel units; None for eps/4.
        restarts: independent starts of PGD.
        budget: of the fast suite, in multiples of what AutoAttack costs a sample that survives it; None for its own.
        pass_options: how passes are computed while attacks search.
    """

    step_size: float | None = None
    restarts: int = 1
    budget: float | None = None
    pass_options: PassOptions = NO_REWRITE


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
        function: "package.module:function".
        about: one line for ``robench list``.
        shown: names for ``robench list`` and for suggestions.
        number: the parameter that the number in a name is: of pgd20, whose key is "pgdN".
        described: of a function whose file no decorator may change, since its text is part of a column's key.
        settings: parameters that the name stands for.
        settle: what follows from the threat model, the classes and the user's options: parameters, or fields of ``Description``.
    """

    function: str
    about: str
    shown: tuple[str, ...]
    _: KW_ONLY
    number: str = ""
    described: Description | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    settle: Callable[[str, Context], dict[str, Any]] | None = None


def _pgd(name: str, context: Context) -> dict[str, Any]:
    options, settled = context.options, _steps(name, context)
    step_size, usual = settled["step_size"], context.threat.eps / 4
    said = f"(step={format_eps(step_size)})" if step_size != usual else ""
    said += f"(restarts={options.restarts})" if options.restarts > 1 else ""
    return settled | {"name": name + said, "prefix_of": f"pgd of {step_size!r}" if options.restarts == 1 else ""}


def _steps(name: str, context: Context) -> dict[str, Any]:
    options = context.options
    if name.endswith("-dlr") and context.n_classes < 3:
        raise RobenchError(f"{name}: the difference of logits ratio needs 3 classes or more, the model has {context.n_classes}")
    step_size = context.threat.eps / 4 if options.step_size is None else options.step_size
    return {"step_size": step_size, "recorded": {"restarts": options.restarts}}


def _stage(name: str, context: Context) -> dict[str, Any]:
    targeted, n_classes, norm = name in ("apgd-t", "fab-t"), context.n_classes, context.threat.norm
    if name == "apgd-t" and n_classes < 4:
        raise RobenchError(
            f"AutoAttack's targeted DLR loss needs 4 classes or more, the model has {n_classes}; use fast, or apgd-ce,fab-t,square"
        )
    settled: dict[str, Any] = {"n_targets": min(autoattack.most_targets(name, norm), n_classes - 1)} if targeted else {}
    if norm != "L1":
        return settled
    settled["source"] = f"{autoattack.SOURCE}; in L1 Croce & Hein 2021, https://arxiv.org/abs/2103.01208"
    if name.startswith("apgd"):  # begins in balls of three and two times eps, and keeps nothing from there
        restarts = {} if targeted else {"restarts": autoattack.L1_RESTARTS}
        settled |= {"returns": ReturnPolicy.LATE, "recorded": {"radii": "3, 2 and 1 times eps"} | restarts}
    return settled


def _budget(name: str, context: Context) -> dict[str, Any]:
    return {"budget": FAST_BUDGET if context.options.budget is None else context.options.budget}


def keyed_modules(module: str) -> list[str]:
    """The modules whose text is part of the keys of an attack of ours: its own, and those of this package that it imports, in their order.

    What else it computes with, and why that is not keyed, is written in ``tests/test_keyed_code.py``.
    """
    statements = [each for each in ast.walk(ast.parse(_text(module))) if isinstance(each, ast.ImportFrom)]
    imported = [each.module.removeprefix(BESIDE) for each in statements if (each.module or "").startswith(BESIDE) and each.module]
    return list(dict.fromkeys([module, *imported]))


def _text(module: str) -> str:
    return (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")


@cache
def _code_version(module: str) -> str:
    """What an attack of ours is computed by: verdicts of a search that has been changed since are not taken for its own."""
    sources = [_text(each) for each in keyed_modules(module)]
    code = hashlib.sha256("".join(sources).encode()).hexdigest()[:8]
    return f"robench {__version__}, code {IN_OTHER_WORDS.get(code, code)}"


BESIDE = "robench.attacks."
# Texts that compute what an earlier one did, in other words, keep its key, so that columns of version 0.1 stay finished. That they do is
# tested against the earlier texts, ``tests/version-0.1/keyed``.
IN_OTHER_WORDS = {"63f881e7": "bce2d992", "eea53106": "211748bb", "a63ec54a": "1519b32a"}
FAST_BUDGET = 0.03  # the rest of a twentieth is Square's, and what breaking the others costs
NOISE_DRAWS = 25  # of each kind

# Descriptions of functions whose files are part of their columns' keys. The text holds their parameters' defaults, so that only what a
# name changes is recorded.
_DESCENT = Description(norms=("Linf", "L2"), returns=ReturnPolicy.ANY, library=lambda: _code_version("descent"), family="pgd")
_NOISE = Description(
    norms=("Linf", "L2"), returns=ReturnPolicy.ANY, source="Carlini et al. 2019, https://arxiv.org/abs/1902.06705, section 5", gradients=False,
    library=lambda: _code_version("noise"), family="noise",
)  # fmt: skip
_AVERAGED = Description(
    norms=("Linf", "L2"), returns=ReturnPolicy.ANY, source="Athalye et al. 2018, https://arxiv.org/abs/1802.00420", family="averaged",
    library=lambda: _code_version("averaged"),
)  # fmt: skip
_NEAREST = Description(
    norms=("Linf", "L2"), returns=ReturnPolicy.ANY, source="robench; losses of https://arxiv.org/abs/2003.01690 and PMA (CVPR 2025)",
    library=lambda: _code_version("nearest"), family="nearest", pass_options=PassOptions(folded=True),  # no other code's verdicts are promised
)  # fmt: skip

_CW, _ATHALYE = "Carlini & Wagner 2017, https://arxiv.org/abs/1608.04644", "Athalye et al. 2018, https://arxiv.org/abs/1802.00420"
_MADRY, _UESATO = "Madry et al. 2018, https://arxiv.org/abs/1706.06083", "Uesato et al. 2018, https://arxiv.org/abs/1802.05666"


def _descent(variant: str, about: str, source: str, gradients: bool = True, **settings: Any) -> AttackEntry:
    """Our PGD with some of the settings of ``descend``."""
    return AttackEntry(
        "robench.attacks.descent:descend",
        f"pgdN of ours, best iterate: {about}",
        (f"pgd50-{variant}",),
        number="steps",
        described=replace(_DESCENT, source=source, gradients=gradients),
        settings=settings,
        settle=_steps,
    )


_PGD, _STAGES = "robench.adapters.torchattacks:pgd", "robench.adapters.autoattack"
ATTACKS: dict[str, AttackEntry] = {
    "fgsm": AttackEntry("robench.adapters.torchattacks:fgsm", "one signed gradient step of eps (Linf)", ("fgsm",)),
    "pgdN": AttackEntry(
        _PGD, "pgdN: N gradient steps of eps/4 from a random start, any N (Linf, L2)", ("pgd7", "pgd20", "pgd50"), number="steps", settle=_pgd
    ),
    "pgdN-ce": _descent("ce", "cross-entropy, as pgdN", _MADRY, loss="ce"),
    "pgdN-margin": _descent("margin", "the difference of logits", _CW, loss="margin"),
    "pgdN-dlr": _descent("dlr", "the difference of logits ratio", autoattack.SOURCE, loss="dlr"),
    "pgdN-rescaled": _descent(
        "rescaled", "logits divided by the clean margin", "Carlini & Wagner 2016, https://arxiv.org/abs/1607.04311", loss="rescaled"
    ),
    "pgdN-log": _descent("log", "outputs taken for probabilities", _ATHALYE, loss="log"),
    "pgdN-float64": _descent("float64", "cross-entropy in float64", autoattack.SOURCE, loss="ce", double=True),
    "pgdN-eot": _descent("eot", "gradients over 20 draws of a random model", _ATHALYE, loss="margin", draws=20),
    "pgdN-bpda": _descent("bpda", "rounding and detaching pass gradients", _ATHALYE, loss="margin", through=True),
    "pgdN-spsa": _descent("spsa", "gradients estimated from 64 pairs", _UESATO, gradients=False, loss="margin", pairs=64),
    "pgdN-averaged": AttackEntry(
        "robench.attacks.averaged:averaged", "pgdN of ours: gradients averaged over neighbours, where a ripple turns them about (Linf, L2)",
        ("pgd30-averaged",), number="steps", described=_AVERAGED, settings={"draws": 8},
    ),
    "noise": AttackEntry(
        "robench.attacks.noise:noise", f"uniform and sign noise, the worst of {2 * NOISE_DRAWS} draws (Linf, L2)", ("noise",),
        described=_NOISE, settings={"draws": NOISE_DRAWS},
    ),
    "apgd-ce": AttackEntry(
        f"{_STAGES}:apgd_ce", "AutoAttack's first stage alone: APGD on cross-entropy, 100 steps (all norms)", ("apgd-ce",), settle=_stage
    ),
    "apgd-t": AttackEntry(
        f"{_STAGES}:apgd_t", "its second: APGD on targeted DLR, 9 targets of 100 steps, 5 in L1", ("apgd-t",), settle=_stage
    ),
    "fab-t": AttackEntry(f"{_STAGES}:fab_t", "its third: targeted FAB, 9 targets of 100 steps", ("fab-t",), settle=_stage),
    "nearest": AttackEntry(
        "robench.attacks.nearest:nearest", "ours: one target class at a time, where a query came nearest to success (Linf, L2)", ("nearest",),
        described=_NEAREST, settle=_budget,
    ),
    "suspect": AttackEntry(
        f"{_STAGES}:suspecting_square", "Square with 200 queries on 16 samples a chunk: do gradients lead astray?", ("suspect",),
        settings={"queries": 200, "samples": 16},
    ),
    "square": AttackEntry(f"{_STAGES}:square_stage", "its fourth: Square, 5000 queries without gradients", ("square",), settle=_stage),
    "squareN": AttackEntry(f"{_STAGES}:square", "squareN: Square with any number of queries", ("square20000",), number="queries"),
}  # fmt: skip

NUMBERED = re.compile(r"([a-z]+)(\d{1,7})(-[a-z0-9]+)?")


def known_names() -> list[str]:
    """The names of attacks, one of each that takes any number."""
    return [shown for entry in ATTACKS.values() for shown in entry.shown]


class NamedEntry(NamedTuple):
    """What an attack's name means: its entry, the name as it is written in tables, and the number in it, 0 where it has none."""

    entry: AttackEntry
    name: str
    number: int


def entry_of(name: str) -> NamedEntry | None:
    """What a name means; None for a name that is not ours."""
    if name in ATTACKS and not ATTACKS[name].number:
        return NamedEntry(ATTACKS[name], name, 0)
    match = NUMBERED.fullmatch(name)
    entry = ATTACKS.get(f"{match[1]}N{match[3] or ''}") if match else None
    return NamedEntry(entry, f"{match[1]}{int(match[2])}{match[3] or ''}", int(match[2])) if match and entry else None


def make_attack(name: str, context: Context) -> Attack:
    """The attack that a name of ``ATTACKS`` stands for.

    Raises:
        RobenchError: it is not defined for the norm, or for so few classes.
    """
    return in_norm(make_in_any_norm(name, context), name, context)


def in_norm(attack: Attack, name: str, context: Context) -> Attack:
    """The attack, where it is defined for the norm.

    Raises:
        RobenchError: it is not.
    """
    if context.threat.norm not in attack.norms:
        raise RobenchError(
            f"attack {name!r} is defined for {', '.join(attack.norms)} only, not for {context.threat.norm}; "
            f"use {'pgd1 for a single step in another norm' if context.threat.geometry.has_pgd else context.threat.geometry.suite}"
        )
    return attack


def make_in_any_norm(name: str, context: Context) -> Attack:
    """The same, whether or not it is defined for the norm."""
    found = entry_of(name)
    assert found is not None, name  # see ``check_suite``
    entry, name, number = found
    if entry.number and number < 1:
        raise RobenchError(f"attack {name!r} has no {entry.number}; {entry.shown[-1]} has some")
    module, _, function = entry.function.partition(":")
    fn = getattr(import_module(module), function)
    settled = {"name": name} | (entry.settle(name, context) if entry.settle else {})
    described = entry.described or description_of(fn)
    settled["recorded"] = {**described.recorded, **settled.get("recorded", {})}
    given = ({entry.number: number} if entry.number else {}) | dict(entry.settings)
    given |= {key: value for key, value in settled.items() if key not in FIELDS}
    attack = make_value(fn, replace(described, **{key: value for key, value in settled.items() if key in FIELDS}), given, given)
    if attack.family == "pgd" and context.options.restarts > 1:
        attack = replace(attack, fn=with_restarts(attack.fn, context.options.restarts))
    return searching(attack, context.options.pass_options)


def searching(attack: Attack, asked: PassOptions) -> Attack:
    """The attack with its passes computed as the user asked."""
    search = replace(asked, folded=asked.folded or attack.pass_options.folded)
    attack = replace(attack, pass_options=search)
    return (
        attack
        if search == NO_REWRITE
        else attack.identified(replace(attack.identity, passes=search, passes_version=REWRITE_VERSION))
    )


def check_options(options: AttackOptions, threat: ThreatModel) -> None:
    """Refuses what means nothing.

    Raises:
        RobenchError: an option is out of its range.
    """
    if options.restarts < 1:
        raise RobenchError(f"`restarts={options.restarts}`: expected at least 1")
    if options.step_size is not None and not 0 < options.step_size <= max(2 * threat.eps, 1e-12):
        raise RobenchError(
            f"`step_size={format_eps(options.step_size)}` with eps {threat.eps_text}: expected a step above 0 and at most twice eps, "
            "in pixel units of [0, 1]"
        )
    if options.budget is not None and not 0 < options.budget <= 1000:
        raise RobenchError(
            f"`budget={options.budget:g}`: expected a number above 0 and at most 1000, in multiples of what AutoAttack costs a sample that "
            "survives it"
        )
