"""FGSM and PGD as torchattacks computes them."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from robench.authoring import attack
from robench.types import ThreatModel

if TYPE_CHECKING:
    from torch import nn

    from robench.types import Images, Labels


def library() -> str:
    """The installed library with its version."""
    return f"torchattacks {version('torchattacks')}"


@attack(norms="Linf", source="Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572", library=library, family="fgsm")
def fgsm(model: nn.Module, images: Images, labels: Labels, threat: ThreatModel, seed: int) -> Images:
    """One signed gradient step of eps from the image itself."""
    import torchattacks

    return torchattacks.FGSM(model, eps=threat.eps)(images, labels)


@attack(
    norms=("Linf", "L2"), source="Madry et al. 2018, https://arxiv.org/abs/1706.06083", library=library, family="pgd",
    recorded={"random_start": True, "loss": "cross-entropy"},
)  # fmt: skip
def pgd(
    model: nn.Module, images: Images, labels: Labels, threat: ThreatModel, seed: int, *, steps: int, step_size: float
) -> Images:
    """The last iterate of ``steps`` cross-entropy steps from a random start, which need not be the best one."""
    import torchattacks

    settings = {"eps": threat.eps, "alpha": step_size, "steps": steps, "random_start": True}
    if threat.norm == "Linf":
        return torchattacks.PGD(model, **settings)(images, labels)
    if threat.eps == 0:  # PGDL2 would divide 0 by 0
        return images.clone()
    # It divides the gradient of the batch's mean loss by its norm plus this (1e-10 by default), so that the steps on a confident
    # model would shrink, the more the larger the batch (torchattacks 3.5.1).
    return torchattacks.PGDL2(model, **settings, eps_for_division=1e-30)(images, labels)
