"""Several runs side by side."""

from __future__ import annotations

from pathlib import Path

from robench.evaluation.results import read_results
from robench.files import write_atomically
from robench.report.markdown import layout_table
from robench.report.tables import summarise
from robench.types import RobenchError


def compare_runs(runs: list[Path], out: Path | None = None) -> str:
    """One table, models in rows and attacks in columns; written to ``out`` as markdown where given.

    Raises:
        RobenchError: the runs differ in data, number of samples or threat model, so that a table of them would mislead.
    """
    results = [read_results(run) for run in runs]
    kinds = {_what(result.description): result.path for result in results}
    if len(kinds) > 1:
        listed = "; ".join(f"{path}: {what}" for what, path in kinds.items())
        raise RobenchError(f"these runs are about different things and cannot stand in one table: {listed}")
    summaries = {result.description["model"]["name"]: summarise(result) for result in results}
    if len(summaries) < len(results):
        summaries = {str(result.path): summarise(result) for result in results}
    text = f"{next(iter(kinds))}; percent of all samples\n\n{layout_table(summaries)}\n"
    if out is not None:
        links = "\n".join(f"- [{result.path.name}]({_relative(result.path, out)}/report.md)" for result in results)
        write_atomically(out, f"# Comparison\n\n{text}\n{links}\n".encode())
    return text


def _what(description: dict) -> str:
    threat, data = description["threat"], description["data"]
    spec = description["spec"]
    return f"{data['name']} (digest {spec['data'][:8]}), n = {description['n']}, {threat['norm']} {threat['eps_text']}"


def _relative(path: Path, out: Path) -> str:
    import os

    return os.path.relpath(path, out.parent)
