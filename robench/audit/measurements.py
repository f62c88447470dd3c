"""What an audit has measured at every radius, and how it measures more: one run folder a radius."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from robench.audit.evidence import AUDITED_RADIUS, ExternalImages
from robench.audit.request import AuditRequest
from robench.audit.schedule import Schedule, Unfinished
from robench.evaluation.engine import evaluate_columns
from robench.evaluation.results import Results, read_results
from robench.evaluation.run_folder import attack_folder, split
from robench.models.output import MAIN_HEAD
from robench.models.subject import Subject
from robench.run.execute import Place, execute
from robench.run.plan import plan
from robench.run.request import DEFAULT_CHUNK, AttackRequest, threat_of
from robench.types import Column, Dataset, Outcome, ThreatModel


@dataclass(eq=False, kw_only=True)
class Measurements:
    """One audit's attacks.

    Attributes:
        subject, data, request, folder, device, command, show_progress: as in ``audit_subject``; of data and request, the part that is taken.
        schedule: says when the time is over.
        part: samples in ``data``, a random part of so many; None for the first ones.
        columns: of the audited radius so far.
        runs: results by radius.
        external: columns of images that were made before.
        stopped: columns that were begun and are not complete, by which time the audit was over.
    """

    subject: Subject
    data: Dataset
    request: AuditRequest
    folder: Path
    device: str
    command: str
    show_progress: bool
    schedule: Schedule
    part: tuple[int, int] | None = None
    columns: list[Column] = field(default_factory=list)
    runs: dict[str, Results] = field(default_factory=dict)
    external: tuple[ExternalImages, ...] = ()
    stopped: set[str] = field(default_factory=set)

    @cached_property
    def threat(self) -> ThreatModel:
        """The audited one."""
        return threat_of(self.request.norm, self.request.eps or None, self.data)

    @cached_property
    def n(self) -> int:
        """Samples that are looked at."""
        return self.request.samples(self.data)

    @property
    def task(self) -> str:
        """The judged head of checkpoints; other people's outputs have names of their own."""
        return MAIN_HEAD if self.subject.model is None else self.request.head

    @property
    def n_classes(self) -> int:
        return self.subject.classifier.n_classes

    @property
    def draws(self) -> int:
        """Forward passes that a verdict is voted by."""
        return self.subject.classifier.draws

    @property
    def left(self) -> int:
        """Samples that nothing has broken yet."""
        return self.n - int(self.decided().sum()) if AUDITED_RADIUS in self.runs else self.n

    @property
    def open_text(self) -> str:
        """What an attack can still change."""
        return f"{self.left} of {self.n} samples are open" if self.runs else ""

    def decided(self) -> np.ndarray:
        """Samples about which no attack can say anything new, bool (n,)."""
        return find_decided(self.runs[AUDITED_RADIUS], self.external)

    def path(self, name: str) -> Path:
        """Where something of this audit is kept; a random part has places of its own."""
        return self.folder / (name if self.part is None else f"{name}-{self.part[0]}-of-{self.part[1]}")

    def run_folder(self, at: str) -> Path:
        """The run folder of a radius."""
        return self.path("run" if at == AUDITED_RADIUS else f"run-{at}")

    def tell_origins(self, external: Iterable[ExternalImages]) -> None:
        """Says which columns are of images that were made before, and what is known about them."""
        self.external = tuple(external)

    def classify(self) -> None:
        """The samples without attack."""
        asked = AttackRequest("noise", norm=self.threat.norm, eps=self.threat.eps_text, n=self.n, seed=self.request.seed)
        run = plan(asked, self.subject, self.data, self.run_folder(AUDITED_RADIUS), device=self.device)
        results = execute(
            replace(run, columns=[]), Place.on(self.device), command=self.command, show_progress=self.show_progress, settled=True
        )  # fmt: skip
        assert results is not None  # one process computes all
        self.runs[AUDITED_RADIUS] = _only(results, [])

    def add(self, columns: list[Column]) -> None:
        """Runs more columns at the audited radius."""
        self.take([*self.columns, *columns])

    def take(self, columns: list[Column]) -> None:
        """Runs columns at the audited radius, which are all from now on, in this order; kept are those that are there.

        Raises:
            Unfinished: see ``measure``.
        """
        try:
            self.measure(columns)
        finally:
            self.columns = [column for column in columns if column.name in self.runs[AUDITED_RADIUS].columns]

    def measure(
        self, columns: list[Column], at: str = AUDITED_RADIUS, threat: ThreatModel | None = None, n: int | None = None
    ) -> Results:
        """Runs columns at a radius, or reads what is there already.

        Raises:
            Unfinished: time did not suffice for a column; it is not among the results. Of a cascade the stages that are complete are.
        """
        threat, where = threat or self.threat, self.run_folder(at)
        asked = AttackRequest(
            norm=threat.norm, eps=threat.eps_text, n=n or self.n, seed=self.request.seed, columns=tuple(columns)
        )  # fmt: skip
        run = plan(asked, self.subject, self.data, where, device=self.device)
        place = replace(Place.on(self.device), evaluate=partial(evaluate_columns, goes_on=lambda: self.schedule.goes_on))
        names = [column.name for column in columns]
        try:
            results = execute(run, place, command=self.command, show_progress=self.show_progress, settled=True)
        except KeyboardInterrupt:
            if at == AUDITED_RADIUS:
                self.runs[at] = _only(read_results(where, begun=True), names)
            raise
        assert results is not None  # one process computes all
        unfinished = [name for name in names if name not in results.columns]
        self.runs[at] = _only(read_results(where, begun=True) if unfinished else results, names)
        new = [name for name in unfinished if name not in self.stopped]
        self.stopped.update(unfinished)
        if new:
            raise Unfinished(f"{', '.join(new)} was stopped, since the time was over")
        return self.runs[at]

    def is_there(self, columns: list[Column], at: str = AUDITED_RADIUS, n: int | None = None) -> bool:
        """Whether an earlier call has finished columns, so that they cost nothing."""
        chunks = self.run_folder(at) / "chunks"
        stages = [attack_folder(column, stage) for column in columns for stage in column.stages]
        return all(
            (chunks / stage / f"{chunk.name}.npz").exists() for stage in stages for chunk in split(n or self.n, DEFAULT_CHUNK)
        )


def _only(results: Results, asked: list[str]) -> Results:
    """What this audit asked for, as far as it is there: a folder may hold columns of earlier ones, with other options."""
    names = [name for name in asked if name in results.columns]
    stages = {name: results.stages[name] for name in names}
    attacks = {"clean", *names, *(stage for each in stages.values() for stage in each)}
    columns = [column for column in results.description["suites"] if column["name"] in names]
    return replace(
        results, columns=names, stages=stages, description={**results.description, "suites": columns},
        verdicts=results.verdicts[results.verdicts["attack"].isin(attacks)], ledger=results.ledger[results.ledger["attack"].isin(attacks)],
    )  # fmt: skip


def find_decided(results: Results, external: tuple[ExternalImages, ...]) -> np.ndarray:
    """Which samples are wrong without attack or were broken by any column but stored images, bool (n,)."""
    rows = results.verdicts[~results.verdicts["attack"].isin([each.column for each in external])]
    settled = rows["best"].isin((Outcome.MISCLASSIFIED, Outcome.BROKEN))
    return settled.groupby(rows["index"]).any().sort_index().to_numpy()
