"""ATTACKS and SUITES: names on the command line -> what the engine runs."""

from robench.attacks.registry import ATTACKS, AttackOptions
from robench.attacks.suites import SUITES, check_names, parse_suites, source_paths

__all__ = ["ATTACKS", "SUITES", "AttackOptions", "check_names", "parse_suites", "source_paths"]
