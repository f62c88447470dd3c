"""How the experiment is done: which models, how they are trained, and on how many samples they are attacked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from robench.reproduce.plan import TABLES, Trained, models
from robench.training import TrainSpec
from robench.types import Dataset


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the experiment is done.

    Attributes:
        datasets: of the tables.
        epochs: of every training but the adversarial ones.
        adversarial_epochs: of those.
        seeds: trainings of each of the paper's models.
        recipe: see ``RECIPES``.
        n: test samples, None for all.
        n_adversarial: test samples for adversarially trained models, which are dear to attack.
        train: further settings of every training.
        variants: the paper's models, where the data set is not one of its own.
        ranks: how many of the plan's ranks are done.
        precision: of the trainings that are still to be done, see ``TrainSpec``; a model that is finished keeps its own.
    """

    datasets: tuple[str, ...] = TABLES["all"]
    epochs: int = 100
    adversarial_epochs: int = 100
    seeds: int = 3
    recipe: str = "paper"
    n: int | None = None
    n_adversarial: int = 1000
    train: dict[str, Any] = field(default_factory=dict)
    variants: tuple[str, ...] | None = None
    ranks: int = 4
    precision: str = "fp32"

    def plan(self) -> list[Trained]:
        """The models, in the order in which they are trained and attacked."""
        wanted = [model for name in self.datasets for model in models(name, self.seeds, self.variants)]
        return sorted((model for model in wanted if model.rank < self.ranks), key=lambda model: model.rank)

    def whole_plan(self) -> list[Trained]:
        """What the report speaks about: also what another call was or will be for."""
        planned = self.plan()
        others = Settings().plan() if set(self.datasets) <= set(TABLES["all"]) else []
        return sorted(dict.fromkeys([*planned, *others]), key=lambda model: (TABLES["all"] + self.datasets).index(model.dataset))

    def command(self, dataset: str) -> str:
        """What completes a table, with the same settings: models of both tables are trained alike."""
        table = next((f"--table {number}" for number, names in TABLES.items() if names == (dataset,)), "--quick")
        if table == "--quick":
            return f"robench reproduce {table}"
        more = f" --recipe {self.recipe}" if self.recipe != "paper" else ""
        more += f" -n {self.n}" if self.n else ""
        more += f" --precision {self.precision}" if self.precision != "fp32" else ""
        return f"robench reproduce {table} --epochs {self.epochs} --adversarial-epochs {self.adversarial_epochs} --seeds {self.seeds}{more}"

    def samples(self, model: Trained, dataset: Dataset) -> int:
        """How many test samples a model is attacked on."""
        n = self.n or len(dataset)
        return min(n, self.n_adversarial) if model.adversarial != "none" else n

    def spec(self, model: Trained, train_set: Dataset) -> TrainSpec:
        """How a model is trained."""
        epochs = self.epochs if model.adversarial == "none" else self.adversarial_epochs
        chosen = {"views": model.views, "seed": model.seed, "epochs": epochs, "precision": self.precision, **self.train}
        return TrainSpec.of(model.arch, train_set, recipe=self.recipe, adversarial=model.adversarial, **chosen)


QUICK = Settings(
    datasets=("digits",), epochs=8, adversarial_epochs=12, seeds=1, n=60, n_adversarial=16,
    train={"backbone": "small", "batch_size": 64, "lr": 5e-3}, variants=("single", "supervised", "contrastive"),
)  # fmt: skip
