"""The fast suite, rewritten passes, and the curve against cost."""

import copy
import re

import numpy as np
import pytest
import torch
from cases import LINF, Linear, brightness_data, linear_case
from torch import nn

import robench
from robench.adapters.autoattack import stage_units
from robench.attacks import AttackOptions, parse_columns, registry
from robench.attacks.descent import project
from robench.attacks.nearest import Known, nearest, towards, walk
from robench.evaluation.results import read_results
from robench.evaluation.run_folder import attack_folder
from robench.models.backbones import BACKBONES, SmallMapConv2d
from robench.models.classifier import Classifier
from robench.models.quicker import quicker_precision
from robench.models.rewrite import UnshuffledConv2d, cheaper_twin, fold
from robench.models.seeded import seeded
from robench.report.accuracy import summarise
from robench.report.anytime import cost_curve, outlook, outlook_lines
from robench.report.markdown import terminal_table
from robench.types import AUTOATTACK_UNITS, NO_REWRITE, Outcome, PassOptions, RobenchError, ThreatModel

FOLDED, BF16 = PassOptions(folded=True), PassOptions(folded=True, precision="bf16")


def lively(module, seed=0):
    """Statistics and scales as after a training, so that folding has something to fold."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in ((layer.running_mean, -0.5, 0.5), (layer.running_var, 0.5, 2), (layer.weight.data, 0.5, 2)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return module.eval()


def classifier_of(backbone):
    entry = BACKBONES[backbone]
    torch.manual_seed(0)
    return Classifier(lively(nn.Sequential(entry.build(), nn.Linear(entry.n_features, 10))), 10)


def gradient(classifier, images):
    queries = images.clone().requires_grad_()
    return torch.autograd.grad(classifier(queries)[:, 0].sum(), queries)[0]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_folded_passes_have_the_same_logits_and_gradients_and_no_batchnorm_left(backbone):
    classifier, images = classifier_of(backbone), torch.rand(3, 3, 32, 32)
    twin = cheaper_twin(classifier, FOLDED, images)
    assert not [layer for layer in twin.module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [layer for layer in classifier.module.modules() if isinstance(layer, nn.BatchNorm2d)]  # the model itself keeps its own
    largest = classifier(images).abs().max()
    assert torch.allclose(twin(images), classifier(images), atol=1e-5 * largest)
    assert not any(isinstance(layer, SmallMapConv2d) for layer in twin.module.children())
    expected = gradient(classifier, images)
    assert torch.allclose(gradient(twin, images), expected, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize(("kernel", "padding"), [(7, 3), (3, 1), (5, 0), (1, 0)])
@pytest.mark.parametrize("size", [32, 18, 15])
def test_an_unshuffled_convolution_is_the_plain_one_with_its_gradient(kernel, padding, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, kernel, stride=2, padding=padding).requires_grad_(False)
    assert UnshuffledConv2d.can_be(conv)
    images = torch.rand(4, 3, size, size)
    results = []
    for layer in (conv, UnshuffledConv2d(conv)):
        inputs = images.clone().requires_grad_()
        outputs = layer(inputs)
        outputs.square().sum().backward()
        results.append((outputs, inputs.grad))
    for expected, got in zip(*results, strict=True):
        assert torch.allclose(got, expected, atol=1e-5 * float(expected.detach().abs().max()))


def test_pooling_before_relu_changes_nothing_and_is_done():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), nn.Flatten()).requires_grad_(False)
    folded, images = fold(copy.deepcopy(module)), torch.rand(5, 3, 9, 9)
    order = [node.target for node in folded.graph.nodes if node.op == "call_module"]
    assert order == ["0", "2", "1", "3"]
    found = []
    for each in (module, folded):
        inputs = images.clone().requires_grad_()
        outputs = each(inputs)
        outputs.sum().backward()
        found.append((outputs, inputs.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


class Shared(nn.Module):
    """A convolution whose output is used twice, and a BatchNorm that is called twice: neither can be folded."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images):
        x = self.first(images)
        y = self.norm(x) + x
        z = self.norm(self.second(y))
        return self.other(z).mean((2, 3))


