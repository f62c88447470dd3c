"""What ``benchmarks/scale.py --imagenet`` is made of: operations, passes, and the hours that follow from them."""

from pathlib import Path

import pytest
from cases import linear_case

import robench
from robench.types import AUTOATTACK_UNITS


@pytest.fixture
def costs(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import imagenet_costs

    return imagenet_costs


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet50", "ResNet50_Weights.IMAGENET1K_V1"), ("vit_b_16", "ViT_B_16_Weights.IMAGENET1K_V1")]
)
def test_a_forward_pass_is_twice_the_multiplications_that_torchvision_states(costs, name, weights):
    from torchvision.models import get_weight

    counted = costs.count_of(name)
    assert counted.forward == pytest.approx(2e9 * get_weight(weights).meta["_ops"], rel=1e-3)
    assert 2 <= counted.step / counted.forward < 2.1  # the gradient of the image alone, not of the weights


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_survivor_of_autoattack_takes_the_passes_that_the_hours_are_made_of(costs):
    model, images, labels, _ = linear_case(0.1, "Linf", n=4)
    found = robench.evaluate(model, images, labels, suite="apgd-ce,apgd-t,fab-t,square", eps=0.001)
    union = found.summary.set_index("attack").loc["union"]
    assert union["broken"] == 0 and union["backwards"] == 4 * costs.AUTOATTACK.steps
    assert union["forwards"] - union["backwards"] == 4 * costs.AUTOATTACK.forwards
    assert costs.AUTOATTACK.units == AUTOATTACK_UNITS


def test_other_samples_cost_what_the_measured_table_leaves_of_them(costs):
    suites = costs.suites()
    assert suites["autoattack"].broken.units == pytest.approx((2_977_577 - 247 * 11_672) / 753)
    assert suites["fast"].survivor.units == pytest.approx(0.03 * 11_672)


def test_the_last_of_eight_cards_has_three_of_twenty_chunks(costs):
    import scale

    rates = scale.Rates(broken=1.0, survivor=11.0, share=0.4)
    assert rates.span(5_000, 8) == pytest.approx(3 * 250 * 5)
    assert rates.span(5_000, 1) == pytest.approx(5_000 * 5)
