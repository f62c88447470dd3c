"""Reports: functions of a run folder's verdicts, with no model and no GPU."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from robench.evaluation.results import read_results
from robench.files import write_atomically
from robench.report.accuracy import summarise, verdict_rows
from robench.report.breakdown import class_shares
from robench.report.figures import draw_all
from robench.report.html.run import render_run
from robench.report.markdown import render

if TYPE_CHECKING:
    import pandas as pd


def write_report(run: Path) -> pd.DataFrame:
    """Writes report.html, report.md, summary.csv, verdicts.csv, classes.csv and figures/ into a run folder, from its verdicts alone.

    Returns:
        The summary as a DataFrame.

    Raises:
        RobenchError: it is no run folder, nothing is finished, or a file is damaged.
    """
    results = read_results(run)
    summary = summarise(results)
    _write_csv(results.path / "summary.csv", summary)
    _write_csv(results.path / "verdicts.csv", verdict_rows(results.verdicts))
    _write_csv(results.path / "classes.csv", class_shares(results))
    figures = draw_all(results, summary)
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        write_atomically(results.path / "figures" / f"{name}.png", buffer.getvalue())
    write_atomically(results.path / "report.html", render_run(results, summary).encode())
    write_atomically(results.path / "report.md", render(results, summary, list(figures)).encode())
    return summary


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, table.to_csv(index=False, lineterminator="\n", float_format="%.9g").encode())
