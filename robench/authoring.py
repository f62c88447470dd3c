"""What the author of an attack writes: a function, and one decorator that describes it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from robench.code_digest import digest_function, file_of, innermost
from robench.identity import RESERVED
from robench.norms import NORMS
from robench.types import NO_REWRITE, Attack, AttackFn, PassOptions, ReturnPolicy, RobenchError

ARGUMENTS = ("model", "images", "labels", "threat", "seed")
EXPECTED = f"({', '.join(ARGUMENTS)}), and parameters with defaults behind a *"
ATTRIBUTE = "robench_attack"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is said of an attack's function; see ``Attack``.

    Attributes:
        name: its column; by default the function's.
        norms: that it is defined for.
        returns: which of the adversarial images that it came across, see ``ReturnPolicy``.
        source: the paper or URL that defines it; by default where the function lies.
        gradients: whether it asks the model for gradients.
        recorded: what defines it besides its parameters, recorded and keyed with them.
        library: says who computes it, with the version; by default the file's name and the digest of its code.
        family: attacks of one family start from the same random draws.
        prefix_of, pass_options: see ``Attack``.
    """

    name: str = ""
    norms: tuple[str, ...] = tuple(NORMS)
    returns: ReturnPolicy = ReturnPolicy.LAST
    source: str = ""
    gradients: bool = True
    recorded: Mapping[str, Any] = field(default_factory=dict)
    library: Callable[[], str] | None = None
    family: str = ""
    prefix_of: str = ""
    pass_options: PassOptions = NO_REWRITE

    def __post_init__(self) -> None:
        norms = (self.norms,) if isinstance(self.norms, str) else tuple(self.norms)
        object.__setattr__(self, "norms", norms)
        if not norms or not set(norms) <= set(NORMS):
            raise RobenchError(
                f"an attack for the norms {', '.join(map(str, norms)) or 'of none'}; expected some of {', '.join(NORMS)}"
            )
        object.__setattr__(self, "returns", _policy(self.returns))
        if not re.fullmatch(r"([\w.+-]+(\([^@]*\))*)?", self.name):
            raise RobenchError(
                f"an attack called {self.name!r}; expected letters, digits and . + - _, since columns and folders are called so"
            )


def _policy(returns: str) -> ReturnPolicy:
    try:
        return ReturnPolicy(returns)
    except ValueError:
        raise RobenchError(
            f"an attack that returns {returns!r}; expected one of {', '.join(ReturnPolicy)}, see robench.types.ReturnPolicy"
        ) from None


FIELDS = frozenset(each.name for each in fields(Description))


def attack(
    fn: Any = None, *, name: str = "", norms: str | Sequence[str] = tuple(NORMS), returns: str = ReturnPolicy.LAST, source: str = "",
    gradients: bool = True, recorded: Mapping[str, Any] | None = None, library: Callable[[], str] | None = None, family: str = "",
) -> Any:  # fmt: skip
    """Describes the function below it as an attack. The function stays what it is; its keyword parameters are the attack's.

    ::

        @attack(norms=("Linf", "L2"), source="Madry et al. 2018, https://arxiv.org/abs/1706.06083")
        def descent(model, images, labels, threat, seed, *, steps=10): ...

    Args:
        fn: the function; left out where the decorator is called.
        name, norms, returns, source, gradients, recorded, library, family: see ``Description``.

    Raises:
        RobenchError: an unknown norm, an odd name.
    """
    described = Description(
        name=name, norms=tuple([norms] if isinstance(norms, str) else norms), returns=_policy(returns), source=source, gradients=gradients,
        recorded=recorded or {}, library=library, family=family,
    )  # fmt: skip

    def attach(function: Any) -> Any:
        setattr(function, ATTRIBUTE, described)
        return function

    return attach if fn is None else attach(fn)


def attack_of(fn: AttackFn, **overrides: Any) -> Attack:
    """The attack that a function is. What it is keyed by, and so what decides whether a finished column is its own: its name, its
    parameters, and its code, see ``digest_function``.

    Args:
        fn: ``fn(model, images, labels, threat, seed) -> adv_images``, with keyword parameters that have defaults or are given here.
        overrides: of these parameters, or of the fields of ``Description``. A changed parameter, also one that ``functools.partial`` has changed,
            is part of the column's name.

    Raises:
        RobenchError: it is no such function, or an override fits nothing.
    """
    described = description_of(fn)
    said = {key: value for key, value in overrides.items() if key in FIELDS}
    described = replace(described, **said)
    plain = described.name or plain_name(fn)
    defaults = parameters_of(fn, plain)
    given = {key: value for key, value in overrides.items() if key not in FIELDS}
    for key in given.keys() - defaults.keys():
        raise RobenchError(f"attack {plain!r} has no parameter {key!r}; it has {', '.join(defaults) or 'none'}")
    values = defaults | given
    for key in [key for key, value in values.items() if value is inspect.Parameter.empty]:
        raise RobenchError(f"attack {plain!r} needs a {key}: give its parameter a default, or write Attack.of({plain}, {key}=...)")
    recorded = {key: _recorded(plain, key, value) for key, value in values.items()}
    own = defaults | _before_partial(fn)
    changed = [
        f"{key}={recorded[key]}"
        for key in dict.fromkeys([*_set_by_partial(fn), *given])
        if key in recorded and not _same(recorded[key], own[key], plain, key)
    ]
    name = plain if "name" in said or not changed else f"{plain}({', '.join(changed)})".replace("@", "_")
    return make_value(fn, replace(described, name=name, family=described.family or f"own {plain}"), given, recorded)


