"""Attacks that robench does not bring: a function of a program's, of a file, or of an installed package."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from robench.authoring import attack_of, description_of, plain_name
from robench.types import Attack, RobenchError
from robench.user_code import load_module

GROUP = "robench.attacks"  # of entry points


def attack_of_file(where: str) -> Attack:
    """The attack that ``FILE.py:FUNCTION`` names. Loading it runs the file.

    Raises:
        RobenchError: no such file or function; the file raised; the function takes other arguments.
    """
    said = f"`attack={where!r}`"
    file, _, name = where.rpartition(":")
    if not file and Path(where).is_file():
        raise RobenchError(f"{said} lacks the function: write {where}:FUNCTION")
    if not file or not Path(file).is_file():
        raise RobenchError(f"{said}: no file {file or where!r}; expected FILE.py:FUNCTION, such as my_attack.py:shift")
    module = load_module(Path(file), said)
    found = getattr(module, name, None)
    if found is None:
        there = [
            each for each, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__
        ]
        raise RobenchError(f"{said}: {file} has no function {name!r}; it has {', '.join(there) or 'none'}")
    return as_attack(found)


def as_attack(given: Any) -> Attack:
    """An attack's value, of itself or of a function.

    Raises:
        RobenchError: it is neither.
    """
    return given if isinstance(given, Attack) else attack_of(given)


def installed_attacks() -> dict[str, list[EntryPoint]]:
    """What installed packages call an attack of theirs, in small letters, to who does; nothing is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name.lower(), []).append(entry)
    return found


def package_of(entry: EntryPoint) -> str:
    """The package that an entry point is of, with its version."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package without a name"


def load_installed(name: str, entries: list[EntryPoint]) -> Attack:
    """The attack of an installed package; its column has the name of the entry point.

    Raises:
        RobenchError: several packages have one of this name, or it cannot be loaded.
    """
    if len({entry.value for entry in entries}) > 1:
        raise RobenchError(
            f"attack {name!r} is of {' and of '.join(map(package_of, entries))}; uninstall one, or name the function itself: `attack=FILE.py:FUNCTION`"
        )
    entry = entries[0]
    try:
        given = entry.load()
        attack = given if isinstance(given, Attack) else _of_package(attack_of(given, name=entry.name), entry)
    except (Exception, SystemExit) as error:  # somebody else's package may raise anything
        said = f"{type(error).__name__}: {error}" if not isinstance(error, RobenchError) else str(error)
        raise RobenchError(f"attack {name!r} of {package_of(entry)} ({entry.value}) cannot be loaded: {said}") from error
    return attack


def _of_package(attack: Attack, entry: EntryPoint) -> Attack:
    if description_of(attack.fn).library is not None:
        return attack
    return replace(attack, library=f"{package_of(entry)}, {attack.library.rpartition(', ')[2]}")


def called(given: Any) -> str:
    """What attacks, alone or in a list, are called when the call is recorded."""
    if isinstance(given, list | tuple):
        return f"[{', '.join(map(called, given))}]"
    return repr(given) if isinstance(given, str) else given.name if isinstance(given, Attack) else plain_name(given)
