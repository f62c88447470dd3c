"""An audit's experiments: what is measured, where it is kept, and what is known about where stored images come from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robench.attacks import parse_columns
from robench.audit.comparisons import TRANSFER
from robench.audit.evidence import AUDITED_RADIUS, Evidence, ExternalImages
from robench.audit.panel import consequences, grid, panel, rest
from robench.audit.probes import PROBE_SAMPLES, PROBES, Subjects, run_probe
from robench.audit.request import GRID_SAMPLES, AuditRequest
from robench.audit.surrogate import SURROGATE, surrogate_attack
from robench.data.augment import in_unit
from robench.evaluation.external_images import external_column
from robench.evaluation.results import Results
from robench.evaluation.run_folder import read_run
from robench.files import write_atomically
from robench.identity import AttackIdentity
from robench.models.output import MAIN_HEAD
from robench.models.subject import Subject, classifier_of_checkpoint
from robench.run.execute import Place, execute
from robench.run.plan import plan
from robench.run.request import AttackRequest, threat_of
from robench.types import Column, Dataset, Outcome, ThreatModel


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
    columns: list[Column] = field(default_factory=list)  # the columns of the audited radius so far

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

    def measure(
        self, columns: list[Column], at: str = AUDITED_RADIUS, threat: ThreatModel | None = None, n: int | None = None
    ) -> Results:
        """Runs columns at a radius, or reads what is there already."""
        threat = threat or self.threat
        asked = AttackRequest(
            norm=threat.norm, eps=threat.eps_text, n=n or self.n, seed=self.request.seed, columns=tuple(columns)
        )  # fmt: skip
        folder = self.folder / ("run" if at == AUDITED_RADIUS else f"run-{at}")
        run = plan(asked, self.subject, self.data, folder, device=self.device)
        results = execute(run, Place.on(self.device), command=self.command, show_progress=self.show_progress)
        assert results is not None  # one process computes all
        return _only(results, [column.name for column in columns])

    def gather(self) -> Evidence:
        """The panel at the audited radius, AutoAttack on what it left, the other radii, and the probes."""
        request = self.request
        given = [external_column(source, self.data, self.n) for source in request.adv]
        external = tuple(self._provenance(source, column) for source, column in zip(request.adv, given, strict=True))
        self.columns.extend([*panel(self.threat, self.n_classes, quick=request.quick), *given])
        for path in request.siblings:
            sources = {str(path): classifier_of_checkpoint(path, self.data, self.device, self.task)}
            self.columns.extend(parse_columns(f"{TRANSFER}{path}", self.threat, self.n_classes, sources=sources))
        runs = {AUDITED_RADIUS: self.measure(self.columns)}
        if self.subject.classifier.draws > 1:
            self.columns.extend(parse_columns("pgd50-eot", self.threat, self.n_classes))
            runs[AUDITED_RADIUS] = self.measure(self.columns)
        if not request.quick:
            self.columns.append(rest(self.threat, self.n_classes, find_decided(runs[AUDITED_RADIUS], external)))
            runs[AUDITED_RADIUS] = self.measure(self.columns)
        for at, (radius, names) in grid(self.threat, self.data.image_shape, quick=request.quick).items():
            columns = parse_columns(",".join(names), radius, self.n_classes)
            runs[at] = self.measure(columns, at, radius, min(self.n, GRID_SAMPLES))
        return Evidence(
            runs=runs,
            probes=self._probe(runs[AUDITED_RADIUS], given),
            model=self.subject.digest,
            classes=self.n_classes,
            dataset=self.data.name,
            norm=self.threat.norm,
            eps_text=self.threat.eps_text,
            defended=_defended(self.subject),
            protocol=request.protocol,
            external=external,
            draws=self.subject.classifier.draws,
            claimed=request.claim is not None,
            claim=request.claim,
        )

    def follow(self, evidence: Evidence, names: list[str]) -> Evidence:
        """The stronger attacks that findings call for, on what is left."""
        broken = find_decided(evidence.runs[AUDITED_RADIUS], evidence.external)
        if (broken | evidence.unclassified()).all():
            return evidence
        transfers = {}
        if SURROGATE in names:
            file = self.folder / "surrogate.safetensors"
            transfers[SURROGATE] = surrogate_attack(self.subject, self.learn_from, self.threat, file, self.request.seed)
        self.columns.append(consequences(names, self.threat, self.n_classes, broken, transfers))
        return replace(evidence, runs={**evidence.runs, AUDITED_RADIUS: self.measure(self.columns)}, _frames={})

    def _probe(self, main: Results, given: list[Column]) -> dict[str, dict[str, Any]]:
        """What every probe measured; those of an interrupted audit are kept."""
        clean = main.verdicts[main.verdicts["attack"] == "clean"].sort_values("index")
        index = torch.from_numpy(clean["index"][clean["outcome"] == Outcome.ROBUST].to_numpy()[:PROBE_SAMPLES].copy())
        if not len(index):
            return {}
        device = self.subject.classifier.device
        images, labels = self.data.pixels(index), self.data.labels[index]
        images = in_unit(images).to(device)
        external = {
            column.name: each[index].to(device) for column in given if (each := column.stages[0].external_images) is not None
        }
        subjects = Subjects(self.subject.classifier, images, labels.to(device), self.threat, external)
        key = f"{self.subject.digest[:16]} {self.threat} {self.request.seed} {len(index)} {','.join(external)}"
        file = self.folder / "probes.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        known = known if known.get("key") == key else {"key": key}
        for name in PROBES:
            if name not in known:
                known[name] = run_probe(name, subjects, self.request.seed)
                write_atomically(file, (json.dumps(known, indent=2) + "\n").encode())
        return {name: value for name, value in known.items() if name != "key"}

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


def _only(results: Results, names: list[str]) -> Results:
    """What this audit asked for: a folder may hold columns of earlier ones, with other options."""
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
