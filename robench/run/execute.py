"""A run from beginning to end: described, computed, read back."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robench.evaluation.engine import evaluate_columns
from robench.evaluation.environment import describe_environment
from robench.evaluation.results import Results, is_complete, read_results
from robench.evaluation.run_folder import RunFolder, attack_folder, read_run
from robench.evaluation.sanity_check import settle_randomness
from robench.identity import AttackIdentity
from robench.processes import Processes
from robench.report.accuracy import summarise
from robench.run.plan import Run
from robench.types import Column, Dataset, RobenchError, RunSpec

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Place:
    """Where it is measured.

    Attributes:
        device: of this process.
        device_type: of whoever computes chunks.
        processes: this one among those that share the run.
        evaluate: hands out chunks, see ``evaluate_columns``.
    """

    device: str
    device_type: str
    processes: Processes = field(default_factory=Processes)
    evaluate: Callable[..., None] = evaluate_columns

    @classmethod
    def on(cls, device: str) -> Place:
        """This process alone."""
        return cls(device, device.split(":")[0])


def execute(run: Run, place: Place, *, command: str = "", show_progress: bool = True, settled: bool = False) -> Results | None:
    """Describes the run, computes what is missing, and reads it all back; None where other processes still have work.

    Args:
        run: what is to be measured, see ``robench.run.plan``.
        place: where.
        command: recorded as one that the run was called by.
        show_progress: bars and a forecast on stderr.
        settled: whether it is known already if the model is random, see ``settle_randomness``.

    Raises:
        RobenchError: two columns have one name, the folder holds another run or a longer one, or the model cannot classify the images.
    """
    _refuse_same_names(run.columns)
    subject, data, threat, path, n, processes = run.subject, run.data, run.threat, run.path, run.n, place.processes
    spec = RunSpec(
        model=subject.digest, data=data.digest, norm=threat.norm, eps=threat.eps, seed=run.seed, chunk=run.chunk,
        device_type=place.device_type,
    )  # fmt: skip
    folder = RunFolder(path, spec)
    finished = read_run(path)["n"] if (path / "run.json").exists() else n
    if n < finished:
        raise RobenchError(f"{path} is a run on {finished} samples; fewer ({n}) would take its tables away: choose another `out`")
    if not settled:
        settle_randomness(subject.classifier, data.images, n)
    votes = {"votes": subject.classifier.draws} if subject.classifier.draws > 1 else {}
    location = {"path": data.path} if data.path else {}
    environment = describe_environment(place.device, torch.get_num_threads())

    def describe(n: int, **more: Any) -> None:
        # Read again at the end: another process may have added columns meanwhile.
        earlier = read_run(path) if (path / "run.json").exists() else {"suites": [], "commands": []}
        folder.describe(
            {
                "model": {"name": subject.name, "origin": subject.origin} | votes,
                "data": _describe_data(data) | location | dict(data.reading),
                "threat": {"norm": threat.norm, "eps": threat.eps, "eps_text": threat.eps_text},
                "n": n,
                "suites": _columns_with_earlier(run.columns, earlier["suites"]),
                "commands": list(dict.fromkeys([*earlier["commands"], *([command] if command else [])])),
                "environment": environment,
                **more,
            }
        )

    existed = path.exists()
    if show_progress and existed:
        _say_what_is_computed_again(path, run.columns)
    describe(finished)  # a run that is extended keeps its tables until the new ones are complete
    try:
        place.evaluate(
            subject.classifier, data.images, data.labels[:n], run.columns, threat=threat, folder=folder, save=run.save, share=run.share,
            graphed=run.graphed, show_progress=show_progress,
        )  # fmt: skip
    except RobenchError:
        if (
            not existed and processes.world_size == 1 and not (path / "chunks").exists()
        ):  # a model that was refused leaves no empty run behind
            shutil.rmtree(path)
        raise
    if processes.world_size > 1 and not is_complete(folder, run.columns, n):
        return None
    describe(n)
    results = read_results(path)
    describe(n, results=_plain(summarise(results)))
    return results


def _describe_data(data: Dataset) -> dict[str, Any]:
    """The data set as run.json has it; ``coarse`` says of every class which superclass it belongs to, where it has just one."""
    about: dict[str, Any] = {"name": data.name, "split": data.split, "n": len(data), "classes": list(data.classes)}
    if data.coarse_labels is None or data.classes == data.coarse_classes:
        return about
    pairs = dict(zip(data.labels.tolist(), data.coarse_labels.tolist(), strict=True))
    if any(pairs[label] != coarse for label, coarse in zip(data.labels.tolist(), data.coarse_labels.tolist(), strict=True)):
        return about
    return about | {"coarse": {"classes": list(data.coarse_classes), "of_class": [pairs.get(k) for k in range(len(data.classes))]}}


def _refuse_same_names(columns: list[Column]) -> None:
    names = [column.name for column in columns]
    for name in names:
        if names.count(name) > 1:
            raise RobenchError(f"two columns would be called {name!r}; leave one out, or rename one of the files or folders")


def _columns_with_earlier(columns: list[Column], earlier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns of this call, and those that the folder has from earlier ones: an attack once measured is not forgotten."""
    asked = [
        {
            "name": column.name,
            "cascade": column.is_cascade,
            "members": [
                {
                    "name": stage.name,
                    "folder": attack_folder(column, stage),
                    "params": dict(stage.params),
                    "library": stage.library,
                    "source": stage.source,
                }
                for stage in column.stages
            ],
        }
        for column in columns
    ]
    for written in asked:
        for old in earlier:
            if old["name"] == written["name"]:
                _refuse_other_images(written, old)
    names = {written["name"] for written in asked}
    return asked + [written for written in earlier if written["name"] not in names]


def _say_what_is_computed_again(path: Path, columns: list[Column]) -> None:
    """Columns that the folder has under the same name, but by other code or with other parameters."""
    earlier = read_run(path)["suites"] if (path / "run.json").exists() else []
    folders = {written["name"]: [stage["folder"] for stage in written["members"]] for written in earlier}
    again = [column.name for column in columns if column.name in folders and folders[column.name] != _folders(column)]
    if again:
        print(
            f"robench: computed again, since other code or other parameters made what {path} has: {', '.join(again)}",
            file=sys.stderr,
        )


def _folders(column: Column) -> list[str]:
    return [attack_folder(column, stage) for stage in column.stages]


def _refuse_other_images(column: dict[str, Any], earlier: dict[str, Any]) -> None:
    """A column of the same name may be computed again by a newer library, but not be about other images."""
    was, now = ({stage["name"]: AttackIdentity.of_member(stage) for stage in each["members"]} for each in (earlier, column))
    pairs = [(was[name], now[name]) for name in was.keys() & now.keys()]
    other = "weights" if any(one.crafted_on != two.crafted_on for one, two in pairs) else ""
    other = other or ("images" if any(one.images != two.images for one, two in pairs) else "")
    if other:
        raise RobenchError(
            f"the run has a column {column['name']!r} already, of other {other}; choose another `out`, or rename the file"
        )


def _plain(summary: pd.DataFrame) -> list[dict[str, Any]]:
    return [{key: value if value == value else None for key, value in row.items()} for row in summary.to_dict("records")]