class Branching(nn.Module):
    """Looks at values, so that it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, images):
        return self.body(images).mean((2, 3)) * (2 if images.mean() > 0.5 else 1)


def test_what_is_used_twice_is_not_folded():
    module = lively(Shared())
    folded = fold(lively(Shared()).requires_grad_(False))
    folded.load_state_dict(module.state_dict())
    images = torch.rand(5, 3, 8, 8)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules()) == 2
    assert torch.allclose(folded(images), module(images), atol=1e-6)


def test_a_model_that_cannot_be_traced_is_searched_as_it_is():
    classifier, images = Classifier(lively(Branching()), 4), torch.rand(4, 3, 8, 8)
    assert fold(lively(Branching())) is None
    assert torch.allclose(cheaper_twin(classifier, FOLDED, images)(images), classifier(images), atol=1e-6)


def test_a_trace_that_computes_something_else_is_not_used():
    module = lively(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    module[0].register_forward_hook(lambda layer, inputs, output: output * 3)  # a trace does not see it
    classifier, images = Classifier(module, 4), torch.rand(4, 3, 8, 8)
    assert torch.allclose(cheaper_twin(classifier, FOLDED, images)(images), classifier(images), atol=1e-6)


def test_nothing_asked_for_and_random_models_are_searched_by_their_own_passes():
    classifier, images = classifier_of("small"), torch.rand(2, 3, 32, 32)
    assert cheaper_twin(classifier, NO_REWRITE, images) is classifier
    classifier.draws = 100
    assert cheaper_twin(classifier, FOLDED, images) is classifier


def run_nearest(classifier, images, labels, threat, **settings):
    with seeded(0, images.device), classifier.counting() as passes:
        adv_images = nearest(classifier, images, labels, threat, 0, **settings)
    with torch.no_grad():
        return classifier.exact(adv_images).argmax(1) == labels, passes


@pytest.mark.parametrize("search", [NO_REWRITE, FOLDED, BF16], ids=str)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_nearest_reaches_the_closed_form_in_every_precision(norm, search):
    threat = ThreatModel(norm, 0.02 if norm == "Linf" else 0.1)
    model, images, labels, robust = linear_case(threat.eps, norm)
    twin = cheaper_twin(Classifier(model, 10), search, images)
    survived, _ = run_nearest(twin, images, labels, threat, budget=0.01)
    assert torch.equal(survived, robust)


class Coarse(Linear):
    """Says the opposite in bf16: whatever is found there is false in float32."""

    def forward(self, images):
        logits = super().forward(images.to(self.weight.dtype))
        return -logits if images.dtype == torch.bfloat16 else logits


def test_what_bf16_alone_calls_broken_is_not_given_up():
    model, images, labels, robust = linear_case(0.02, "Linf")
    coarse = Coarse(model.weight.data, model.bias.data)
    twin = cheaper_twin(Classifier(coarse, 10), PassOptions(precision="bf16"), images)
    assert not (twin(images).argmax(1) == labels).any()
    with seeded(0, images.device):
        adv_images = nearest(twin, images, labels, ThreatModel("Linf", 0.02), 0, budget=0.01)
    assert torch.isfinite(adv_images).all()
    assert (twin.exact(adv_images).argmax(1) == labels)[robust].all()


@pytest.mark.parametrize("budget", [0.02, 0.1])
def test_nearest_stays_within_its_budget(budget):
    model, images, labels, _robust = linear_case(0.02, "Linf")
    survived, passes = run_nearest(Classifier(model, 10), images, labels, ThreatModel("Linf", 0.02), budget=budget)
    spent = passes.forwards + 2 * passes.backwards
    allowed = budget * AUTOATTACK_UNITS * int(survived.sum())
    one_round = (30 * (1 + int(budget / 0.03)) + 1) * 16  # the least samples at a time, ten steps each, more behind a second 0.03
    broken = int((~survived).sum()) * 31  # in the first steps
    assert allowed <= spent <= max(allowed, int(survived.sum()) * 91) + one_round + broken


def test_descents_grow_longer_as_the_budget_is_spent(monkeypatch):
    lengths = []

    def noted(model, known, rows, targets, loss, threat, sizes, start=None):
        if loss is towards:
            lengths.append(len(sizes))
        return walk(model, known, rows, targets, loss, threat, sizes, start)

    monkeypatch.setattr("robench.attacks.nearest.walk", noted)
    model, images, labels, robust = linear_case(0.02, "Linf", n=40)
    few = robust.nonzero().flatten()[:4]
    run_nearest(Classifier(model, 10), images[few], labels[few], ThreatModel("Linf", 0.02), budget=0.029)
    assert set(lengths) == {10}
    run_nearest(Classifier(model, 10), images[few], labels[few], ThreatModel("Linf", 0.02), budget=0.4)
    assert set(lengths) == set(range(10, 101, 10)) and lengths[-1] == 100


def test_a_large_budget_pays_for_the_stages_of_autoattack():
    def stages(budget, n_classes=10):
        (suite,) = parse_columns("fast", LINF, n_classes, AttackOptions(budget=budget))
        return [member.name for member in suite.stages], suite.stages[0].params["budget"]

    assert stages(0.4) == (["nearest", "suspect", "apgd-ce", "apgd-t", "fab-t", "square"], 0.4)
    names, search = stages(1.0)
    assert names == ["nearest", "apgd-ce", "apgd-t", "suspect", "fab-t", "square"] and search == pytest.approx(0.74, abs=0.005)
    names, search = stages(2.0)
    assert names == ["nearest", "apgd-ce", "apgd-t", "suspect", "fab-t", "square"] and search == pytest.approx(1.0, abs=0.003)
    assert stages(1.0, n_classes=3)[0] == ["nearest", "apgd-ce", "suspect", "fab-t", "square"]


@pytest.mark.parametrize("n_classes", [2, 3, 4, 10, 1000])
def test_a_larger_budget_is_never_spent_on_less(n_classes):
    def planned(budget):
        (suite,) = parse_columns("fast", LINF, n_classes, AttackOptions(budget=budget))
        names = [member.name for member in suite.stages]
        sure = names[1 : names.index("suspect")] if suite.gate else names[1:]
        stages = sum(stage_units(name, n_classes) for name in sure if name != "suspect")
        return suite.stages[0].params["budget"] + stages / AUTOATTACK_UNITS

    budgets = [0.01, 0.03, 0.2, 0.26, 0.3, 0.49, 0.51, 0.8, 1.0, 1.2, 1.3, 2.0]
    assert [planned(budget) for budget in budgets] == pytest.approx(budgets)


def test_a_search_that_was_changed_computes_its_column_again(tmp_path, monkeypatch):
    (before,), (again,) = parse_columns("fast", LINF, 10), parse_columns("fast", LINF, 10)
    assert attack_folder(before, before.stages[0]) == attack_folder(again, again.stages[0])
    for name in ("nearest.py", "descent.py"):
        (tmp_path / name).write_text("# another search\n")
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    registry._code_version.cache_clear()
    try:
        (after,) = parse_columns("fast", LINF, 10)
    finally:
        registry._code_version.cache_clear()
    assert attack_folder(after, after.stages[0]) != attack_folder(before, before.stages[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "run"),
    [(1.0, ["nearest", "apgd-ce", "apgd-t", "suspect"]), (1.5, ["nearest", "apgd-ce", "apgd-t", "suspect", "fab-t", "square"])],
)
def test_what_a_large_budget_pays_for_is_run(tmp_path, budget, run):
    model, images, labels, robust = linear_case(0.02, "Linf", n=12, shape=(3, 12, 12))
    robench.evaluate(model, images, labels, suite="fast", eps=0.02, budget=budget, device="cpu", out=tmp_path / "run")
    results = read_results(tmp_path / "run")
    column = f"fast(budget={budget:g})"
    asked = results.ledger[results.ledger["forwards"] > 0]["attack"].tolist()
    assert [name.partition("/")[2] for name in asked if name.startswith(column)] == run
    fast = results.verdicts[results.verdicts["attack"] == column]
    assert ((fast["outcome"] == Outcome.ROBUST).to_numpy() == robust.numpy()).all()
    assert not any("does not trust" in line for line in outlook_lines(results))


def test_what_those_left_may_cost_does_not_depend_on_how_many_broke_beside_them():
    model, images, labels, robust = linear_case(0.02, "Linf", n=60)
    rows = torch.cat([robust.nonzero().flatten()[:3], (~robust).nonzero().flatten()])
    costs = []
    for chosen in (rows, rows[:3]):
        survived, passes = run_nearest(
            Classifier(model, 10), images[chosen], labels[chosen], ThreatModel("Linf", 0.02), budget=0.035
        )
        assert int(survived.sum()) == 3
        costs.append(passes.forwards + 2 * passes.backwards)
    broken = 4 * (len(rows) - 3)  # at least: a look with a gradient, and one without
    assert costs[1] >= 0.035 * AUTOATTACK_UNITS * 3 and costs[0] - broken >= 0.035 * AUTOATTACK_UNITS * 3


def test_the_next_pair_is_the_nearest_and_moves_away_when_tried():
    near = torch.tensor([[float("inf"), 0.3, 0.2], [0.5, float("inf"), 0.1], [-1.0, 2.0, float("inf")]])
    known = Known.nothing(torch.zeros(3, 1, 1, 1), torch.tensor([0, 1, 2]), 3)
    known.near[:] = near
    assert known.left.tolist() == [0, 1]  # the third is broken
    rows, targets = known.next_pairs(0.5, 1)
    assert (rows.tolist(), targets.tolist()) == ([1], [2])  # a fifth of the largest gap of its sample
    known.tried[1, 2] = 2  # which counts four times as far now
    rows, targets = known.next_pairs(0.5, 1)
    assert (rows.tolist(), targets.tolist()) == ([0], [2])
    known.tried[0, 2] = 1
    assert known.next_pairs(1.0, 1)[1].tolist() == [1, 2]
    known.near[0] *= 1000  # logits of another size change nothing
    assert known.next_pairs(1.0, 1)[0].tolist() == [0, 1] and known.next_pairs(1.0, 1)[1].tolist() == [1, 2]


def test_a_class_that_stays_near_and_is_never_reached_takes_the_turn_of_no_other():
    known = Known.nothing(torch.zeros(1, 1, 1, 1), torch.tensor([0]), 4)
    known.near[:] = torch.tensor([[float("inf"), 1e-30, 0.01, 1.0]])  # a tie, a gap a hundred times smaller than the last
    taken = []
    for _ in range(30):
        rows, targets = known.next_pairs(1.0, 1)
        known.tried[rows, targets] += 1
        taken.append(int(targets))
    assert taken[0] == 1 and taken.index(2) <= 5 and taken.index(3) <= 20
    assert min(taken.count(target) for target in (1, 2, 3)) >= 5


def test_a_class_that_was_tried_hundreds_of_times_is_still_a_class_and_not_the_true_one():
    known = Known.nothing(torch.zeros(1, 1, 1, 1), torch.tensor([0]), 3)
    known.near[:] = torch.tensor([[float("inf"), 0.5, 1.0]])
    known.tried[0, 1:] = 500
    assert known.next_pairs(1.0, 1)[1].tolist() == [1]
    known.tried[0, 1] = 502
    assert known.next_pairs(1.0, 1)[1].tolist() == [2]


def barely(n, eps, shape=(3, 12, 12)):
    """All of them breakable, just: the linear case with every sample at 0.97 of its radius."""
    model, images, labels, robust = linear_case(eps, "Linf", n=n, shape=shape)
    return model, 0.5 + (images - 0.5) * (torch.where(robust, 1 / 2.5, 1 / 0.4) * 0.97)[:, None, None, None], labels


def test_every_breakable_class_gets_its_turn(tmp_path):
    model, images, labels = barely(60, 0.004)
    survived, _ = run_nearest(Classifier(model, 10), images, labels, ThreatModel("Linf", 0.004), budget=0.2)
    assert not survived.any()


def test_nearest_refuses_a_random_model():
    model, images, labels, _ = linear_case(0.02, "Linf", n=4)
    classifier = Classifier(model, 10)
    classifier.draws = 100
    with pytest.raises(RobenchError, match="answer alike every time"):
        nearest(classifier, images, labels, LINF, 0, budget=0.01)


class Flat(nn.Module):
    """An honest linear model behind a rounding that stops every gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model((images * 64).round() / 64)


