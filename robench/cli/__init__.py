"""The command line: parse, one library call, print. Libraries are imported inside the commands, so that --help is instant."""

from robench.cli import attack, audit, doctor, reports, reproduce, train  # each adds its commands to the group
from robench.cli.group import INTERRUPTED, main

__all__ = ["INTERRUPTED", "attack", "audit", "doctor", "main", "reports", "reproduce", "train"]
