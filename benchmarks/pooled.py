"""What ``fast`` leaves beside AutoAttack, over several models: from the verdicts and passes of run folders, without a pass of its own.

robench attack --ckpt A.safetensors --suite autoattack,fast -n 1000 --out A
robench attack --ckpt B.safetensors --suite autoattack,fast -n 1000 --out B
python benchmarks/pooled.py A B

Where the two columns lie in two folders, about the same weights and samples: A=FOLDER-WITH-FAST.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import click

from robench.evaluation.results import Results, read_results
from robench.report.accuracy import percent, summarise
from robench.report.markdown import table
from robench.types import Outcome, RobenchError

REFERENCE = "autoattack"


@dataclass(frozen=True)
class Counted:
    """Samples and units, of one model or of several."""

    n: int = 0
    clean: int = 0
    reference: int = 0
    ours: int = 0
    only_ours: int = 0
    only_reference: int = 0
    reference_units: int = 0
    units: int = 0
    reference_seconds: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def row(self, name: str, classes: str = "") -> list[str]:
        return [
            name, classes, f"{self.n:,}", percent(self.clean / self.n), str(self.reference), str(self.ours), str(self.only_ours),
            str(self.only_reference), f"{self.reference_units:,}", f"{self.units:,}", f"{self.units / self.reference_units:.3f}",
            f"{self.seconds / self.reference_seconds:.3f}", f"{self.reference_units / max(self.reference, 1):,.0f}",
            f"{self.units / max(self.ours, 1):,.0f}",
        ]  # fmt: skip


HEADER = [
    "model", "classes", "n", "clean, %", "AutoAttack leaves", "it leaves", "broken only by it", "only by AutoAttack", "AutoAttack's units", "its units",
    "units, share", "seconds, share", "AutoAttack's a survivor", "its a survivor",
]  # fmt: skip


def survivors(results: Results, column: str) -> set[int]:
    """Samples that an attack did not break, clean mistakes aside, by what it returned or came across."""
    rows = results.verdicts[results.verdicts["attack"] == column]
    if rows.empty:
        raise RobenchError(f"{results.path} has no finished column {column!r}")
    return set(rows.loc[rows["best"] == Outcome.ROBUST, "index"])


def counted(reference: Results, ours: Results, column: str) -> Counted:
    """One model's row.

    Raises:
        RobenchError: the runs are about other weights, samples, seeds or threat models, or lack a column.
    """

    def about(run: Results) -> list:
        described, spec = run.description, run.description["spec"]
        return [described["n"], described["model"]["origin"]["weights"], *(spec[key] for key in ("data", "norm", "eps", "seed"))]

    if about(reference) != about(ours):
        raise RobenchError(f"{reference.path} and {ours.path} are about different weights, samples or threat models")
    theirs, own = survivors(reference, REFERENCE), survivors(ours, column)
    of_reference, of_ours = (summarise(run).set_index("attack") for run in (reference, ours))
    first, second = of_reference.loc[REFERENCE], of_ours.loc[column]
    return Counted(
        reference.description["n"], first["n"] - first["misclassified"], len(theirs), len(own), len(theirs - own), len(own - theirs),
        int(first["forwards"] + 2 * first["backwards"]), int(second["forwards"] + 2 * second["backwards"]),
        float(first["seconds"]), float(second["seconds"]),
    )  # fmt: skip


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--column", default="fast", show_default=True, help="What is held against autoattack.")
def main(runs: tuple[str, ...], column: str) -> None:
    rows, pooled = [], Counted()
    for named in runs:
        first, _, second = named.partition("=")
        reference = read_results(Path(first))
        each = counted(reference, read_results(Path(second)) if second else reference, column)
        rows.append(each.row(reference.description["model"]["name"], str(len(reference.description["data"]["classes"]))))
        pooled += each
    print(f"`{column}` beside {REFERENCE}; best queries counted\n")
    print(table(HEADER, [*rows, pooled.row("pooled")]))


if __name__ == "__main__":
    try:
        main()
    except RobenchError as error:
        raise SystemExit(f"pooled.py: {error}") from None
