"""The command group: what every command shares, and how mistakes and interruptions end."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import robench
from robench.types import NORMS, RobenchError

INTERRUPTED = 130
_NAMED = re.compile(r"`([a-z][a-z_]*)(?:=([^`]*))?`")


def in_options(text: str, command: click.Command | None) -> str:
    """A message about parameters in the words of a command: `` `step_size=0.5` `` is ``--step-size 0.5`` there.

    What the command has no option for stays as it is.
    """
    options: dict[str, str] = {}
    for parameter in command.params if command else ():
        spelled = [option for option in parameter.opts if option.startswith("--")]
        options |= {str(parameter.name): option for option in spelled} | {_as_name(option): option for option in spelled}

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in options or value is None:
            return found[0] if name not in options else options[name]
        return f"{options[name]} {value.strip('()')}"  # several numbers are a tuple in Python

    return _NAMED.sub(option, text)


def _as_name(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


class _Commands(click.Group):
    """Turns the user's mistakes into one line and exit code 1, and Ctrl-C into exit code 130."""

    def invoke(self, ctx: click.Context) -> Any:
        # OpenMP's waiting threads otherwise spin, and take the cores from whatever else runs on the machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            return super().invoke(ctx)
        except RobenchError as error:
            said = in_options(str(error), self.commands.get(ctx.invoked_subcommand or ""))
            click.echo(f"robench: {said}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("\nrobench: interrupted; everything finished is kept, the same command goes on from there", err=True)
            ctx.exit(INTERRUPTED)


EPILOG = """\b
Every option is also read from the environment: ROBENCH_ATTACK_DEVICE=cpu is `robench attack --device cpu`.
Completion of commands and options: eval "$(_ROBENCH_COMPLETE=bash_source robench)" in ~/.bashrc;
zsh: the same with zsh_source in ~/.zshrc; fish: _ROBENCH_COMPLETE=fish_source robench | source"""


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "ROBENCH"}, epilog=EPILOG
)
# Otherwise a variable ROBENCH_VERSION would turn every command into --version.
@click.version_option(robench.__version__, prog_name="robench", allow_from_autoenv=False)
def main() -> None:
    """Train multi-head image classifiers, attack any classifier, and say whether the robustness number is real."""


def shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that training and attacking have in common."""
    options = [
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores]."),
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Where data sets lie [default: $ROBENCH_DATA, else the cache]."
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def norm_option(about: str) -> Callable[..., Any]:
    """--norm, in any case."""
    spelled = {norm.lower(): norm for norm in NORMS}
    return click.option(
        "--norm", default="Linf", show_default=True, callback=lambda _, __, given: spelled.get(given.lower(), given), help=about
    )


def hint(text: str) -> None:
    """One line on stderr, so that stdout holds results alone."""
    context = click.get_current_context(silent=True)
    click.echo(f"robench: {in_options(text, context.command if context else None)}", err=True)


def warn(text: str) -> None:
    """A line like a hint, of something that looks wrong."""
    hint(f"warning: {text}")


def print_run(run: Path, least: float | None = None, next_step: str = "") -> None:
    """The table, what failed, and last the report's path; on stderr what to do next.

    Args:
        run: the folder.
        least: the gate; exit code 3 where the union's upper bound lies below it. An attack that failed comes first: exit code 1.
        next_step: a hint.
    """
    from robench.evaluation.results import announced, failures, read_results
    from robench.report.accuracy import shortfall, summarise
    from robench.report.markdown import terminal_table

    results = read_results(run)
    summary = summarise(results)
    click.echo(terminal_table(summary, results.description["data"]["n"]))
    failed = failures(results)
    if results.unfinished:
        hint(f"not shown, since chunks of it are missing: {', '.join(results.unfinished)}; name it in --suite again to complete it")
    for line in failed:
        hint(announced(line))
    short = shortfall(summary, least) if least is not None and not failed else ""
    if short:
        hint(f"--fail-under {least:g}: {short}")
    click.echo(run / "report.html")
    click.echo(run / "report.md")
    if next_step and not failed:
        hint(next_step)
    if failed or short:
        click.get_current_context().exit(1 if failed else 3)
