"""Every registered attack: the closed form on linear models, and the contract."""

import pytest
import torch
from cases import LINF, BrightnessClassifier, Linear, brightness_data, linear_case

from robench.attacks import ATTACKS, AttackOptions, parse_columns
from robench.attacks.restarts import with_restarts
from robench.evaluation.contract import (
    SIZES,
    call_claims,
    clean_at_zero,
    closed_form,
    nothing_to_attack,
    same_bytes,
    small_network,
)
from robench.evaluation.run_folder import Chunk, chunk_seed
from robench.models.classifier import Classifier
from robench.models.seeded import seeded
from robench.norms import NORMS
from robench.types import RobenchError, ThreatModel

SHORT = {"pgd50-spsa": "pgd3-spsa", "pgd50-eot": "pgd10-eot", "square20000": "square200"}  # what costs most, with fewer steps
ALL = sorted({SHORT.get(name, name) for entry in ATTACKS.values() for name in entry.shown})
OURS = ["pgd50-ce", "pgd50-margin", "pgd50-dlr", "pgd50-rescaled", "pgd50-float64", "pgd50-bpda"]
ITERATIVE = [
    "pgd20",
    "pgd50",
    "nearest",
    "apgd-ce",
    "apgd-t",
    "fab-t",
    *OURS,
]  # with pgd7 and square, too few steps for an exact claim

DEAR = ["apgd-t", "fab-t", "square", "square200"]  # make test sees them in Linf, and not at eps 0


def attack_of(name, threat, n_classes=10, **options):
    (suite,) = parse_columns(name, threat, n_classes, AttackOptions(**options))
    return suite.stages[0]


def run(attack, classifier, images, labels, threat, seed=0):
    with seeded(seed, images.device):
        return attack.fn(classifier, images, labels, threat, seed)


IN_L1 = ["apgd-ce", "apgd-t", "fab-t", "square200"]  # and square, which is square5000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        *((name, norm) for name in ALL for norm in ("Linf", "L2") if (name, norm) != ("fgsm", "L2")),
        *((name, "L1") for name in IN_L1),
    ],
)
def test_no_attack_goes_below_the_closed_form_and_iterative_ones_reach_it(name, norm):
    threat = ThreatModel(norm, 0.02 if norm == "Linf" else 0.1)
    claim, reached = closed_form(attack_of(name, threat), threat)
    assert claim.holds, claim.seen
    assert reached or name not in ITERATIVE, claim.seen


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in DEAR else []) for name in ALL])
def test_eps_zero_gives_clean_accuracy(name, norm):
    if norm == "L2" and not name.startswith("pgd"):
        pytest.skip("AutoAttack's stages compute alike in both norms here, and fgsm is defined for Linf only")
    threat = ThreatModel(norm, 0.0)
    claim = clean_at_zero(attack_of(name, threat), threat)
    assert claim.holds, claim.seen


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]),
]
WIDE = {name: norm.wide_eps for name, norm in NORMS.items()}
WIDE_IN = [
    *((name, WIDE["Linf"], "Linf") for name in ALL),
    *((name, WIDE["L2"], "L2") for name in ALL if name != "fgsm"),
    *((name, WIDE["L1"], "L1") for name in IN_L1),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "size", "norm"),
    [
        pytest.param(name, size, norm, marks=[pytest.mark.slow] if name in DEAR and norm != "Linf" else [])
        for name, _, norm in WIDE_IN
        for size in SIZES
        if size == 3 or norm == "Linf"
    ],
)
def test_contract(name, size, norm, device):
    threat = ThreatModel(norm, WIDE[norm])
    attack = attack_of(name, threat)
    claims = call_claims(attack, threat, size, device)
    claims += [same_bytes(attack, threat, device)] if size == 3 else []
    assert len(claims) >= 4
    assert not [claim for claim in claims if not claim.holds]


@pytest.mark.parametrize(("name", "eps", "norm"), WIDE_IN)
def test_a_batch_with_nothing_to_attack_comes_back_valid(name, eps, norm):
    claim = nothing_to_attack(attack_of(name, ThreatModel(norm, eps)), ThreatModel(norm, eps))
    assert claim.holds, claim.seen


def test_fgsm_is_one_step_of_eps_along_the_sign():
    images, labels = torch.full((2, 3, 4, 4), 0.6), torch.tensor([1, 1])
    adv_images = run(attack_of("fgsm", LINF, 2), Classifier(BrightnessClassifier(), 2), images, labels, LINF)
    assert torch.allclose(adv_images, images - LINF.eps)


def test_default_step_is_a_quarter_of_eps():
    assert attack_of("pgd7", LINF).params["step_size"] == pytest.approx(2 / 255)
    assert attack_of("pgd7", LINF, step_size=0.01).name == "pgd7(step=0.01)"


def test_restarts_attack_only_what_is_left_and_break_at_least_as_much():
    threat = ThreatModel("Linf", 0.02)
    model, images, labels, _ = linear_case(0.02, "Linf", n=20)
    classifier = Classifier(model, 10)
    counts = {}
    for restarts in (1, 3):
        with classifier.counting() as passes:
            adv_images = run(attack_of("pgd7", threat, restarts=restarts), classifier, images, labels, threat)
        counts[restarts] = passes.backwards
        assert classifier(adv_images).argmax(1).eq(labels).sum() == 10
    assert counts == {1: 7 * 20, 3: 7 * 20 + 2 * 7 * 10}


