"""What a picture file of 8 bits a pixel can hold of an adversarial image."""

import pytest
import torch

from robench.evaluation.replay import in_8_bits
from robench.types import ThreatModel


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 8 / 255), ("Linf", 0.03), ("Linf", 0.2), ("L2", 0.5), ("L1", 12.0)])
def test_images_of_8_bits_stay_in_the_ball_and_as_near_as_they_can(norm, eps):
    generator = torch.Generator().manual_seed(0)
    threat = ThreatModel(norm, eps)
    clean = torch.randint(256, (20, 3, 8, 8), generator=generator) / 255
    change = torch.randn(clean.shape, generator=generator)
    change = change.sign() * eps if norm == "Linf" else change * eps / threat.distance(clean, clean + change).view(-1, 1, 1, 1)
    adv = (clean + change).clamp(0, 1)
    found = in_8_bits(clean, adv, threat)
    levels = found * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3) and found.min() >= 0 and found.max() <= 1
    assert threat.contains(clean, found).all()
    assert (levels - adv * 255).abs().max() < 1 + 1e-3
    if norm == "Linf" and eps == 8 / 255:
        assert torch.equal(levels.round(), (adv * 255).round())  # nothing is lost where the radius is itself a multiple