def evaluated(tmp_path, model, images, labels, suite, eps=0.06):
    path = tmp_path / "run"
    robench.evaluate(model, images, labels, suite=suite, eps=eps, batch_size=30, device="cpu", out=path)
    return read_results(path)


def test_fast_trusts_an_honest_model_and_leaves_autoattack_out(tmp_path):
    model, images, labels, robust = linear_case(0.02, "Linf", shape=(3, 12, 12))
    results = evaluated(tmp_path, model, images, labels, "fast", eps=0.02)
    fast = results.verdicts[results.verdicts["attack"] == "fast"]
    assert ((fast["outcome"] == Outcome.ROBUST).to_numpy() == robust.numpy()).all()
    left_out = results.ledger[results.ledger["attack"] == "fast/apgd-ce"]
    assert left_out["mode"].tolist() == ["left out: suspect broke nothing"] * 2
    assert not left_out[["forwards", "backwards"]].to_numpy().any()
    assert fast["margin"].notna().all()  # of the stage that judged last, not of those that were left out
    assert not any("does not trust" in line for line in outlook_lines(results))
    shown = terminal_table(summarise(results))
    assert re.search(r"^fast/apgd-ce, apgd-t, fab-t, square +left out$", shown, re.MULTILINE) and re.search(
        r"^fast/nearest +[\d.]+ %", shown, re.MULTILINE
    )
    assert re.search(
        r"^\| fast/apgd-ce, apgd-t, fab-t, square \| left out \|", (results.path / "report.md").read_text(), re.MULTILINE
    )


