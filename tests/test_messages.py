"""Messages name parameters: as Python does for Python callers, as options on the command line."""

import ast
import inspect
import re
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

import robench
from robench.attacks import AttackOptions, parse_columns
from robench.cli import main
from robench.cli.group import in_options
from robench.types import RobenchError, ThreatModel

PACKAGE = Path(robench.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
COMMAND = re.compile(r"`[^`]*\b(?:robench|torchrun|pip) [^`]*`")  # a command to run, named in full
NAMED = re.compile(r"`([a-z][a-z_]*)(?:=[^`]*)?`")
AS_CODE = {"broken", "union", "stored", "version"}  # columns of reports, and an attribute that a function may have
# What builds a command line, or is a command's own page.
EXCEPTED = {
    # ExternalModel.options, ExternalData.options
    "types.py": {"--weights", "--model", "--trust", "--weights-dtype", "--classes", "--", "--dataset"},
    "reproduce/settings.py": {"--table", "--quick", "--recipe", "--precision", "--epochs", "--adversarial-epochs", "--seeds"},
    "interchange/bundle.py": {"--ckpt"},  # the command that verifies a bundle
    "audit/selftest.py": {"--self-test"},  # the command, as an audit records it
    "audit/schedule.py": {"--minutes"},  # the command that takes longer
    "adapters/robustbench.py": {"--force-reinstall", "--no-deps"},  # of pip
    "evaluation/environment.py": {"--always", "--dirty", "--abbrev"},  # of git
    "training/spec.py": {"--arch"},  # the command that trains a variant of somebody's own, which is a file
    "doctor.py": {"--force-reinstall", "--upgrade", "--precision", "--data-dir"},  # of pip, and what `robench doctor` prints
}


def texts(path):
    """Every text of a module but docstrings; a placeholder is {}."""
    tree = ast.parse(path.read_text())
    apart = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            apart.add(id(body[0].value))
        if isinstance(node, ast.JoinedStr):
            apart |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart:
            yield node.value


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("cli/"):
            yield name, list(texts(path))


def test_no_module_below_the_command_line_speaks_of_options():
    spoken = {name: {option for text in said for option in OPTION.findall(COMMAND.sub("", text))} for name, said in modules()}
    assert not {
        name: options - EXCEPTED.get(name, set()) for name, options in spoken.items() if options - EXCEPTED.get(name, set())
    }
    assert all(spoken[name] for name in EXCEPTED)  # no exception outlives its reason


def test_the_commands_that_messages_name_have_the_options_that_they_are_named_with():
    named = [command for _, said in modules() for text in said for command in re.findall(r"`robench ([a-z]+) ([^`]*)`", text)]
    assert len(named) > 8
    for name, rest in named:
        spelled = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert set(OPTION.findall(rest)) <= spelled, (name, rest)


def parameters():
    """Names of every argument and field of the package."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.arg):
                yield node.arg
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id


def test_every_name_in_a_message_is_a_parameter_and_an_option_of_a_command_or_an_argument_of_evaluate():
    options = {
        name
        for command in main.commands.values()
        for parameter in command.params
        for name in (parameter.name, *(option[2:].replace("-", "_") for option in parameter.opts))
    }
    known = (options & set(parameters())) | set(inspect.signature(robench.evaluate).parameters)
    named = [(where, name) for where, said in modules() for text in said for name in NAMED.findall(text)]
    assert len(named) > 100
    assert not [(where, name) for where, name in named if name not in known | AS_CODE]


@click.command()
@click.option("--step-size")
@click.option("--batch-size", "chunk")
@click.option("-n", "--n")
@click.option("--trust", is_flag=True)
def example():
    """A command."""


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`step_size=0.5`: expected less", "--step-size 0.5: expected less"),
        ("`chunk` and `batch_size=9`", "--batch-size and --batch-size 9"),
        ("`n=0`; add `trust`", "--n 0; add --trust"),
        ("give `step_size=(0.5,0.4)`", "give --step-size 0.5,0.4"),  # a tuple in Python
        ("`out=x` is a folder; `robench list models`", "`out=x` is a folder; `robench list models`"),  # no option of this command
        ("a folder step_size=0.5 of somebody's", "a folder step_size=0.5 of somebody's"),
        ("unknown attack 'pgd'; did you mean 'pgd20'?", "unknown attack 'pgd'; did you mean 'pgd20'?"),
    ],
)
def test_a_command_shows_a_parameter_as_its_own_option(message, shown):
    assert in_options(message, example) == shown
    assert in_options(message, None) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("attack", "--ckpt", "x", "--restarts", "1", "--seed", "-1"), "--seed -1: expected 0 to 2^63 - 1"),
        (("attack",), "either --ckpt FILE or --model (`robench list models`), such as --model FILE.py:FACTORY"),
        (("attack", "--ckpt", "x", "--batch-size", "few"), "--batch-size 'few': expected auto"),
        (("audit", "--ckpt", "x", "--claim-protocol", "mine"), "--claim-protocol 'mine': expected one of"),
        (("attack", "--model", "m.py:make", "--dataset", "digits", "--mean", "a", "--std", "1"), "--mean 'a': expected numbers"),
        (
            ("attack", "--model", "m.py:make", "--dataset", "digits", "--mean", "2", "--std", "1"),
            "--mean 2 --std 1: expected values",
        ),
        (("train", "--arch", "single", "--dataset", "digits", "--lr", "-1"), "--lr -1.0: expected a number above 0"),
        (
            ("train", "--arch", "single", "--dataset", "digits", "--temperature", "1"),
            "--temperature has no meaning for arch 'single'",
        ),
        (("attack", "--model", "what is this", "--dataset", "digits"), "--model 'what is this': expected one of FILE.py:FACTORY"),
        (
            ("attack", "--model", "torchvision:resnet18", "--dataset", "digits"),
            "would be random: add --weights FILE, its state dict",
        ),
        (("train", "--arch", "single", "--dataset", __file__), f"--dataset {__file__}: expected a folder of images per class"),
        (("sweep", "--ckpt", "x", "--eps", "0"), "--eps '0': expected radii above 0"),
        (("sweep", "--ckpt", "x", "--eps", "far"), "--eps 'far' is not a number"),
    ],
)
def test_the_command_line_is_told_of_options(arguments, message):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert message in done.stderr and "`" not in done.stderr.replace("`robench list models`", "")


def test_the_list_of_models_names_options():
    shown = CliRunner().invoke(main, ["list", "models"]).stdout
    assert "a model of timm, with --weights FILE\n" in shown and "(.pt2), with --trust\n" in shown and "`" not in shown


def test_python_is_told_of_parameters():
    with pytest.raises(RobenchError, match="^`step_size=2` with eps 0.1: expected a step above 0"):
        parse_columns("pgd2", ThreatModel("Linf", 0.1), 10, AttackOptions(step_size=2.0))
    with pytest.raises(RobenchError, match="^`mean` has 3 values and `std` 0; give both"):
        robench.evaluate(lambda images: images.flatten(1), torch.rand(2, 3, 8, 8), [0, 1], mean=(0.5, 0.5, 0.5))
    with pytest.raises(RobenchError, match="^labels are missing: a Tensor brings none; give `labels`$"):
        robench.evaluate(lambda images: images.flatten(1), torch.rand(2, 3, 8, 8))
    with pytest.raises(RobenchError, match="^`device=abacus` cannot be used here"):
        robench.evaluate(lambda images: images.flatten(1), torch.rand(2, 3, 8, 8), [0, 1], device="abacus")
    with pytest.raises(RobenchError, match="name one with `head`, such as `head=logits`$"):
        robench.evaluate(lambda images: {"logits": images.flatten(1)}, torch.rand(2, 3, 8, 8), [0, 1])
    with pytest.raises(RobenchError, match="^eps 8 is larger than the whole pixel range.* did you mean 8/255"):
        ThreatModel("Linf", 8)
