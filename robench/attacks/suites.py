"""A suite is one line in SUITES; a list of names becomes the columns of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from robench.adapters import autoattack
from robench.attacks.external import as_attack, attack_of_file, installed_attacks, load_installed
from robench.attacks.registry import (
    FAST_BUDGET,
    AttackOptions,
    Context,
    check_options,
    entry_of,
    in_norm,
    known_names,
    make_attack,
    make_in_any_norm,
    searching,
)
from robench.code_digest import digest_function
from robench.data import did_you_mean
from robench.types import AUTOATTACK_UNITS, Attack, AttackFn, Column, PassOptions, RobenchError, ThreatModel

if TYPE_CHECKING:
    from robench.models.subject import Subject

RESERVED = ("clean", "union")  # rows of every table
LAST, LAST_SHARE = "nearest-fp32", 1 / 3  # the end of a search in TF32, in float32, and its share of the budget
LEAST_SEARCH = 0.24  # of AutoAttack's cost is what ``fast`` has to have for its own search before it pays for stages of AutoAttack


@dataclass(frozen=True)
class SuiteEntry:
    """Names of the attacks of a suite, in order; see ``Column``."""

    attacks: tuple[str, ...]
    is_cascade: bool
    about: str
    count_queries: bool = False
    screens: tuple[str, ...] = ()  # cheap attacks in front of the others, where they are defined for the norm
    gate: str = ""


SUITES: dict[str, SuiteEntry] = {
    "autoattack": SuiteEntry(
        autoattack.STAGES, True, "AutoAttack standard: four stages, each on what the earlier ones left; one column"
    ),
    "autoattack-screened": SuiteEntry(
        autoattack.STAGES,
        True,
        "AutoAttack on what FGSM (Linf) and PGD-7 leave, best queries counted; one column",
        count_queries=True,
        screens=("fgsm", "pgd7"),
    ),
    "fast": SuiteEntry(
        ("nearest", "suspect", *autoattack.STAGES),
        True,
        "close to AutoAttack's verdict at about a twentieth of its cost or less; the whole of it where Square finds what gradients missed; one column",
        count_queries=True,
        gate="suspect",
    ),
    "paper": SuiteEntry(("fgsm", "pgd7", "pgd20", "pgd50"), False, "the four columns of the paper's tables"),
}


# Names separated by commas, one value or function, or a list of names, values and functions.
Asked = str | Attack | AttackFn | Sequence[str | Attack | AttackFn]


def parse_columns(
    suite: Asked,
    threat: ThreatModel,
    n_classes: int,
    options: AttackOptions | None = None,
    sources: Mapping[str, Subject] | None = None,
) -> list[Column]:
    """The columns that ``"fgsm,pgd20,autoattack"`` or ``["pgd20", my_attack]`` stands for, in order, each once.

    Args:
        suite: names, separated by commas, where ``pgd20@FILE`` crafts on the checkpoint FILE; an attack or a function; or a list of
            all these.
        threat: the threat model.
        n_classes: of the classifier that is attacked.
        options: what the user changed about attacks.
        sources: the classifier of each FILE, see ``source_paths``.

    Raises:
        RobenchError: a name is unknown, an attack is not defined for the norm, or an option applies to none of the attacks.
    """
    options = options or AttackOptions()
    asked = check_suite(suite)
    check_options(options, threat)
    context = Context(threat, n_classes, options, sources or {})
    columns: dict[str, Column] = {}
    for each in asked:
        for column in _columns(each, context):
            _refuse_another(columns.setdefault(column.name, column), column)
    families = {stage.family for column in columns.values() for stage in column.stages}
    shown = ",".join(each if isinstance(each, str) else each.name for each in asked)
    if (options.step_size is not None or options.restarts != 1) and "pgd" not in families:
        raise RobenchError(f"`step_size` and `restarts` change PGD alone, and there is none in {shown!r}; leave them out")
    if options.budget is not None and "nearest" not in families:
        raise RobenchError(f"`budget` is what the fast suite may spend, and {shown!r} is without it; leave it out, or add fast")
    return list(columns.values())


def _refuse_another(first: Column, second: Column) -> None:
    """Refuses two columns of one name that are not one attack."""
    one, other = first.stages[0], second.stages[0]
    if one.identity.crafted_on is not None and one.params != other.params:
        raise RobenchError(f"two columns would be called {first.name!r}; rename one of the checkpoints, or leave one out")
    alike = (one.params, one.library) == (other.params, other.library)
    if not alike or (
        one.fn is not other.fn and one.crafting_target is None and digest_function(one.fn) != digest_function(other.fn)
    ):
        raise RobenchError(
            f"two attacks would be called {first.name!r}; give one another name: Attack.of(fn, name=...), or @attack(name=...)"
        )


def check_suite(suite: Asked) -> list[str | Attack]:
    """The names in a suite, all of them known, and the attacks of the functions in it; needs no data and no model.

    Raises:
        RobenchError: it is empty, a name is unknown, a function is no attack, or an attack of an installed package cannot be loaded.
    """
    given = [suite] if isinstance(suite, str) or not isinstance(suite, Iterable) else list(suite)
    asked: list[str | Attack] = []
    for each in given:
        if isinstance(each, str):
            asked += [_checked_name(name.strip()) for name in each.split(",") if name.strip()]
        else:
            asked.append(_checked_value(as_attack(each)))
    if not asked:
        raise RobenchError("the suite is empty; for example `suite=pgd20,autoattack`")
    return asked


def _checked_name(given: str) -> str:
    given = _lower(given)
    name, at, source = given.partition("@")
    if at and not Path(source).is_file():
        raise RobenchError(f"{given!r} crafts on the checkpoint {source!r}, which is no file; write ATTACK@FILE")
    if at and name in SUITES and SUITES[name].is_cascade:
        raise RobenchError(
            f"{given!r}: a cascade has no images to transfer, each stage stops where one model is fooled; use pgd50@FILE"
        )
    if name in SUITES or entry_of(name) is not None:
        return given
    installed = installed_attacks()
    if name not in installed:
        known = [*known_names(), *installed]
        file, _, function = name.partition(".py")
        instead = f"; `attack={file}.py:{function.strip(':') or 'FUNCTION'}` takes a function of a file" if ".py" in name else ""
        raise RobenchError(
            f"unknown attack {name!r}{did_you_mean(name, [*known, *SUITES])}; `robench list attacks` shows all {len(known)}{instead}"
        )
    load_installed(name, installed[name])
    return given


def _checked_value(attack: Attack) -> Attack:
    """Refuses an attack of somebody's own that every table would take for another."""
    if attack.name in (*SUITES, *RESERVED) or entry_of(attack.name.lower()) is not None:
        raise RobenchError(
            f"an attack of yours is called {attack.name!r}, which is a name of robench's; give it another: @attack(name=...), or "
            "Attack.of(fn, name=...)"
        )
    return attack


