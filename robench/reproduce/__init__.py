"""The paper's two experiments, done again under its own protocol and under the one that its numbers were taken for."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from robench.checkpoint import XZ, load_checkpoint, read_description, save_checkpoint
from robench.data import load_dataset
from robench.evaluation.device import use_device
from robench.evaluation.results import read_results
from robench.evaluation.run_folder import read_run
from robench.models.subject import classifier_of_checkpoint
from robench.reproduce.estimate import Remaining, Work, epochs_done, forecast
from robench.reproduce.measured import Measured, condense, load_measured, save_measured, stored_columns
from robench.reproduce.mechanism import explain
from robench.reproduce.page import write_page
from robench.reproduce.plan import ATTACKS, AUTOATTACK, TABLES, Trained
from robench.reproduce.rounding import compact
from robench.reproduce.settings import QUICK, Settings
from robench.run.attack import attack
from robench.run.request import AttackRequest
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
            f"`only={','.join(sorted(unknown))}`: no such model; there are {', '.join(model.name for model in plan)}"
        )
    missing = [model for model in plan if (not only or model.name in only) and bench.is_missing(model)]
    if missing:
        bench.say_how_long(missing)
    for model in missing:
        _say(model, "training")
        path = bench.train(model)
        _say(model, "attacking")
        measured = load_measured(bench.out, model)
        renewed = (
            measured is not None
            and measured.n >= bench.samples(model)
            and measured.origin["weights"] == read_description(path)["digest"]
        )
        save_measured(
            bench.out, bench.renew(model, path, measured) if renewed and measured is not None else bench.measure(model, path)
        )
        write_page(bench.out, settings.whole_plan(), commands)
    return write_page(bench.out, settings.whole_plan(), commands)


def _say(model: Trained, what: str) -> None:
    print(f"robench: {what} {model.name} ({model.title})", file=sys.stderr)


@lru_cache(maxsize=4)  # two splits of two data sets, which every model of a table asks for again
def _load(dataset: str, split: str, data_dir: Path | None) -> Dataset:
    return load_dataset(dataset, split, data_dir)


class ModelPaths(NamedTuple):
    """Of a model's rounded checkpoint, and of the one that was trained."""

    rounded: Path
    trained: Path