@pytest.mark.slow
def test_fast_calls_autoattack_where_gradients_are_masked_and_says_so(tmp_path):
    model, images, labels, _ = linear_case(0.02, "Linf", n=20)
    results = evaluated(tmp_path, Flat(model), images, labels, "fast")
    counted = results.verdicts.groupby("attack")["outcome"].apply(lambda outcome: int((outcome == Outcome.ROBUST).sum()))
    assert counted["fast/nearest"] > counted["fast"]  # gradients alone left more
    costs = results.ledger.set_index("attack")["forwards"]
    assert costs["fast/square"] > 200 * counted["fast"]
    assert any("does not trust its gradients" in line for line in outlook_lines(results))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "followed"), [(0.02, "apgd-ce, apgd-t, fab-t and square"), (0.6, "fab-t and square"), (1.3, "fab-t and square")]
)
def test_a_budget_of_any_size_says_that_gradients_lead_astray(tmp_path, budget, followed):
    model, images, labels, _ = linear_case(0.02, "Linf", n=12, shape=(3, 12, 12))
    robench.evaluate(Flat(model), images, labels, suite="fast", eps=0.06, budget=budget, device="cpu", out=tmp_path / "run")
    (said,) = [line for line in outlook_lines(read_results(tmp_path / "run")) if "does not trust its gradients" in line]
    assert f"where AutoAttack's {followed} followed" in said


