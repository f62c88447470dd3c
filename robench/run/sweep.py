"""Robust accuracy against eps and against the steps of PGD: an ordinary run per radius, and one for all numbers of steps."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robench.attacks import Asked
from robench.checkpoint import checkpoint_name
from robench.evaluation.environment import command_line
from robench.evaluation.results import Results, failures, read_results
from robench.models.multihead import MAIN_HEAD
from robench.report.markdown import aligned
from robench.report.sweeps import curve_table, eps_curve, steps_curve, write_curves
from robench.run.attack import attack
from robench.run.inputs import load_inputs
from robench.run.request import DEFAULT_CHUNK, AttackRequest
from robench.types import ExternalModel, RobenchError, ThreatModel, format_eps, parse_eps, parse_norm

DEFAULT_STEPS = (1, 2, 5, 10, 20, 50, 100)
SHARES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0)  # of the data set's own radius: 0 to 16/255 where that is 8/255


@dataclass(frozen=True)
class SweepRequest:
    """What a user asked for; with neither ``eps`` nor ``steps``, both curves.

    Attributes:
        attack: suite, norm, samples and seed, as for one run; its ``eps`` is not used.
        eps: radii, separated by commas.
        steps: numbers of steps, separated by commas.
    """

    attack: AttackRequest = field(default_factory=AttackRequest)
    eps: str | None = None
    steps: str | None = None

    @property
    def suite(self) -> Asked:
        """The attacks of the curve against eps."""
        return self.attack.suite or parse_norm(self.attack.norm).curve_attack

    def folder_name(self, name: str) -> str:
        """``sweep-<checkpoint>``, and behind it whatever differs from the defaults."""
        asked = self.attack
        parts = ["sweep", name]
        parts += [asked.norm] if asked.norm != "Linf" else []
        parts += [f"head-{asked.head}"] if asked.head != AttackRequest.head else []
        parts += [f"seed{asked.seed}"] if asked.seed else []
        parts += [f"chunk{asked.chunk}"] if asked.chunk != DEFAULT_CHUNK else []
        return "-".join(parts)


@dataclass(frozen=True, eq=False)
class Sweep:
    """What was found.

    Attributes:
        path: curve.md.
        table: the curves for a terminal.
        failures: what attacks failed with, one line each.
    """

    path: Path
    table: str
    failures: list[str]


def sweep(request: SweepRequest, *, out: Path | None = None, **options: Any) -> Sweep | None:
    """Runs an attack at several radii, and PGD with several numbers of steps; called again, it computes only what is missing.

    Args:
        request: what is asked.
        out: the folder, ``reports/sweep-<name>`` by default; every run lies below it.
        options: the model, the data and the device, as for ``robench.run.attack.attack``.

    Returns:
        None where other processes have not finished their share yet.

    Raises:
        RobenchError: anything the user can mend; what was measured before is kept.
    """
    radii, steps = _radii(request, options), _steps(request)
    folder = out or Path("reports") / request.folder_name(_name(options))
    foreign = [path.name for path in folder.iterdir() if not _is_ours(path)] if folder.is_dir() else []
    if foreign:
        raise RobenchError(f"{folder} holds {foreign[0]}, which no sweep of robench writes; choose another `out`")
    planned: list[tuple[Path, Asked, str | None]] = [
        (folder / f"eps-{format_eps(eps).replace('/', 'of')}", request.suite, format_eps(eps)) for eps in radii if eps > 0
    ]
    planned += [(folder / "steps", ",".join(f"pgd{number}" for number in steps), None)] if steps else []
    run: Path | None = None
    for place, (path, suite, eps) in enumerate(planned):
        if options.get("show_progress", True):
            print(f"sweep {place + 1} of {len(planned)}: {path.name}", file=sys.stderr)
        run = attack(replace(request.attack, suite=suite, eps=eps), out=path, **options)
    if run is None:  # ranks go through the runs in one order: whoever completes the last run completes them all
        return None
    results = [read_results(path) for path, _, _ in planned]
    return _conclude(folder, results, bool(steps))


def _is_ours(path: Path) -> bool:
    """Whether a sweep writes something of this name; another process, or a killed one, may have begun it just now."""
    return path.name == "steps" or path.name.startswith(("eps-", "curve.", ".curve."))


def _conclude(folder: Path, results: list[Results], with_steps: bool) -> Sweep:
    """Writes the curves of the runs, of which the last is about steps."""
    at_radii = results[:-1] if with_steps else results
    curves = [eps_curve({each.description["threat"]["eps"]: each for each in at_radii})] if at_radii else []
    curves += [steps_curve(results[-1])] if with_steps else []
    described = results[-1].description
    path = write_curves(folder, curves, described | {"steps_eps": described["threat"]["eps_text"]}, command_line())
    tables = "\n\n".join(curve_table(curve, aligned) for curve in curves)
    return Sweep(path, tables, [f"{each.path.name}: {line}" for each in results for line in failures(each)])


def _radii(request: SweepRequest, options: dict[str, Any]) -> list[float]:
    """Ascending; none where only steps are asked for.

    Raises:
        RobenchError: a radius is none, or there is none above 0.
    """
    if request.eps is None and request.steps is not None:
        return []
    if request.eps is not None:
        radii = sorted({parse_eps(text.strip()) for text in request.eps.split(",") if text.strip()})
        if not radii or radii[-1] == 0:
            raise RobenchError(f"`eps={request.eps!r}`: expected radii above 0, separated by commas, such as 0,2/255,8/255")
    else:
        inputs = load_inputs(
            options.get("ckpt"), options.get("dataset"), options.get("data_dir"), MAIN_HEAD, model=_external(options)
        )
        own_eps = request.attack.threat(inputs.whole).eps
        radii = [share * own_eps for share in SHARES]
    return [ThreatModel(request.attack.norm, eps).eps for eps in radii]


def _steps(request: SweepRequest) -> list[int]:
    """Ascending; none where only radii are asked for, and none by default where there is no PGD, as in L1.

    Raises:
        RobenchError: a number of steps is none.
    """
    if request.steps is None:
        return [] if request.eps is not None or not parse_norm(request.attack.norm).has_pgd else list(DEFAULT_STEPS)
    texts = [text.strip() for text in request.steps.split(",") if text.strip()]
    if not texts or not all(text.isdecimal() and int(text) > 0 for text in texts):
        raise RobenchError(f"`steps={request.steps!r}`: expected numbers of steps above 0, separated by commas, such as 1,10,100")
    return sorted({int(text) for text in texts})


def _external(options: dict[str, Any]) -> ExternalModel | None:
    model = options.get("model")
    return ExternalModel(model) if isinstance(model, str) else model


def _name(options: dict[str, Any]) -> str:
    """The model as part of a folder's name."""
    if options.get("ckpt") is not None:
        return checkpoint_name(options["ckpt"])
    model = options.get("model")
    named = model.reference if isinstance(model, ExternalModel) else str(model)
    return re.sub(r"[^\w.-]+", "-", re.sub(r"\.py(?=:|$)", "", named.rsplit("/", 1)[-1]))