def test_a_restart_gets_the_clean_images_and_labels_that_are_left():
    images, labels = brightness_data([0.02, 0.2, -0.3, 0.04])
    labels[2] = 0  # dark, and labelled so
    seen = []

    def darken_more_each_time(model, images, labels, threat, seed):
        seen.append((images.clone(), labels.clone()))
        return images - 0.03 * len(seen) * (2 * labels - 1).view(-1, 1, 1, 1)

    restarted = with_restarts(darken_more_each_time, 3)
    adv_images = restarted(Classifier(BrightnessClassifier(), 2), images, labels, LINF, 0)
    for (given, own), left in zip(seen, ([0, 1, 2, 3], [1, 2, 3], [1, 2]), strict=True):
        assert torch.equal(given, images[left]) and torch.equal(own, labels[left])
    moved = (adv_images - images).mean((1, 2, 3))
    assert torch.allclose(moved, torch.tensor([-0.03, -0.09, 0.09, -0.06]), atol=1e-6)


def test_pgd_family_starts_from_the_same_images():
    starts = []

    class Recorder(Classifier):
        def forward(self, images):
            starts.append(images.detach().clone())
            return super().forward(images)

    classifier = Recorder(small_network(), 10)
    images = torch.rand(2, 3, 8, 8)
    labels = torch.tensor([0, 1])
    first = []
    for name in ("pgd7", "pgd20"):
        attack = attack_of(name, LINF)
        starts.clear()
        run(attack, classifier, images, labels, LINF, seed=chunk_seed(0, attack.family, Chunk(0, 2)))
        first.append(starts[0])
    assert torch.equal(*first) and not torch.equal(first[0], images)


@pytest.mark.parametrize("size", [2, 60])
def test_pgd_in_l2_is_not_slowed_by_confident_logits_or_large_batches(size):
    threat = ThreatModel("L2", 0.1)
    model, images, labels, robust = linear_case(0.1, "L2")
    confident = Linear(30 * model.weight, 30 * model.bias)
    classifier = Classifier(confident, 10)
    attack = attack_of("pgd50", threat)
    parts = [run(attack, classifier, part, own, threat) for part, own in zip(images.split(size), labels.split(size), strict=True)]
    assert torch.equal(classifier(torch.cat(parts)).argmax(1) == labels, robust)


@pytest.mark.parametrize(
    ("text", "norm", "n_classes", "message"),
    [
        ("pdg20", "Linf", 10, r"unknown attack 'pdg20' \(did you mean 'pgd20'\?\); `robench list attacks` shows all 22"),
        ("", "Linf", 10, "the suite is empty"),
        ("pgd0", "Linf", 10, "'pgd0' has no steps"),
        ("fgsm", "L2", 10, "'fgsm' is defined for Linf only, not for L2"),
        ("autoattack", "Linf", 3, "needs 4 classes or more, the model has 3"),
        ("pgd20", "L1", 10, "'pgd20' is defined for Linf, L2 only, not for L1; use autoattack"),
        ("noise", "L1", 10, "'noise' is defined for Linf, L2 only, not for L1; use autoattack"),
    ],
)
def test_a_suite_that_cannot_run_is_refused(text, norm, n_classes, message):
    with pytest.raises(RobenchError, match=message):
        parse_columns(text, ThreatModel(norm, 0.1), n_classes)


def test_options_of_pgd_without_pgd_are_refused():
    with pytest.raises(RobenchError, match="change PGD alone, and there is none"):
        parse_columns("autoattack", LINF, 10, AttackOptions(restarts=2))
    with pytest.raises(RobenchError, match="`step_size=2` with eps 8/255"):
        parse_columns("pgd7", LINF, 10, AttackOptions(step_size=2.0))


def test_every_attack_that_is_defined_in_l1_is_tested_in_it():
    defined = [name for name in ALL if "L1" in attack_of(name, ThreatModel("Linf", 0.1)).norms]
    assert sorted(defined) == sorted([*IN_L1, "square"])


def test_screened_autoattack_in_l1_has_nothing_to_screen_with():
    (suite,) = parse_columns("autoattack-screened", ThreatModel("L1", 12), 10)
    assert [member.name for member in suite.stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]


def test_one_attack_has_one_name():
    assert [suite.name for suite in parse_columns("pgd020,PGD20", LINF, 10)] == ["pgd20"]


def test_suites_expand_to_columns_each_once():
    assert [suite.name for suite in parse_columns("pgd20,paper,autoattack", LINF, 10)] == [
        "pgd20",
        "fgsm",
        "pgd7",
        "pgd50",
        "autoattack",
    ]
    autoattack = parse_columns("autoattack", LINF, 5)[0]
    assert autoattack.is_cascade and [member.name for member in autoattack.stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert autoattack.stages[1].params["n_targets"] == 4
