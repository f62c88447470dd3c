"""What is known of one finished model: a row per test sample, small enough to commit, and how it was obtained."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from robench.evaluation.results import Results
from robench.files import write_atomically
from robench.report.accuracy import UNION, Interval, interval
from robench.reproduce.plan import ATTACKS, AUTOATTACK, Trained
from robench.types import Outcome, RobenchError

if TYPE_CHECKING:
    import pandas as pd

WHITE_BOX = (*ATTACKS, AUTOATTACK)
LETTERS = {Outcome.MISCLASSIFIED: "c", Outcome.BROKEN: "b", Outcome.ROBUST: "r"}
BY_QUERY = "q"  # returned as robust, but one of the attack's own queries is adversarial


@dataclass(frozen=True, eq=False)
class Measured:
    """One model and its verdicts.

    Attributes:
        model: what it is.
        verdicts: a row per test sample: index, label, clean and ``stored ATTACK`` (predicted classes), and per white-box attack a letter:
            c wrong without attack, b broken, q broken by a query only, r robust.
        about: where weights and verdicts come from, what they cost, and ``mechanism`` (see ``explain``).
    """

    model: Trained
    verdicts: pd.DataFrame
    about: dict[str, Any]

    @property
    def n(self) -> int:
        return len(self.verdicts)

    @property
    def origin(self) -> dict[str, Any]:
        """How its checkpoint was trained and is stored."""
        return self.about["model"]["origin"]

    @property
    def has_stored(self) -> bool:
        """Whether it was evaluated on the images that are stored for the single-task model; that one's own are its white-box ones."""
        return self.model.is_source or f"stored {ATTACKS[0]}" in self.verdicts

    def without_stored(self) -> Measured:
        """The same without what it said of stored images, where those are not the table's."""
        columns = [name for name in self.verdicts if not name.startswith("stored ")]
        return replace(self, verdicts=self.verdicts[columns], about={**self.about, "mechanism": {}})

    def correct(self, attack: str, *, stored: bool = False) -> np.ndarray:
        """Which samples are classified correctly, bool (n,).

        Args:
            attack: "clean", a column, or "union" for what survives every white-box attack and all their queries.
            stored: on the images stored for the single-task model, as the paper counts: also those of samples that this model gets wrong
                without attack. The source's own stored images are its white-box ones.
        """
        if attack == UNION:
            return (self.verdicts[list(WHITE_BOX)] == LETTERS[Outcome.ROBUST]).all(axis=1).to_numpy()
        if attack == "clean" or (stored and not self.model.is_source):
            return (self.verdicts[attack if attack == "clean" else f"stored {attack}"] == self.verdicts["label"]).to_numpy()
        return self.verdicts[attack].isin((LETTERS[Outcome.ROBUST], BY_QUERY)).to_numpy()

    def accuracy(self, attack: str, *, stored: bool = False) -> float:
        """Share of ``correct``."""
        return float(self.correct(attack, stored=stored).mean())

    def bounds(self, attack: str, *, stored: bool = False) -> Interval:
        """Its 95 % interval over test samples."""
        correct = self.correct(attack, stored=stored)
        return interval(int(correct.sum()), len(correct))


def condense(results: Results, source: str) -> pd.DataFrame:
    """The verdicts of a run, one row per sample; see ``Measured``.

    Args:
        results: the run.
        source: name of the model that the stored images were crafted on.

    Raises:
        RobenchError: an attack failed on samples, so that there is no accuracy.
    """
    import pandas as pd

    rows = _by_attack(results)
    clean = rows["clean"]
    columns = {"index": clean["index"], "label": clean["label"], "clean": clean["clean_pred"]} | stored_columns(results, source)
    for name in WHITE_BOX:
        by_query = (rows[name]["best"] == Outcome.BROKEN) & (rows[name]["outcome"] == Outcome.ROBUST)
        columns[name] = rows[name]["outcome"].map(LETTERS).mask(by_query, BY_QUERY)
    table = pd.DataFrame(columns)
    failed = [name for name in table if table[name].isna().any() or (name.startswith("stored") and (table[name] < 0).any())]
    if failed:
        raise RobenchError(
            f"{results.path}: {', '.join(failed)} failed on samples; its report.md says how. Run the same command again"
        )
    return table


def _by_attack(results: Results) -> dict[str, pd.DataFrame]:
    return {str(name): part.reset_index(drop=True) for name, part in results.verdicts.groupby("attack", sort=False)}


def stored_columns(results: Results, source: str) -> dict[str, pd.Series]:
    """The classes that a run's model says of the images stored for the single-task model ``source``, by column of ``Measured.verdicts``."""
    rows = _by_attack(results)
    return {f"stored {name}": rows[f"{name}@{source}"]["adv_pred"] for name in ATTACKS if f"{name}@{source}" in rows}


class Files(NamedTuple):
    """Where a model's verdicts lie, and what is about them."""

    table: Path
    about: Path


def _files(out: Path, model: Trained) -> Files:
    folder = out / "verdicts"
    return Files(folder / f"{model.name}.csv", folder / f"{model.name}.json")


def save_measured(out: Path, measured: Measured) -> None:
    """Writes the verdicts below ``out``; what is about them comes last, and says that they are complete."""
    files = _files(out, measured.model)
    write_atomically(files.table, measured.verdicts.to_csv(index=False, lineterminator="\n").encode())
    write_atomically(files.about, (json.dumps(measured.about, indent=1) + "\n").encode())


def load_measured(out: Path, model: Trained) -> Measured | None:
    """What is stored of a model, or None.

    Raises:
        RobenchError: a file is damaged.
    """
    import pandas as pd

    files = _files(out, model)
    if not files.about.exists():
        return None
    try:
        verdicts, about = pd.read_csv(files.table), json.loads(files.about.read_text())
        if len(verdicts) != about["n"]:
            raise ValueError(f"{len(verdicts)} rows, {about['n']} expected")
    except (OSError, ValueError, KeyError) as error:
        raise RobenchError(
            f"{files.table} is damaged ({error}); delete it and {files.about.name}, and run the same command again"
        ) from None
    return Measured(model, verdicts, about)