@pytest.mark.slow
def test_the_cost_curve_is_what_the_attack_did(tmp_path):
    """One sample breaks and the others never: the curve has one step, at the units of the query that broke it."""
    images, labels = brightness_data([0.5 / 255, 0.4, 0.4, 0.4, -0.1])
    from cases import BrightnessClassifier

    path = tmp_path / "run"
    robench.evaluate(BrightnessClassifier(), images, labels, suite="fgsm", eps="8/255", device="cpu", out=path)
    results = read_results(path)
    curve = cost_curve(results, "fgsm")
    # FGSM asks once, with a gradient: 4 units forward and 8 backward, over 5 samples; what breaks is what it returns.
    assert curve["robust_accuracy"].tolist() == pytest.approx([0.8, 0.6, 0.6])
    assert curve["units"].tolist() == pytest.approx([0, 12 / 5, 12 / 5])
    robench.evaluate(BrightnessClassifier(), images, labels, suite="pgd2", eps="8/255", device="cpu", out=tmp_path / "pgd")
    curve = cost_curve(read_results(tmp_path / "pgd"), "pgd2")
    assert curve["robust_accuracy"].tolist() == pytest.approx([0.8, 0.6, 0.6])
    assert curve["units"].iloc[1] in (pytest.approx(4 / 5), pytest.approx(16 / 5))  # the random start, or one step on