def make_value(fn: AttackFn, described: Description, given: Mapping[str, Any], recorded: Mapping[str, Any]) -> Attack:
    """The attack of a function with some of its parameters set.

    Args:
        fn: the function.
        described: with a name.
        given: parameters that it is called with.
        recorded: those that its column is keyed by.
    """
    return Attack(
        name=described.name, fn=functools.partial(fn, **given) if given else fn, norms=described.norms, gradients=described.gradients,
        params={**recorded, **described.recorded}, library=described.library() if described.library else _code_of(fn),
        source=described.source or _place_of(fn), family=described.family or described.name, returns=described.returns,
        prefix_of=described.prefix_of, pass_options=described.pass_options,
    )  # fmt: skip


def description_of(fn: Any) -> Description:
    """What the decorator says of a function, or nothing."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    found = getattr(fn, ATTRIBUTE, None)
    return found if isinstance(found, Description) else Description()


def plain_name(fn: Any) -> str:
    """What a function is called in messages and, where nothing else is said, in tables."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__name__", type(fn).__name__).strip("<>")


def _set_by_partial(fn: Any) -> dict[str, Any]:
    """The parameters that ``functools.partial`` has set."""
    return {**_set_by_partial(fn.func), **fn.keywords} if isinstance(fn, functools.partial) else {}


def _before_partial(fn: Any) -> dict[str, Any]:
    """The defaults of those, as the function says them; empty where it has none."""
    changed = _set_by_partial(fn)
    while isinstance(fn, functools.partial):
        fn = fn.func
    return {key: one.default for key, one in inspect.signature(fn).parameters.items() if key in changed} if changed else {}


def parameters_of(fn: Any, name: str) -> dict[str, Any]:
    """The parameters of an attack's function and their defaults: what it takes behind the five arguments of ``AttackFn``.

    Raises:
        RobenchError: it takes other arguments.
    """
    if not callable(fn) or isinstance(fn, type):
        raise RobenchError(
            f"attack {name!r} is {'a class' if isinstance(fn, type) else f'of type {type(fn).__name__}'}; expected a function {EXPECTED}"
        )
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        raise RobenchError(f"attack {name!r} does not say which arguments it takes; expected a function {EXPECTED}") from None
    each = list(signature.parameters.values())
    placed = [one for one in each if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    first, more = placed[: len(ARGUMENTS)], placed[len(ARGUMENTS) :] + [one for one in each if one.kind is one.KEYWORD_ONLY]
    misplaced = any(one.name in ARGUMENTS and place != ARGUMENTS.index(one.name) for place, one in enumerate(first))
    optional = any(one.default is not one.empty and one.name not in ARGUMENTS for one in first)
    taken = any(one.kind is one.VAR_POSITIONAL for one in each) or len(first) == len(ARGUMENTS)
    if misplaced or optional or not taken or any(one.name in ARGUMENTS for one in more):
        raise RobenchError(f"attack {name!r} takes {signature}, expected {EXPECTED}")
    for one in more:
        if one.name in RESERVED or one.name in FIELDS:
            raise RobenchError(
                f"attack {name!r} has a parameter called {one.name!r}, which means something else in robench; rename it"
            )
    return {one.name: one.default for one in more}


def _recorded(name: str, key: str, value: Any) -> Any:
    """A parameter's value as run.json has it.

    Raises:
        RobenchError: it cannot be written down.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_recorded(name, key, each) for each in value]
    if isinstance(value, Mapping):
        return {str(inner): _recorded(name, key, each) for inner, each in value.items()}
    if callable(value):
        return f"{plain_name(value)}, code {digest_function(value)[:12]}"
    raise RobenchError(
        f"attack {name!r}: {key} is of type {type(value).__name__}, which cannot be recorded; expected numbers, texts, lists or functions. What is "
        "no setting may be a global that the function uses"
    )


def _same(recorded: Any, usual: Any, name: str, key: str) -> bool:
    """Whether a parameter is recorded as its usual value would be."""
    if usual is inspect.Parameter.empty:
        return False
    try:
        return repr(recorded) == repr(_recorded(name, key, usual))
    except RobenchError:  # the usual value cannot be recorded, and this one could
        return False


def _code_of(fn: Any) -> str:
    file = file_of(fn)
    return f"{file.name if file else 'typed in'}, code {digest_function(fn)[:12]}"


def _place_of(fn: Any) -> str:
    file, inner = file_of(fn), innermost(fn)
    return f"{file.name}:{inner.__qualname__}" if file else f"{inner.__qualname__}, typed in"
