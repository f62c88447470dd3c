"""The paper's two experiments, done again under its own protocol and under the one that its numbers were taken for."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robench.api import attack
from robench.checkpoint import load_checkpoint, read_description, save_checkpoint
from robench.data import load_dataset
from robench.evaluation.device import use_device
from robench.evaluation.results import read_results
from robench.evaluation.store import read_run
from robench.models.loading import classifier_of_checkpoint
from robench.reproduce.measured import Measured, condense, recall, store
from robench.reproduce.mechanism import explain
from robench.reproduce.page import write_page
from robench.reproduce.plan import ATTACKS, AUTOATTACK, TABLES, Trained
from robench.reproduce.rounding import compact
from robench.reproduce.settings import QUICK, Settings
from robench.request import AttackRequest
from robench.training import train
from robench.types import Dataset, RobenchError

__all__ = ["QUICK", "Settings", "compact", "reproduce"]


def reproduce(
    settings: Settings, *, out: Path, weights: Path, data_dir: Path | None = None, device: str = "auto", threads: int | None = None,
    only: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    """Trains, attacks and reports whatever is missing; called again after a kill, it goes on.

    Args:
        settings: see ``Settings``.
        out: for trainings, runs, verdicts and the report.
        weights: for the final models, rounded (see ``compact``), which are what is evaluated; a model that lies there is not trained again.
        data_dir: see ``robench.data.data_folder``.
        device, threads: see ``use_device``.
        only: names of models; the others are left for another call.

    Returns:
        The report.

    Raises:
        RobenchError: a model was trained with other settings than the precision, or see ``attack`` and ``train``.
    """
    bench = _Bench(settings, Path(out), Path(weights), {"data_dir": data_dir, "device": device, "threads": threads})
    commands = {name: settings.command(name) for name in dict.fromkeys((*settings.datasets, *TABLES["all"]))}
    plan = settings.plan()
    unknown = set(only) - {model.name for model in plan}
    if unknown:
        raise RobenchError(
            f"--only {', '.join(sorted(unknown))}: no such model; there are {', '.join(model.name for model in plan)}"
        )
    for model in (each for each in plan if not only or each.name in only):
        found = recall(bench.out, model)
        if found is not None:
            bench.refuse_difference(model, found.about["model"]["origin"]["recipe"], bench.out)
        if found is None or found.n < bench.samples(model):
            _say(model, "training")
            path = bench.train(model)
            _say(model, "attacking")
            store(bench.out, bench.measure(model, path))
            write_page(bench.out, settings.whole_plan(), commands)
    return write_page(bench.out, settings.whole_plan(), commands)


def _say(model: Trained, what: str) -> None:
    print(f"robench: {what} {model.name} ({model.title})", file=sys.stderr)


@dataclass(frozen=True)
class _Bench:
    """Where everything lies, and on what it is computed."""

    settings: Settings
    out: Path
    weights: Path
    where: dict[str, Any]

    def train(self, model: Trained) -> Path:
        """The model's checkpoint, rounded."""
        path = self.weights / f"{model.name}.safetensors"
        train_set, test_set = (load_dataset(model.dataset, split, self.where["data_dir"]) for split in ("train", "test"))
        spec = self.settings.spec(model, train_set)
        if path.exists():
            self.refuse_difference(model, read_description(path)["recipe"], path)
            return path
        trained = self.out / "checkpoints" / path.name
        if trained.exists():
            self.refuse_difference(model, read_description(trained)["recipe"], trained)
        else:
            with use_device(self.where["device"], self.where["threads"]) as device:
                train(spec, train_set, test_set, out=trained, device=device)
        save_checkpoint(path, compact(load_checkpoint(trained)))
        return path

    def refuse_difference(self, model: Trained, found: dict[str, Any], where: Path) -> None:
        """All models of a table are trained alike, but for the precision, which the table says where it differs."""
        wanted = asdict(self.settings.spec(model, load_dataset(model.dataset, "train", self.where["data_dir"])))
        different = [name for name, value in wanted.items() if name != "precision" and found.get(name) != value]
        if different:
            said = ", ".join(f"{name} {found.get(name)!r} there and {wanted[name]!r} here" for name in different)
            raise RobenchError(
                f"{where}: {model.name} was trained with other settings: {said}; give the same settings, or another --out and --weights"
            )

    def samples(self, model: Trained) -> int:
        return self.settings.samples(model, load_dataset(model.dataset, "test", self.where["data_dir"]))

    def run_of(self, model: Trained) -> Path:
        return self.out / "runs" / model.name

    def measure(self, model: Trained, path: Path) -> Measured:
        """Attacks a model under both protocols."""
        dataset = load_dataset(model.dataset, "test", self.where["data_dir"])
        n, run, source = self.settings.samples(model, dataset), self.run_of(model), self.run_of(model.source)
        if model.is_source:
            self._craft(model, path, n)
            attack(AttackRequest(AUTOATTACK, n=n), ckpt=path, out=run, **self.where)
        else:
            self._craft(model.source, self.train(model.source), self.settings.samples(model.source, dataset))
            stored = tuple(f"{source}:{name}" for name in ATTACKS)
            attack(AttackRequest(",".join((*ATTACKS, AUTOATTACK)), n=n, adv=stored), ckpt=path, out=run, **self.where)
        results = read_results(run)
        about = {
            "n": n, "model": results.description["model"], "data": results.description["spec"]["data"],
            "threat": results.description["threat"], "chunk": results.description["spec"]["chunk"],
            "attack seed": results.description["spec"]["seed"], "environment": results.description["environment"],
            "seconds": round(float(results.ledger["seconds"].sum()), 1), "forwards": int(results.ledger["forwards"].sum()),
            "backwards": int(results.ledger["backwards"].sum()), "machine": sorted(set(results.ledger["machine"])),
            "device": results.description["spec"]["device_type"], "command": shlex.join(["robench", *sys.argv[1:]]),
            "digest": results.description["spec"]["model"],
            # Of the weights alone: the digest of a run covers robench's own layers too, which may be written anew.
            "source digest": (results.description if model.is_source else read_run(source))["model"]["origin"]["weights"],
            "mechanism": {} if model.is_source else self._explain(model, path, dataset, n),
        }  # fmt: skip
        return Measured(model, condense(results, model.source.name), about)

    def _craft(self, source: Trained, path: Path, n: int) -> None:
        """The source's images, of every test sample, as the paper's authors stored them."""
        attack(AttackRequest(",".join(ATTACKS), n=n, save_adv=True), ckpt=path, out=self.run_of(source), **self.where)

    def _explain(self, model: Trained, path: Path, dataset: Dataset, n: int) -> dict[str, Any]:
        with use_device(self.where["device"], self.where["threads"]) as device:
            classifier = classifier_of_checkpoint(path, dataset, device).classifier
            threat = AttackRequest().threat(dataset)
            return explain(classifier, dataset, threat, self.run_of(model.source), ATTACKS, n)