def test_the_outlook_counts_halves_and_quarters():
    import pandas as pd

    curve = pd.DataFrame({"units": [0, 1, 30, 40, 60, 100], "robust_accuracy": np.linspace(1, 0.5, 6)})
    seen = outlook(curve)
    assert (seen.late, seen.before, seen.more) == (1, 2, 0.5)
    assert seen.most == pytest.approx(4.744, abs=1e-3)  # the upper bound of a Poisson mean after one event


def test_a_folded_column_has_a_name_and_a_key_of_its_own():
    own, *_ = parse_columns("autoattack", LINF, 10)
    folded, *_ = parse_columns("autoattack", LINF, 10, AttackOptions(pass_options=FOLDED))
    assert (own.name, folded.name) == ("autoattack", "autoattack(folded)")
    assert all(member.params["passes"] == "folded" for member in folded.stages)
    assert [suite.name for suite in parse_columns("fast,pgd7", LINF, 10, AttackOptions(budget=1.0, pass_options=BF16))] == [
        "fast(budget=1, bf16)", "pgd7(folded, bf16)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [({"budget": 1.0}, "`budget` is what the fast suite may spend"), ({"budget": 0.0}, "expected a number above 0")],
)
def test_a_budget_that_means_nothing_is_refused(options, message):
    with pytest.raises(RobenchError, match=message):
        parse_columns("pgd7", LINF, 10, AttackOptions(**options))


@pytest.mark.slow
def test_folded_autoattack_says_of_a_trained_model_what_its_own_passes_say(tmp_path, few):
    from robench.training import TrainSpec, train

    spec = TrainSpec.of("single", few, backbone="small", batch_size=32, epochs=4, lr=5e-3)
    path = train(spec, few, few, out=tmp_path / "m.safetensors", show_progress=False)
    from robench.run.attack import attack
    from robench.run.request import AttackRequest

    runs = {}
    for passes in ("own", "folded"):
        request = AttackRequest("apgd-ce,fast", eps="0.05", n=24, passes=passes)
        runs[passes] = read_results(
            attack(request, ckpt=path, dataset="digits", out=tmp_path / passes, device="cpu", show_progress=False)
        )
    tables = [
        {name: (rows["outcome"] == Outcome.ROBUST).sum() for name, rows in results.verdicts.groupby("attack")}
        for results in runs.values()
    ]
    assert set(runs["folded"].columns) == {"apgd-ce(folded)", "fast"}
    assert tables[0]["apgd-ce"] == tables[1]["apgd-ce(folded)"]
    assert tables[0]["fast"] == tables[1]["fast"]


class Twice(nn.Module):
    """A linear model that says its first class twice: their logits always tie, and argmax takes the first."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        logits = self.model(images)
        return torch.cat([logits[:, :1], logits[:, :1], logits[:, 1:]], 1)


def test_a_tie_that_argmax_decides_rightly_is_not_given_up():
    model, images, labels, robust = linear_case(0.02, "Linf")
    first = labels == 0
    survived, _ = run_nearest(Classifier(Twice(model), 11), images[first], labels[first], ThreatModel("Linf", 0.02), budget=0.01)
    assert torch.equal(survived, robust[first])


class NotANumberAtFirst(nn.Module):
    """Its first answers are no numbers, as of a model that overflows here and there."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, images):
        self.calls += 1
        return self.model(images) * (float("nan") if self.calls <= 2 else 1.0)


