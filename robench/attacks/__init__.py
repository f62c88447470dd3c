"""ATTACKS and SUITES: names on the command line -> what the engine runs."""

from robench.attacks.registry import ATTACKS, SUITES, AttackOptions, check_names, parse_suites, source_paths

__all__ = ["ATTACKS", "SUITES", "AttackOptions", "check_names", "parse_suites", "source_paths"]
