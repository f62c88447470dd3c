"""ATTACKS and SUITES: names on the command line -> what the engine runs."""

from robench.attacks.external import attack_of_file, called, installed_attacks, package_of
from robench.attacks.registry import ATTACKS, AttackOptions
from robench.attacks.suites import SUITES, Asked, check_suite, find_attack, parse_columns, source_paths

__all__ = [
    "ATTACKS", "SUITES", "Asked", "AttackOptions", "attack_of_file", "called", "check_suite", "find_attack", "installed_attacks", "package_of", "parse_columns",
    "source_paths",
]  # fmt: skip