def test_a_query_without_a_number_ends_nothing():
    model, images, labels, robust = linear_case(0.02, "Linf")
    survived, _ = run_nearest(Classifier(NotANumberAtFirst(model), 10), images, labels, ThreatModel("Linf", 0.02), budget=0.01)
    assert torch.equal(survived, robust)


def test_what_is_asked_of_the_own_passes_goes_through_in_parts_too():
    sizes = []
    model, images, _labels, _ = linear_case(0.02, "Linf")
    model.register_forward_hook(lambda layer, inputs, output: sizes.append(len(output)))
    classifier = Classifier(model, 10)
    twin = cheaper_twin(classifier, PassOptions(precision="bf16"), images)
    twin.largest_pass = 7
    sizes.clear()
    twin.certain(images)
    assert max(sizes) <= 7 and sum(sizes) == len(images)
    assert classifier.largest_pass is None  # it is the twin that has too little memory


def test_reparametrised_and_hooked_layers_are_left_as_they_are():
    hooked = nn.Conv2d(3, 8, 3)
    hooked.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))
    for conv in (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), hooked):
        module = lively(nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        classifier, images = Classifier(module, 8), torch.rand(4, 3, 8, 8)
        twin = cheaper_twin(classifier, FOLDED, images)
        assert torch.allclose(twin(images), classifier(images), atol=1e-6)
        assert any(isinstance(layer, nn.BatchNorm2d) for layer in twin.module.modules())


def test_timing_precisions_leaves_no_twin_behind():
    classifier, images = classifier_of("small"), torch.rand(4, 3, 32, 32)
    assert quicker_precision(classifier, images) in ("fp32", "bf16")
    assert not classifier.twins  # they would travel to every worker


def test_processes_that_may_not_agree_on_a_precision_are_told_to_name_it(tmp_path, few, monkeypatch):
    from robench.run.attack import attack
    from robench.run.request import AttackRequest
    from robench.training import TrainSpec, train

    path = train(
        TrainSpec.of("single", few, backbone="small", batch_size=64, epochs=1),
        few,
        few,
        out=tmp_path / "m.safetensors",
        show_progress=False,
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    request = AttackRequest("fgsm", n=8, precision="auto")
    with pytest.raises(RobenchError, match="`precision=auto`: several processes may not agree; name fp32, tf32 or bf16"):
        attack(request, ckpt=path, dataset="digits", out=tmp_path / "run", device="cpu", show_progress=False)


class Viewing(nn.Module):
    """Flattens by ``view``, which memory in channels_last does not allow."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Conv2d(3, 6, 5), nn.BatchNorm2d(6), nn.Linear(6 * 36, 5)

    def forward(self, images):
        found = nn.functional.max_pool2d(torch.relu(self.norm(self.body(images))), 2)
        return self.head(found.view(found.size(0), -1))


class Reading(nn.Module):
    """Uses the weights of a layer beside the layer."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Linear(6, 5)

    def forward(self, images):
        beside = nn.functional.conv2d(images, self.body.weight.flip(3), None, 2, 1)
        return self.head(torch.relu(self.body(images) + beside).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("build", [Viewing, Reading])
def test_a_model_that_a_rewriting_would_break_is_searched_all_the_same(build, tmp_path, capfd):
    torch.manual_seed(0)
    model, images = lively(build()), torch.rand(6, 3, 16, 16)
    labels = model(images).argmax(1)
    results = evaluated(tmp_path, model, images, labels, "fast", eps=0.02)
    assert not (results.ledger["message"] != "").any() and "Traceback" not in capfd.readouterr().err
    twin = cheaper_twin(Classifier(model, 5), FOLDED, images)
    assert torch.allclose(twin(images), model(images), atol=1e-5)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in twin.module.modules())


class Rounding(nn.Module):
    def forward(self, images):
        return (images * 16).round() / 16


def test_a_gradient_that_a_model_brings_itself_is_not_lost():
    torch.manual_seed(0)
    module = lively(nn.Sequential(Rounding(), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)))
    module[0].register_full_backward_hook(lambda layer, inner, outer: (outer[0],))  # straight through the rounding
    classifier, images = Classifier(module, 5), torch.rand(20, 3, 8, 8)
    own, folded = gradient(classifier, images), gradient(cheaper_twin(classifier, FOLDED, images), images)
    assert own.abs().max() > 1e-3 and torch.allclose(own, folded, atol=1e-6)


class LosesItsGraph(nn.Module):
    """Fails wherever a gradient is to be asked of it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        if images.requires_grad:
            raise ValueError("lost")
        return self.model(images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:attack failed")
def test_a_search_that_failed_is_not_trusted_and_autoattack_follows(tmp_path):
    model, images, labels, _ = linear_case(0.02, "Linf", n=20)
    results = evaluated(tmp_path, LosesItsGraph(model), images, labels, "fast", eps=0.02)
    messages = results.ledger.set_index("attack")["message"]
    assert "lost" in messages["fast/nearest"]
    assert not results.ledger["mode"].str.startswith("left out").any()


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
def test_fast_takes_few_classes_where_autoattacks_targeted_loss_cannot(n_classes, tmp_path):
    model, images, labels, robust = linear_case(0.02, "Linf", n=24, n_classes=n_classes)
    results = evaluated(tmp_path, Flat(model), images, labels, "fast", eps=0.02)
    assert results.stages["fast"] == [f"fast/{stage}" for stage in ("nearest", "suspect", "apgd-ce", "fab-t", "square")]
    left = results.verdicts[results.verdicts["attack"] == "fast"]["outcome"] == Outcome.ROBUST
    assert (left.to_numpy() >= robust.numpy()).all()
    with pytest.raises(RobenchError, match="needs 4 classes or more, the model has .; use fast, or"):
        parse_columns("autoattack", LINF, n_classes)


def test_float64_beside_bf16_is_float64_of_the_model_itself(tmp_path):
    model, images, labels, robust = linear_case(0.02, "Linf", n=20)
    classifier = Classifier(model, 10)
    ((attack,),) = (
        s.stages for s in parse_columns("pgd20-float64", ThreatModel("Linf", 0.02), 10, AttackOptions(pass_options=BF16))
    )
    twin = cheaper_twin(classifier, attack.pass_options, images)
    with seeded(0, images.device):
        adv_images = attack.fn(twin, images, labels, ThreatModel("Linf", 0.02), 0)
    assert ((classifier(adv_images).argmax(1) == labels) == robust).all()


def test_pairs_come_in_the_order_of_the_samples_by_which_the_referee_knows_them():
    known = Known.nothing(torch.zeros(3, 1, 1, 1), torch.tensor([0, 1, 2]), 3)
    known.near[:] = torch.tensor([[float("inf"), 0.9, 1.0], [1.0, float("inf"), 0.1], [0.5, 1.0, float("inf")]])
    rows, targets = known.next_pairs(1.0, 3)
    assert (rows.tolist(), targets.tolist()) == ([0, 1, 2], [1, 2, 0])  # and not 1, 2, 0, from the nearest on


@pytest.mark.parametrize("signs", [False, True])
def test_l2_images_of_imagenets_size_are_in_the_ball_that_float32_can_measure(signs):
    generator = torch.Generator().manual_seed(1)
    threat = ThreatModel("L2", 3.0)
    images = torch.rand(12, 3, 224, 224, generator=generator) * 0.4 + 0.3
    away = torch.randn(images.shape, generator=generator)
    far = images + (away.sign() if signs else away)
    assert threat.contains(images, project(far, images, threat)).all()
    assert not threat.contains(images, images + (project(far, images, threat) - images) * 1.00002).any()
