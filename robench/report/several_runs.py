"""What is written about several runs: text for the terminal, and a page where one is asked for."""

from __future__ import annotations

from pathlib import Path

from robench.files import write_atomically
from robench.report.compare import compare, comparison_text, relative
from robench.report.html.comparison import render_comparison
from robench.report.html.leaderboard import render_leaderboard
from robench.report.leaderboard import collect, leaderboard_text
from robench.types import RobenchError


def compare_runs(runs: list[Path], out: Path | None = None, *, anyway: bool = False, robustbench: Path | None = None) -> str:
    """Models in rows and attacks in columns, paired tests, and what each attack alone breaks, as text.

    Args:
        runs: run folders.
        out: also written there, as a page (.html) or as markdown (.md).
        anyway: compare runs on different data, samples or threat models, and say so.
        robustbench: see ``read_robustbench``; shown on the page.

    Raises:
        RobenchError: the runs differ in data, number of samples or threat model, so that a table of them would mislead.
    """
    if out is not None and out.suffix not in (".html", ".md"):
        raise RobenchError(f"`out={out}`: expected a name that ends in .html, for a page, or in .md, for a table in markdown")
    comparison = compare(runs, anyway=anyway, robustbench=robustbench)
    text = comparison_text(comparison)
    if out is not None and out.suffix == ".html":
        write_atomically(
            out,
            render_comparison(comparison, {name: relative(each.path, out) for name, each in comparison.results.items()}).encode(),
        )
    elif out is not None:
        links = "\n".join(f"- [{each.path.name}]({relative(each.path, out)}/report.md)" for each in comparison.results.values())
        write_atomically(out, f"# Comparison\n\n{text}\n{links}\n".encode())
    return text


def write_leaderboard(folder: Path, out: Path | None = None) -> str:
    """All runs below a folder as text; as a page that sorts, where a name for it is given.

    Raises:
        RobenchError: there is no run, or the page's name does not end in .html.
    """
    if out is not None and out.suffix != ".html":
        raise RobenchError(f"`out={out}`: expected a name that ends in .html")
    leaderboard = collect(folder)
    if out is not None:
        write_atomically(out, render_leaderboard(leaderboard, folder, lambda path: relative(path, out)).encode())
    return leaderboard_text(leaderboard)
