"""What is known about where stored images, and the judged model, come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robench.audit.evidence import ExternalImages
from robench.audit.measurements import Measurements
from robench.evaluation.run_folder import read_run
from robench.identity import AttackIdentity
from robench.models.subject import Subject, classifier_of_checkpoint
from robench.types import Column


def origin_of_images(measured: Measurements, source_text: str, column: Column) -> ExternalImages:
    """What is known about where stored images come from: a run folder says it, and ``--source`` does.

    Args:
        measured: the audit.
        source_text: as the user named them, see ``external_column``.
        column: of them.
    """
    request, subject = measured.request, measured.subject
    run, _, attack = source_text.rpartition(":")
    if run and (Path(run) / "run.json").is_file():
        described = read_run(Path(run))
        made = AttackIdentity.of_member(next(each for each in described["suites"] if each["name"] == attack)["members"][-1])
        heads = made.heads.names if made.heads is not None else ()
        named, heads = described["model"], () if heads == (request.head,) else heads
        if made.crafted_on is not None:
            return ExternalImages(column.name, made.crafted_on.digest, made.crafted_on.name, heads)
        return ExternalImages(column.name, _same(subject, described["spec"]["model"], named["origin"]), named["name"], heads)
    if request.source is not None:
        source = classifier_of_checkpoint(request.source, measured.data, measured.device, measured.task)
        return ExternalImages(column.name, _same(subject, source.digest, source.origin), source.name)
    return ExternalImages(column.name)


def is_defended(subject: Subject) -> bool | None:
    """Whether the model was trained adversarially, None where nobody says."""
    recipe = subject.origin.get("recipe")
    return None if not recipe else recipe.get("adversarial", "none") != "none"


def _same(subject: Subject, digest: str, origin: dict[str, Any]) -> str:
    """The digest of weights and code, or the judged model's own where only the code differs."""
    weights = origin.get("weights")
    return subject.digest if weights and weights == subject.origin.get("weights") else digest