@dataclass(frozen=True)
class _Bench:
    """Where everything lies, and on what it is computed."""

    settings: Settings
    out: Path
    weights: Path
    options: dict[str, Any]

    def is_missing(self, model: Trained) -> bool:
        """Whether it has not been attacked on all the samples that it is to be attacked on."""
        measured = load_measured(self.out, model)
        if measured is not None:
            self.refuse_difference(model, measured.origin["recipe"], self.out)
        return measured is None or measured.n < self.samples(model) or self.has_other_images(model, measured)

    def has_other_images(self, model: Trained, measured: Measured) -> bool:
        """Whether its verdicts on stored images are about another single-task model's, or an earlier robench explained less of them, and it
        is there to be asked about these."""
        path, source = self.paths(model).rounded, self.paths(model.source).rounded
        if model.is_source or not (path.exists() and source.exists()):
            return False
        return (
            measured.about["source digest"] != read_description(source)["digest"] or "same size" not in measured.about["mechanism"]
        )

    def say_how_long(self, missing: list[Trained]) -> None:
        """On stderr, how long the missing models will take."""
        work = self.work(missing)
        spec = self.settings.spec(missing[0], self.data(missing[0].dataset, "train"))
        train_set = self.data((work.trainings[0].spec if work.trainings else spec).dataset, "train")
        test_set = self.data(spec.dataset, "test")
        with use_device(self.options["device"], self.options["threads"]) as device:
            text = forecast(work, train_set, test_set, spec, device)
        print(f"robench: {text}", file=sys.stderr)

    def work(self, missing: list[Trained]) -> Work:
        """What the missing models need: also their sources, where those lie nowhere."""
        sources = dict.fromkeys(model.source for model in missing)
        needed = dict.fromkeys([*missing, *sources])
        trainings = [self.remaining(model) for model in needed if not any(path.exists() for path in self.paths(model))]
        attacked = [model for model in needed if model in missing or not (self.run_of(model) / "run.json").exists()]
        plain = sum(self.samples(model) for model in attacked if model.adversarial == "none")
        return Work(tuple(trainings), len(attacked), plain, sum(map(self.samples, attacked)) - plain)

    def remaining(self, model: Trained) -> Remaining:
        """What is left of its training."""
        train_set = self.data(model.dataset, "train")
        spec, trained = self.settings.spec(model, train_set), self.paths(model).trained
        done = epochs_done(trained.with_name(trained.name + ".training"))
        return Remaining(spec, max(spec.epochs - done, 0) * (len(train_set) // spec.batch_size))

    def data(self, dataset: str, split: str) -> Dataset:
        return _load(dataset, split, self.options["data_dir"])

    def paths(self, model: Trained) -> ModelPaths:
        """The rounded checkpoint is compressed, unless a plain one is there."""
        name = f"{model.name}.safetensors"
        plain = self.weights / name
        return ModelPaths(plain if plain.exists() else plain.with_name(name + XZ), self.out / "checkpoints" / name)

    def train(self, model: Trained) -> Path:
        """The model's checkpoint, rounded."""
        path, trained = self.paths(model)
        train_set, test_set = self.data(model.dataset, "train"), self.data(model.dataset, "test")
        if path.exists():
            self.refuse_difference(model, read_description(path)["recipe"], path)
            return path
        if trained.exists():
            self.refuse_difference(model, read_description(trained)["recipe"], trained)
        else:
            with use_device(self.options["device"], self.options["threads"]) as device:
                train(self.settings.spec(model, train_set), train_set, test_set, out=trained, device=device)
        save_checkpoint(path, compact(load_checkpoint(trained)))
        return path

    def refuse_difference(self, model: Trained, recipe: dict[str, Any], place: Path) -> None:
        """All models of a table are trained alike, but for the precision, which the table says where it differs."""
        wanted = asdict(self.settings.spec(model, self.data(model.dataset, "train")))
        different = [name for name, value in wanted.items() if name != "precision" and recipe.get(name) != value]
        if different:
            text = ", ".join(f"{name} {recipe.get(name)!r} there and {wanted[name]!r} here" for name in different)
            raise RobenchError(
                f"{place}: {model.name} was trained with other settings: {text}; give the same settings, or another `out` and `weights`"
            )

    def samples(self, model: Trained) -> int:
        return self.settings.samples(model, self.data(model.dataset, "test"))

    def run_of(self, model: Trained) -> Path:
        return self.out / "runs" / model.name

    def measure(self, model: Trained, path: Path) -> Measured:
        """Attacks a model under both protocols."""
        dataset = self.data(model.dataset, "test")
        n, run, source = self.settings.samples(model, dataset), self.run_of(model), self.run_of(model.source)
        if model.is_source:
            self._craft(model, path, n)
            attack(AttackRequest(AUTOATTACK, n=n), ckpt=path, out=run, **self.options)
        else:
            self._craft(model.source, self.train(model.source), self.settings.samples(model.source, dataset))
            stored = tuple(f"{source}:{name}" for name in ATTACKS)
            attack(AttackRequest(",".join((*ATTACKS, AUTOATTACK)), n=n, adv=stored), ckpt=path, out=run, **self.options)
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

    def renew(self, model: Trained, path: Path, measured: Measured) -> Measured:
        """A finished model on the images of another single-task model; what it did under attack itself stays."""
        dataset, source = self.data(model.dataset, "test"), self.run_of(model.source)
        n, weights = measured.n, read_description(self.paths(model.source).rounded)["digest"]
        self._craft(model.source, self.train(model.source), self.settings.samples(model.source, dataset))
        run = self.out / "runs" / f"{model.name}-on-{weights[:8]}"
        attack(AttackRequest(None, n=n, adv=tuple(f"{source}:{name}" for name in ATTACKS)), ckpt=path, out=run, **self.options)
        verdicts = measured.verdicts.assign(**stored_columns(read_results(run), model.source.name))
        renewed = {"source digest": weights, "mechanism": self._explain(model, path, dataset, n)}
        return Measured(model, verdicts, {**measured.about, **renewed, "stored with": shlex.join(["robench", *sys.argv[1:]])})

    def _craft(self, source: Trained, path: Path, n: int) -> None:
        """The source's images, of every test sample, as the paper's authors stored them."""
        attack(AttackRequest(",".join(ATTACKS), n=n, save_adv=True), ckpt=path, out=self.run_of(source), **self.options)

    def _explain(self, model: Trained, path: Path, dataset: Dataset, n: int) -> dict[str, Any]:
        with use_device(self.options["device"], self.options["threads"]) as device:
            classifier = classifier_of_checkpoint(path, dataset, device).classifier
            threat = AttackRequest().threat(dataset)
            return explain(classifier, dataset, threat, source_run=self.run_of(model.source), attacks=ATTACKS, n=n)
