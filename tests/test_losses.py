import math

import torch

from robench.training.losses import nt_xent
from robench.training.objectives import OBJECTIVES, Terms


def by_double_loop(first, second, temperature):
    embeddings = [e / e.norm() for e in torch.cat([first, second])]
    n, total = len(first), 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        positive = math.exp(float(embeddings[i] @ embeddings[partner]) / temperature)
        others = sum(math.exp(float(embeddings[i] @ embeddings[j]) / temperature) for j in range(2 * n) if j != i)
        total -= math.log(positive / others)
    return total / (2 * n)


def test_nt_xent_equals_a_double_loop():
    generator = torch.Generator().manual_seed(0)
    for n, width, temperature in ((1, 4, 1.0), (3, 8, 0.5), (7, 16, 0.07)):
        first, second = torch.randn(2, n, width, generator=generator)
        assert math.isclose(
            float(nt_xent(first, second, temperature)), by_double_loop(first, second, temperature), rel_tol=1e-4, abs_tol=1e-6
        )


def test_nt_xent_of_identical_embeddings_is_log_2n_minus_1():
    for n in (1, 2, 16):
        same = torch.ones(n, 8)
        assert math.isclose(float(nt_xent(same, same, 0.07)), math.log(2 * n - 1), abs_tol=1e-5)


def test_nt_xent_gradient_is_finite_at_low_temperature():
    first = torch.randn(5, 8, requires_grad=True)
    nt_xent(first, torch.randn(5, 8), 0.01).backward()
    assert first.grad.isfinite().all()


def test_contrastive_loss_sums_cross_entropy_over_views_as_in_eq_5():
    outputs = {"main": torch.randn(8, 3), "projection": torch.randn(8, 16)}
    labels = torch.tensor([0, 1, 2, 0] * 2)
    targets = {"main": labels}
    summed = OBJECTIVES["contrastive"].loss(outputs, targets, Terms(0.5, 0.5, 0.07, sum_views=True))
    per_view = [torch.nn.functional.cross_entropy(view, labels[:4]) for view in outputs["main"].chunk(2)]
    assert torch.isclose(summed["main"], 0.5 * (per_view[0] + per_view[1]))
    assert torch.isclose(summed["contrastive"], 0.5 * nt_xent(*outputs["projection"].chunk(2), 0.07))
    averaged = OBJECTIVES["contrastive"].loss(outputs, targets, Terms(0.5, 1.0, 0.07, sum_views=False))
    assert torch.isclose(2 * averaged["main"], summed["main"])
    assert torch.isclose(averaged["contrastive"], 2 * summed["contrastive"])


def test_supervised_loss_weighs_fine_and_coarse():
    outputs = {"main": torch.randn(4, 10), "coarse": torch.randn(4, 3)}
    fine, coarse = torch.tensor([1, 2, 3, 4]), torch.tensor([0, 1, 2, 0])
    losses = OBJECTIVES["supervised"].loss(outputs, {"main": fine, "coarse": coarse}, Terms(0.3, 0.7, 0.07, True))
    assert torch.isclose(losses["main"], 0.3 * torch.nn.functional.cross_entropy(outputs["main"], fine))
    assert torch.isclose(losses["coarse"], 0.7 * torch.nn.functional.cross_entropy(outputs["coarse"], coarse))
