"""Writes tests/attack_keys.json: what every name of an attack stands for, and where its chunks lie. Only for a change that is meant."""

import json
from pathlib import Path

from robench.adapters import autoattack, torchattacks
from robench.attacks import AttackOptions, parse_columns
from robench.evaluation.run_folder import attack_folder
from robench.types import PassOptions, RobenchError, ThreatModel

FILE = Path(__file__).with_name("attack_keys.json")
NAMES = [
    "fgsm",
    "pgd7",
    "pgd20",
    "pgd50",
    "pgd1",
    "pgd100",
    "pgd50-ce",
    "pgd50-margin",
    "pgd50-dlr",
    "pgd50-rescaled",
    "pgd50-log",
    "pgd50-float64",
    "pgd50-eot",
    "pgd50-bpda",
    "pgd50-spsa",
    "pgd3-ce",
    "noise",
    "apgd-ce",
    "apgd-t",
    "fab-t",
    "square",
    "square20000",
    "square200",
    "nearest",
    "suspect",
    "autoattack",
    "autoattack-screened",
    "fast",
]
THREATS = (ThreatModel("Linf", 8 / 255), ThreatModel("L2", 0.5), ThreatModel("L1", 12.0))
BY_CLASSES = ("apgd-t", "fab-t", "pgd50-dlr", "fast")
OPTIONS = {
    "": {},
    "step 0.01": {"step_size": 0.01},
    "step 1/255, restarts 3": {"step_size": 1 / 255, "restarts": 3},
    "restarts 3": {"restarts": 3},
    "budget 1": {"budget": 1.0},
    "folded bf16": {"pass_options": PassOptions(folded=True, precision="bf16")},
    "folded tf32": {"pass_options": PassOptions(folded=True, precision="tf32")},
}
WITH_OPTIONS = ("pgd20", "pgd50-ce", "nearest", "fast", "autoattack")
VERSION = "0"  # of the libraries, which are another matter


def described(name, threat, n_classes, options):
    """The columns of a name, or why there is none."""
    try:
        suites = parse_columns(name, threat, n_classes, AttackOptions(**options))
    except RobenchError as error:
        return str(error)
    return [
        {
            "column": suite.name, "folder": attack_folder(suite, member), "name": member.name, "norms": list(member.norms),
            "gradients": member.gradients, "params": dict(member.params), "library": member.library, "source": member.source,
            "family": member.family, "keeps": member.returns, "prefix_of": member.prefix_of, "search": str(member.pass_options),
        }
        for suite in suites
        for member in suite.stages
    ]  # fmt: skip


def all_keys():
    """Everything that is pinned, by a line that says what was asked."""
    asked = [(name, threat, 10, "") for name in NAMES for threat in THREATS]
    asked += [(name, THREATS[0], n_classes, "") for name in BY_CLASSES for n_classes in (2, 3, 4, 100)]
    asked += [(name, threat, 10, more) for name in WITH_OPTIONS for threat in THREATS for more in OPTIONS if more]
    return {
        f"{name} {threat} {n_classes} {more}".rstrip(): described(name, threat, n_classes, OPTIONS[more])
        for name, threat, n_classes, more in asked
    }


if __name__ == "__main__":
    autoattack.version = torchattacks.version = lambda package: VERSION
    FILE.write_text(
        "{\n" + ",\n".join(f"{json.dumps(asked)}: {json.dumps(means)}" for asked, means in all_keys().items()) + "\n}\n"
    )
