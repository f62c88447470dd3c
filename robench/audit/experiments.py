"""An audit's experiments in their order: what is decisive first, and what time is kept for."""

from __future__ import annotations

from dataclasses import dataclass, field

from robench.audit.checks import run_checks
from robench.audit.evidence import Evidence
from robench.audit.first_experiments import panel_experiments, probe_experiments, radius_experiments, rest_experiment
from robench.audit.follow_up import FollowUp
from robench.audit.measurements import Measurements
from robench.audit.origins import is_defended, origin_of_images
from robench.audit.panel import called_for, needless
from robench.audit.probes import Measured
from robench.audit.rules import GRADIENT_FREE
from robench.audit.schedule import NO_TIME, Missed, with_minutes
from robench.report.accuracy import title
from robench.types import Column


@dataclass(eq=False)
class Experiments:
    """One audit's experiments.

    Attributes:
        measured: attacks, and how they are run.
        stronger: attacks that findings call for.
        probes: what probes have measured.
    """

    measured: Measurements
    stronger: FollowUp
    probes: dict[str, Measured] = field(default_factory=dict)

    def gather(self, given: list[Column]) -> Evidence:
        """The panel at the audited radius, the probes, the other radii, and AutoAttack on what the panel left.

        Args:
            given: columns of stored images.

        Raises:
            KeyboardInterrupt: the user asked for what is known before anything was.
        """
        measured, schedule = self.measured, self.measured.schedule
        sources = zip(measured.request.adv, given, strict=True)
        measured.tell_origins(origin_of_images(measured, source, column) for source, column in sources)
        measured.classify()
        for some in panel_experiments(measured, given):
            schedule.run(some)
        schedule.run([*probe_experiments(measured, given, self._hear), *radius_experiments(measured)], self._reserved)
        if not measured.request.quick:
            schedule.run([rest_experiment(measured)])
        return self.evidence()

    def follow(self, names: list[str]) -> Evidence:
        """The stronger attacks that findings call for, on what is left."""
        if not (self.measured.decided() | self.evidence().unclassified()).all():
            self.stronger.run(names)
        return self.evidence()

    def catch_up(self, followed: list[str]) -> Evidence:
        """What has waited for stronger attacks, as far as it fits. The attacks that only this calls for are missed: more time runs them.

        Args:
            followed: stronger attacks that findings called for before.
        """
        measured, schedule = self.measured, self.measured.schedule
        if not schedule.waiting:
            return self.evidence()
        schedule.run_waiting()
        evidence = self.evidence()
        if not (measured.decided() | evidence.unclassified()).all():
            late = called_for(run_checks(evidence), needless(evidence), measured.request.budget).names
            schedule.missed.extend(
                Missed(title(name), NO_TIME, self.stronger.seconds(name, measured.left)) for name in late if name not in followed
            )
        return self.evidence()

    def evidence(self) -> Evidence:
        """What is known by now."""
        measured, request = self.measured, self.measured.request
        return Evidence(
            runs=dict(measured.runs),
            probes=dict(self.probes),
            model=measured.subject.digest,
            classes=measured.n_classes,
            dataset=measured.data.name,
            norm=measured.threat.norm,
            eps_text=measured.threat.eps_text,
            defended=is_defended(measured.subject),
            protocol=request.protocol,
            external=measured.external,
            draws=measured.draws,
            claimed=request.claim is not None,
            claim=request.claim,
            missed=tuple(measured.schedule.missed),
            remedy=with_minutes(measured.command, measured.schedule.minutes),
            covered=self.stronger.covered,
        )

    def _hear(self, probes: dict[str, Measured]) -> None:
        self.probes = probes

    def _reserved(self, needs: float) -> float:
        """Seconds that are kept for the stronger attacks with gradients which findings call for by now: they change the number, where the
        next experiment, which needs so many, would only say more about it."""
        stronger, schedule = self.stronger, self.measured.schedule
        if schedule.deadline.left > needs + stronger.longest():
            return 0.0
        evidence = self.evidence()
        names = called_for(run_checks(evidence), needless(evidence), self.measured.request.budget).names
        return sum(stronger.seconds(name, self.measured.left) for name in names if name not in GRADIENT_FREE)
