"""The command line: parse, one library call, print. Libraries are imported inside the commands, so that --help is instant."""

from robench.cli import (  # each adds its commands to the group
    attack,
    audit,
    check_attack,
    doctor,
    interchange,
    reports,
    reproduce,
    sweep,
    train,
)
from robench.cli.group import INTERRUPTED, main

__all__ = [
    "INTERRUPTED",
    "attack",
    "audit",
    "check_attack",
    "doctor",
    "interchange",
    "main",
    "reports",
    "reproduce",
    "sweep",
    "train",
]
