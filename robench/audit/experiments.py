"""An audit's experiments: what is measured, where it is kept, and what is known about where stored images come from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robench.attacks import parse_columns
from robench.audit.checks import run_checks
from robench.audit.comparisons import TRANSFER
from robench.audit.evidence import AUDITED_RADIUS, Evidence, ExternalImages
from robench.audit.feeds import FEEDS_OF_PROBE, FEEDS_OF_RADIUS, PROBE_UNITS, feeds_of
from robench.audit.forecast import distillation_seconds, random_order, rests, units_of, units_of_name
from robench.audit.panel import CONSEQUENCES, LADDER, called_for, consequences, grid, needless, panel, rest
from robench.audit.probes import PROBE_SAMPLES, PROBES, Subjects, run_probe
from robench.audit.request import GRID_SAMPLES, AuditRequest
from robench.audit.rules import GRADIENT_FREE
from robench.audit.schedule import NO_TIME, Experiment, Missed, Schedule, Unfinished, with_minutes
from robench.audit.surrogate import SURROGATE, surrogate_attack
from robench.data.augment import in_unit
from robench.evaluation.engine import ColumnGroup, evaluate_columns, group_columns
from robench.evaluation.results import Results, read_results
from robench.evaluation.run_folder import attack_folder, read_run, split
from robench.files import write_atomically
from robench.identity import AttackIdentity
from robench.models.output import MAIN_HEAD
from robench.models.subject import Subject, classifier_of_checkpoint
from robench.report.accuracy import title
from robench.run.execute import Place, execute
from robench.run.plan import plan
from robench.run.request import DEFAULT_CHUNK, AttackRequest, threat_of
from robench.types import Column, Dataset, Outcome, ThreatModel

PLAIN = ("fgsm", "pgd1", "pgd20")  # what would have been reported
PART = "part of "  # begins the name of a column that saw some of the samples that were left
ROOM_LEFT = 0.95  # of the time that is left may be planned
EARLY = 0.1  # of its forecast, what a sample costs that breaks early
MOST_PARTS = 5  # that a stronger attack is split into
LEAST_PART = 5  # samples that a part has at least


@dataclass(eq=False, kw_only=True)
class Experiments:
    """One audit's experiments."""

    subject: Subject
    data: Dataset
    request: AuditRequest
    folder: Path
    device: str
    learn_from: Dataset
    command: str
    show_progress: bool
    schedule: Schedule
    part: tuple[int, int] | None = None  # samples in ``data``, a random part of so many
    columns: list[Column] = field(default_factory=list)  # the columns of the audited radius so far
    runs: dict[str, Results] = field(default_factory=dict)
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    external: tuple[ExternalImages, ...] = ()
    covered: np.ndarray | None = None  # see ``Evidence``

    @cached_property
    def threat(self) -> ThreatModel:
        return threat_of(self.request.norm, self.request.eps or None, self.data)

    @cached_property
    def n(self) -> int:
        return self.request.samples(self.data)

    @property
    def task(self) -> str:
        """The judged head of checkpoints; other people's outputs have names of their own."""
        return MAIN_HEAD if self.subject.model is None else self.request.head

    @property
    def n_classes(self) -> int:
        return self.subject.classifier.n_classes

    @property
    def left(self) -> int:
        """Samples that nothing has broken yet."""
        return self.n - int(self.decided().sum()) if AUDITED_RADIUS in self.runs else self.n

    def decided(self) -> np.ndarray:
        """Samples about which no attack can say anything new, bool (n,)."""
        return find_decided(self.runs[AUDITED_RADIUS], self.external)

    def classify(self) -> None:
        """The samples without attack."""
        asked = AttackRequest("noise", norm=self.threat.norm, eps=self.threat.eps_text, n=self.n, seed=self.request.seed)
        run = plan(asked, self.subject, self.data, self._folder("run"), device=self.device)
        results = execute(replace(run, columns=[]), Place.on(self.device), command=self.command, show_progress=self.show_progress)
        assert results is not None  # one process computes all
        self.runs[AUDITED_RADIUS] = _only(results, [])

    def measure(
        self, columns: list[Column], at: str = AUDITED_RADIUS, threat: ThreatModel | None = None, n: int | None = None
    ) -> Results:
        """Runs columns at a radius, or reads what is there already. What time did not suffice for is not among the results."""
        threat = threat or self.threat
        asked = AttackRequest(
            norm=threat.norm, eps=threat.eps_text, n=n or self.n, seed=self.request.seed, columns=tuple(columns)
        )  # fmt: skip
        where = self._folder("run" if at == AUDITED_RADIUS else f"run-{at}")
        run = plan(asked, self.subject, self.data, where, device=self.device)
        place = replace(Place.on(self.device), evaluate=partial(evaluate_columns, goes_on=lambda: self.schedule.deadline.left > 0))
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
        if unfinished:
            raise Unfinished(f"{', '.join(unfinished)} was stopped, since the time was over")
        return self.runs[at]

    def _is_there(self, columns: list[Column], at: str = AUDITED_RADIUS, n: int | None = None) -> bool:
        """Whether an earlier call has finished columns, so that they cost nothing."""
        chunks = self._folder("run" if at == AUDITED_RADIUS else f"run-{at}") / "chunks"
        stages = [attack_folder(column, stage) for column in columns for stage in column.stages]
        return all(
            (chunks / stage / f"{chunk.name}.npz").exists() for stage in stages for chunk in split(n or self.n, DEFAULT_CHUNK)
        )

    def _folder(self, name: str) -> Path:
        return self.folder / (name if self.part is None else f"{name}-{self.part[0]}-of-{self.part[1]}")

    def gather(self, given: list[Column]) -> Evidence:
        """The panel at the audited radius, the probes, the other radii, and AutoAttack on what the panel left.

        Args:
            given: columns of stored images.

        Raises:
            KeyboardInterrupt: the user asked for what is known before anything was.
        """
        request = self.request
        self.external = tuple(self._provenance(source, column) for source, column in zip(request.adv, given, strict=True))
        self.classify()
        wanted = [*panel(self.threat, self.n_classes, quick=request.quick), *given, *self._siblings()]
        if self.subject.classifier.draws > 1:
            wanted += parse_columns("pgd50-eot", self.threat, self.n_classes)
        groups = group_columns(wanted)
        plain = [group for group in groups if any(column.name in PLAIN for column in group.columns)]
        for some in (plain, [group for group in groups if group not in plain]):
            self.schedule.run([self._on_panel(group, wanted) for group in some])
        self.schedule.run([*self._ask(given), *self._at_other_radii()], self._reserved)
        if not request.quick:
            column = rest(self.threat, self.n_classes, self.decided())
            self.schedule.run([self._more(column, "what gradients miss", ("black-box",))])
        return self.evidence()

    def evidence(self) -> Evidence:
        """What is known by now."""
        return Evidence(
            runs=dict(self.runs),
            probes=dict(self.probes),
            model=self.subject.digest,
            classes=self.n_classes,
            dataset=self.data.name,
            norm=self.threat.norm,
            eps_text=self.threat.eps_text,
            defended=_defended(self.subject),
            protocol=self.request.protocol,
            external=self.external,
            draws=self.subject.classifier.draws,
            claimed=self.request.claim is not None,
            claim=self.request.claim,
            missed=tuple(self.schedule.missed),
            remedy=with_minutes(self.command, self.schedule.minutes),
            covered=self.covered,
        )

    def follow(self, names: list[str]) -> Evidence:
        """The stronger attacks that findings call for, on what is left: together where all of them fit, else one by one, and what does not fit
        on a random part of it."""
        if (self.decided() | self.evidence().unclassified()).all():
            return self.evidence()
        fitting: list[str] = []
        known = self._surrogate_file.exists() or SURROGATE not in names
        if known and self._is_there([self._consequences(CONSEQUENCES, names, self.decided())]):
            self._add_consequences(CONSEQUENCES, names)
            return self.evidence()
        budget = ROOM_LEFT * self.schedule.deadline.left
        for name in names:
            seconds = self._seconds(name, self.left)
            if seconds <= budget:
                fitting.append(name)
                budget -= seconds
        if fitting:
            what = ", ".join(map(title, fitting))
            units = partial(self._units, fitting)
            fixed = self._distillation(fitting)
            run = partial(self._add_consequences, CONSEQUENCES, fitting)
            self.schedule.run([Experiment(name=what, changes=self._open(), units=units, run=run, fixed=fixed)])
        others = [name for name in names if name not in fitting]
        for place, name in enumerate(others):
            self._on_a_part(name, share=1 / (len(others) - place))
        return self.evidence()

    @property
    def _surrogate_file(self) -> Path:
        return self._folder("surrogate").with_suffix(".safetensors")

    def _consequences(self, column_name: str, names: list[str], decided: np.ndarray) -> Column:
        transfers = {}
        if SURROGATE in names:
            transfers[SURROGATE] = surrogate_attack(
                self.subject, self.learn_from, self.threat, self._surrogate_file, self.request.seed
            )
        return replace(consequences(names, self.threat, self.n_classes, decided, transfers), name=column_name)

    def _add_consequences(self, column_name: str, names: list[str], besides: np.ndarray | None = None) -> None:
        self._add([self._consequences(column_name, names, self.decided() if besides is None else besides)])

    def _on_a_part(self, name: str, *, share: float) -> None:
        """A stronger attack that does not fit on all that is left, on as many samples as fit into a share of the time, in the fixed random
        order; then on more of them, since what breaks early leaves time."""
        order, tried = random_order(self.n, self.request.seed).numpy(), np.zeros(self.n, dtype=bool)
        one, fixed, many = self._seconds(name, 1) - self._seconds(name, 0), self._seconds(name, 0), 0
        for place in range(MOST_PARTS):
            open_ = order[~(self.decided() | tried)[order]]
            room = share * ROOM_LEFT * self.schedule.deadline.left - (0 if tried.any() else fixed)
            many = max(0, min(len(open_), int(room / one)))
            if not len(open_) or (many < LEAST_PART and many < len(open_)):
                break
            besides = np.ones(self.n, dtype=bool)
            besides[open_[:many]] = False
            column_name = f"{PART}{name}" + (f", {place + 1}" if place else "")
            experiment = Experiment(
                name=f"{title(name)} on {many} of {len(open_)} samples", changes=self._open(), units=partial(float, units_of_name(name) * many),
                run=partial(self._add_consequences, column_name, [name], besides), fixed=0 if place else fixed,
            )  # fmt: skip
            if not self.schedule.try_one(experiment):
                return
            tried[open_[:many]] = True
        open_ = order[~(self.decided() | tried)[order]]
        if not len(open_):
            return
        self.schedule.missed.append(Missed(f"{title(name)} on {len(open_)} samples", NO_TIME, one * len(open_) + fixed))
        if tried.any():
            seen = np.zeros(self.n, dtype=bool)
            seen[order[: np.flatnonzero(order == open_[0])[0]]] = True
            self.covered = seen if self.covered is None else self.covered & seen

    def _reserved(self, needs: float) -> float:
        """Seconds that are kept for the stronger attacks with gradients which findings call for by now: they change the number, where the
        next experiment, which needs so many, would only say more about it."""
        ladder = [each.name for each in LADDER if each.name not in GRADIENT_FREE]
        if self.schedule.deadline.left > needs + sum(self._seconds(name, self.left) for name in ladder):
            return 0.0
        evidence = self.evidence()
        names = called_for(run_checks(evidence), needless(evidence), self.request.budget).names
        return sum(self._seconds(name, self.left) for name in names if name not in GRADIENT_FREE)

    def _units(self, names: list[str]) -> float:
        return sum(map(units_of_name, names)) * self.left

    def _distillation(self, names: list[str]) -> float:
        """Seconds that the surrogate takes to learn."""
        if SURROGATE not in names or self._surrogate_file.exists():
            return 0.0
        return distillation_seconds(self.learn_from, self.schedule.pace)

    def _seconds(self, name: str, samples: int) -> float:
        return units_of_name(name) * samples * self.schedule.pace + self._distillation([name])

    def _open(self) -> str:
        return f"{self.left} of {self.n} samples are open"

    def _siblings(self) -> list[Column]:
        columns = []
        for path in self.request.siblings:
            sources = {str(path): classifier_of_checkpoint(path, self.data, self.device, self.task)}
            columns += parse_columns(f"{TRANSFER}{path}", self.threat, self.n_classes, sources=sources)
        return columns

    def _on_panel(self, group: ColumnGroup, wanted: list[Column]) -> Experiment:
        """A group of columns of the panel, which are kept in the panel's order."""
        names = [column.name for column in group.columns]
        votes = self.subject.classifier.draws
        each = max(units_of(column.stages[0], self.n_classes) for column in group.columns) + votes * len(names)

        def run() -> None:
            have = {column.name for column in (*self.columns, *group.columns)}
            self._set([column for column in wanted if column.name in have])

        some_rest = rests(group.columns[0].stages[0])
        return Experiment(
            name=", ".join(map(title, names)), changes=self._open() if self.runs else "", run=run, feeds=feeds_of(names),
            units=lambda: 0.0 if self._is_there(list(group.columns)) else each * (self.left if some_rest else self.n),
        )  # fmt: skip

    def _more(self, column: Column, changes: str, feeds: tuple[str, ...]) -> Experiment:
        each = sum(units_of(stage, self.n_classes) for stage in column.stages)
        return Experiment(
            name=title(column.name), changes=changes, run=lambda: self._add([column]), feeds=feeds,
            units=lambda: 0.0 if self._is_there([column]) else each * self.left,
        )  # fmt: skip

    def _add(self, columns: list[Column]) -> None:
        self._set([*self.columns, *columns])

    def _set(self, columns: list[Column]) -> None:
        try:
            self.measure(columns)
        finally:
            self.columns = [column for column in columns if column.name in self.runs[AUDITED_RADIUS].columns]

    def _units_at(self, column: Column, radius: ThreatModel, n: int) -> float:
        """A column's forecast at another radius: where samples rest once they are broken, those that are broken in the smaller ball cost
        little in the larger one."""
        attack = column.stages[0]
        standing = min(n, self.left + EARLY * n) if rests(attack) and radius.eps >= self.threat.eps else n
        return units_of(attack, self.n_classes) * standing + self.subject.classifier.draws * n

    def _at_other_radii(self) -> list[Experiment]:
        """The panel's attacks at other radii."""
        experiments = []
        for at, (radius, names) in grid(self.threat, self.data.image_shape, quick=self.request.quick).items():
            columns = parse_columns(",".join(names), radius, self.n_classes)
            n = min(self.n, GRID_SAMPLES)
            units = 0.0 if self._is_there(columns, at, n) else sum(self._units_at(column, radius, n) for column in columns)
            experiments.append(
                Experiment(
                    name=f"eps {radius.eps_text}",
                    changes="whether attacks find their way",
                    units=partial(float, units),
                    run=partial(self.measure, columns, at, radius, n),
                    feeds=FEEDS_OF_RADIUS[at],
                )
            )
        return experiments

    def _ask(self, given: list[Column]) -> list[Experiment]:
        """The probes; what those of an interrupted audit measured is kept."""
        main = self.runs[AUDITED_RADIUS]
        clean = main.verdicts[main.verdicts["attack"] == "clean"].sort_values("index")
        index = torch.from_numpy(clean["index"][clean["outcome"] == Outcome.ROBUST].to_numpy()[:PROBE_SAMPLES].copy())
        if not len(index):
            return []
        device = self.subject.classifier.device
        images, labels = self.data.pixels(index), self.data.labels[index]
        images = in_unit(images).to(device)
        external = {
            column.name: each[index].to(device) for column in given if (each := column.stages[0].external_images) is not None
        }
        subjects = Subjects(self.subject.classifier, images, labels.to(device), self.threat, external)
        key = f"{self.subject.digest[:16]} {self.threat} {self.request.seed} {len(index)} {','.join(external)}"
        file = self._folder("probes").with_suffix(".json")
        known = json.loads(file.read_text()) if file.exists() else {}
        known = known if known.get("key") == key else {"key": key}

        def ask(name: str) -> None:
            if name not in known:
                known[name] = run_probe(name, subjects, self.request.seed)
                write_atomically(file, (json.dumps(known, indent=2) + "\n").encode())
            self.probes = {each: known[each] for each in PROBES if each in known}

        return [
            Experiment(
                name=f"the probe {name}", changes="what the model does with gradients, batches and chance",
                units=partial(float, 0 if name in known else PROBE_UNITS[name] * len(index)), run=partial(ask, name), feeds=FEEDS_OF_PROBE[name],
            )
            for name in PROBES
        ]  # fmt: skip

    def _provenance(self, source_text: str, column: Column) -> ExternalImages:
        """What is known about where stored images come from: a run folder says it, and ``--source`` does."""
        run, _, attack = source_text.rpartition(":")
        if run and (Path(run) / "run.json").is_file():
            described = read_run(Path(run))
            made = AttackIdentity.of_member(next(each for each in described["suites"] if each["name"] == attack)["members"][-1])
            heads = made.heads.names if made.heads is not None else ()
            named, heads = described["model"], () if heads == (self.request.head,) else heads
            if made.crafted_on is not None:
                return ExternalImages(column.name, made.crafted_on.digest, made.crafted_on.name, heads)
            return ExternalImages(column.name, self._same(described["spec"]["model"], named["origin"]), named["name"], heads)
        if self.request.source is not None:
            source = classifier_of_checkpoint(self.request.source, self.data, self.device, self.task)
            return ExternalImages(column.name, self._same(source.digest, source.origin), source.name)
        return ExternalImages(column.name)

    def _same(self, digest: str, origin: dict[str, Any]) -> str:
        """The digest of weights and code, or the judged model's own where only the code differs."""
        weights = origin.get("weights")
        return self.subject.digest if weights and weights == self.subject.origin.get("weights") else digest


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


def _defended(subject: Subject) -> bool | None:
    recipe = subject.origin.get("recipe")
    return None if not recipe else recipe.get("adversarial", "none") != "none"
