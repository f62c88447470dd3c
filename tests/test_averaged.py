"""Gradients averaged over neighbours: they see through a ripple, cost no closed form, and only a ripple calls for them."""

import pytest
import torch
from cases import LINF, linear_case
from torch import nn

from robench.attacks import parse_columns
from robench.attacks.averaged import SHARES, mean_gradient, pixels, rise
from robench.audit.cheats import Ripple
from robench.audit.panel import AVERAGED
from robench.audit.probes import Subjects, secants
from robench.models.classifier import Classifier
from robench.models.seeded import seeded
from robench.types import ThreatModel


def attacked(module, images, labels, threat=LINF, name=AVERAGED):
    classifier = Classifier(module, 10)
    (stage,) = parse_columns(name, threat, 10)[0].stages
    with seeded(0, images.device):
        adv_images = stage.fn(classifier, images.clone(), labels.clone(), threat, 0)
    assert bool(threat.contains(images, adv_images).all())
    return classifier(adv_images).argmax(1) == labels


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_in_a_linear_model_averaged_gradients_reach_the_closed_form(norm):
    threat = ThreatModel(norm, LINF.eps if norm == "Linf" else 0.1)
    model, images, labels, robust = linear_case(threat.eps, norm, n=20)
    assert torch.equal(attacked(model, images, labels, threat), robust)


def test_behind_a_ripple_they_reach_it_too_where_steps_along_gradients_do_not():
    model, images, labels, robust = linear_case(LINF.eps, "Linf", n=20)
    rippled = nn.Sequential(Ripple(), model)  # moves a pixel by a sixth of eps, and radii are 0.4 and 2.5 times eps
    assert torch.equal(attacked(rippled, images, labels), robust)
    left = attacked(rippled, images, labels, name="pgd50-margin")
    assert int((left & ~robust).sum()) >= 5


def test_a_ripple_is_noticed_by_secants_and_an_honest_model_is_not():
    model, images, labels, _ = linear_case(LINF.eps, "Linf", n=20)

    def astray(module):
        with seeded(0, images.device):
            return secants(Subjects(Classifier(module, 10), images, labels, LINF, {}))["astray"]

    assert astray(model) == 0
    assert astray(nn.Sequential(Ripple(), model)) > 0.5


def test_the_mean_gradient_of_a_linear_model_is_its_gradient_and_rises_as_far_as_it_promises():
    model, images, labels, _ = linear_case(LINF.eps, "Linf", n=10)
    classifier = Classifier(model, 10)
    still = mean_gradient(classifier, images, labels, torch.zeros(10), 1)
    near = mean_gradient(classifier, images, labels, pixels(SHARES[0], images, LINF), 2)
    others = model.weight[classifier(images).scatter(1, labels[:, None], float("-inf")).argmax(1)]
    assert torch.allclose(still.flatten(1), others - model.weight[labels], atol=1e-6)
    promised = LINF.eps / 2 * still.flatten(1).abs().sum(1)
    assert torch.allclose(rise(classifier, images, labels, images, LINF, still), promised, rtol=0.2)
    assert near.shape == images.shape
