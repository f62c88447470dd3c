"""Random restarts for attacks whose library returns only the last run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robench.types import AttackFn, ThreatModel

if TYPE_CHECKING:
    from torch import nn

    from robench.types import Images, Labels


def with_restarts(once: AttackFn, restarts: int) -> AttackFn:
    """An attack that runs ``once`` up to ``restarts`` times, each time on the images that are not broken yet.

    Random draws go on from one restart to the next; the first equals the attack without restarts.
    """

    import torch

    def restarted(model: nn.Module, images: Images, labels: Labels, threat: ThreatModel, seed: int) -> Images:
        adv_images = once(model, images, labels, threat, seed)
        for _ in range(restarts - 1):
            with torch.no_grad():
                left = (model(adv_images).argmax(1) == labels).nonzero().flatten()
            if not len(left):
                break
            adv_images[left] = once(model, images[left], labels[left], threat, seed)
        return adv_images

    return restarted