class FoundAttack(NamedTuple):
    """An attack's name, the attack for a threat model, and the norms that it is to be tried in."""

    name: str
    make: Callable[[ThreatModel], Attack]
    norms: tuple[str, ...]


def find_attack(given: str, norms: Sequence[str] = ()) -> FoundAttack:
    """An attack by ``FILE.py:FUNCTION`` or by name, to be tried on models of 10 classes.

    Args:
        given: the file and the function, or the name.
        norms: that it is to be tried in; all that it is for, by default.

    Raises:
        RobenchError: there is none, or it is not for one of the norms.
    """
    value: str | Attack = (
        _checked_value(attack_of_file(given)) if ":" in given or given.endswith(".py") else str(check_suite(given)[0])
    )
    if (isinstance(value, str) and value in SUITES) or "@" in given:
        raise RobenchError(f"{given!r} is no single attack; expected FILE.py:FUNCTION, or one of `robench list attacks`")

    def make(threat: ThreatModel) -> Attack:
        return _columns(value, context(threat))[0].stages[0]

    def context(threat: ThreatModel) -> Context:
        return Context(threat, 10, AttackOptions())

    probe = (
        value
        if isinstance(value, Attack)
        else make_in_any_norm(value, context(ThreatModel("Linf", 0.1)))
        if entry_of(value)
        else None
    )
    defined = (probe or load_installed(str(value), installed_attacks()[str(value)])).norms
    for norm in norms:
        make(ThreatModel(norm, 0.1))
    return FoundAttack(value if isinstance(value, str) else value.name, make, tuple(norms) or defined)


def source_paths(suite: Asked | None) -> list[str]:
    """The checkpoints that attacks of a suite are crafted on, each once."""
    named = [each for each in check_suite(suite) if isinstance(each, str)] if suite else []
    return list(dict.fromkeys(name.partition("@")[2] for name in named if "@" in name))


def _lower(name: str) -> str:
    attack, at, source = name.partition("@")
    return attack.lower() + at + source


