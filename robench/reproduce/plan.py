"""What the paper published, and which models are trained to test it. Imports no torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

ATTACKS = ("fgsm", "pgd7", "pgd20", "pgd50")
AUTOATTACK = "autoattack"
COLUMNS = ("clean", *ATTACKS)
SAME_SIZE = ("none", "noise", "blur", "shuffled", "another image's", "stored")  # see ``robench.reproduce.mechanism``

# Wang & Wang 2021, tables 1 and 2: percent under no attack, FGSM, PGD-7, PGD-20, PGD-50.
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "cifar10": {
        "single": (82.46, 2.89, 0.04, 0.00, 0.00),
        "contrastive": (73.16, 58.61, 60.62, 59.95, 59.89),
    },
    "cifar100": {
        "single": (48.99, 2.77, 0.37, 0.18, 0.13),
        "supervised": (50.47, 23.20, 25.64, 23.59, 23.49),
        "contrastive": (44.37, 32.49, 42.62, 33.92, 33.53),
    },
}
TABLES = {"1": ("cifar10",), "2": ("cifar100",), "all": ("cifar10", "cifar100")}


@dataclass(frozen=True)
class Trained:
    """One model of the experiment.

    Attributes:
        dataset: that it is trained and tested on.
        arch: see ``OBJECTIVES``.
        role: "paper", "views" (single-task on SimCLR views), "second seed" or "adversarial".
        views: augmentation where it is not the variant's own.
        adversarial: see ``ADVERSARIAL``.
        seed: of the training.
        rank: in which order models are trained and evaluated; each rank is complete before the next.
    """

    dataset: str
    arch: str
    role: str
    _: KW_ONLY
    views: str | None = None
    adversarial: str = "none"
    seed: int = 0
    rank: int = 0

    @property
    def name(self) -> str:
        parts = [self.dataset, self.arch, self.views, None if self.adversarial == "none" else self.adversarial, str(self.seed)]
        return "-".join(part for part in parts if part)

    @property
    def is_source(self) -> bool:
        """Whether the paper's protocol crafts its images on this model."""
        return self == self.source

    @property
    def source(self) -> Trained:
        """The model that the paper's protocol crafts on."""
        return Trained(self.dataset, "single", "paper")

    @property
    def title(self) -> str:
        """What it is, in words."""
        from robench.training.objectives import OBJECTIVES

        words = {"views": " on SimCLR views", "second seed": ", other seed", "adversarial": " + adversarial training"}
        seed = f" (seed {self.seed})" if self.role == "paper" and self.seed else ""
        return OBJECTIVES[self.arch].title + words.get(self.role, "") + seed


def models(dataset: str, seeds: int, variants: tuple[str, ...] | None = None) -> list[Trained]:
    """The paper's models on a data set, the controls, and the paper's models again with further seeds, in order of rank.

    Args:
        dataset: where.
        seeds: trainings of each of the paper's models.
        variants: the paper's models; by default those that it has on this data set.
    """
    variants = variants or tuple(PUBLISHED[dataset])
    wanted = [Trained(dataset, arch, "paper") for arch in variants]
    wanted.append(Trained(dataset, "single", "views", views="simclr", rank=1))
    wanted.append(Trained(dataset, "single", "second seed", seed=1, rank=1))
    wanted += [Trained(dataset, arch, "adversarial", adversarial="nfgsm", rank=2) for arch in ("single", "contrastive")]
    wanted += [
        Trained(dataset, arch, "paper", seed=seed, rank=3)
        for seed in range(1, seeds)
        for arch in variants
        if (arch, seed) != ("single", 1)  # the second-seed control is this model
    ]
    return wanted