def _marked(name: str, usual: PassOptions, pass_options: PassOptions, *more: str) -> str:
    """A column's name with what is not usual about how it was computed, since it may differ in last bits or more."""
    unusual = [word for word in str(pass_options).split(", ") if word not in str(usual).split(", ") and pass_options != usual]
    remarks = ", ".join((*more, *unusual))
    return f"{name}({remarks})" if remarks else name


def _named(attack: Attack, usual: PassOptions) -> Column:
    attack = replace(attack, name=_marked(attack.name, usual, attack.pass_options))
    return Column(attack.name, (attack,), is_cascade=False)


def _column(attack: Attack, context: Context) -> Column:
    """The column of an attack that robench does not bring."""
    return _named(searching(in_norm(attack, attack.name, context), context.options.pass_options), attack.pass_options)


def _columns(asked: str | Attack, context: Context) -> list[Column]:
    if isinstance(asked, Attack):
        return [_column(asked, context)]
    name, at, path = asked.partition("@")
    if at:
        from robench.attacks.crafting_targets import crafted_on

        source = context.sources[path]
        if source.classifier.n_classes != context.n_classes:
            raise RobenchError(
                f"{name}@{path}: that model has {source.classifier.n_classes} classes, the one under test {context.n_classes}; images of one "
                "mean nothing to the other"
            )
        crafted = [crafted_on(single.stages[0], source) for single in _columns(name, context)]
        return [Column(attack.name, (attack,), is_cascade=False) for attack in crafted]
    if name not in SUITES and entry_of(name) is None:
        return [_column(load_installed(name, installed_attacks()[name]), context)]
    if name not in SUITES:
        return [_named(make_attack(name, context), PassOptions(folded=name == "nearest"))]
    entry = SUITES[name]
    if entry.is_cascade:
        stages, gate, inner = fast_members(context) if name == "fast" else FastMembers(entry.attacks, entry.gate, context)
        screens = [screen for each in entry.screens if context.threat.norm in (screen := make_in_any_norm(each, context)).norms]
        attacks = (*screens, *(made for stage in stages for made in _stages(stage, inner)))
        budget = [f"budget={context.options.budget:g}"] if name == "fast" and context.options.budget is not None else []
        usual = PassOptions(folded=name == "fast")
        name = _marked(
            name, usual, replace(context.options.pass_options, folded=usual.folded or context.options.pass_options.folded), *budget
        )
        blind = entry is SUITES["fast"]
        return [
            Column(name, attacks, is_cascade=True, about=entry.about, count_queries=entry.count_queries, gate=gate, blind=blind)
        ]
    return [column for stage in entry.attacks for column in _columns(stage, context)]


def _stages(name: str, context: Context) -> list[Attack]:
    """A stage of a cascade. A search in TF32 is two: what it leaves is attacked again in float32, for a share of its budget."""
    options = context.options
    if name != "nearest" or options.pass_options.precision != "tf32":
        return [make_attack(name, context)]
    budget = FAST_BUDGET if options.budget is None else options.budget
    kept = round(LAST_SHARE * budget, 6)
    exact = replace(options, budget=kept, pass_options=replace(options.pass_options, precision="fp32"))
    last = make_attack(name, replace(context, options=exact))
    search = replace(options, budget=round(budget - kept, 6))
    return [make_attack(name, replace(context, options=search)), last.identified(replace(last.identity, name=LAST))]


class FastMembers(NamedTuple):
    """A cascade's stages in order, the one behind which the others run only where it broke a sample, or "", and what they are made for."""

    stages: tuple[str, ...]
    gate: str
    context: Context


def fast_members(context: Context) -> FastMembers:
    """The stages of ``fast``, which of them must have broken something before those behind it run, and what is left of the budget for the
    first: a large one pays for AutoAttack's APGD, or for all of it, which look for what our search is blind to. Without the targeted
    loss where there are too few classes for it."""
    budget, n_classes = context.options.budget or FAST_BUDGET, context.n_classes
    stages = tuple(stage for stage in autoattack.STAGES if stage != "apgd-t" or n_classes >= 4)
    first = tuple(stage for stage in stages if stage.startswith("apgd"))
    rest = tuple(stage for stage in stages if stage not in first)
    apgd, whole = (sum(autoattack.stage_units(each, n_classes) for each in some) / AUTOATTACK_UNITS for some in (first, stages))
    if budget < apgd + LEAST_SEARCH:
        return FastMembers(("nearest", "suspect", *stages), "suspect", context)
    gate, spent = ("suspect", apgd) if budget < whole + LEAST_SEARCH else ("", whole)
    left = replace(context, options=replace(context.options, budget=budget - spent))
    return FastMembers(("nearest", *first, "suspect", *rest), gate, left)
