"""What a norm knows, against closed forms; and that a new one is one class."""

import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, dataclass

import pytest
import torch
from cases import BrightnessClassifier, brightness_data, fake
from test_engine import SPEC, outcomes, run

from robench import attack
from robench.attacks import parse_columns
from robench.attacks.descent import project
from robench.audit import AuditRequest
from robench.evaluation.judge import judge
from robench.models.classifier import Classifier
from robench.norms import NORMS, Linf
from robench.report.metadata import threat_text
from robench.run.request import AttackRequest, default_suite
from robench.run.sweep import SweepRequest
from robench.types import NORMS as NAMES
from robench.types import Column, Dataset, Outcome, RobenchError, RunSpec, ThreatModel, parse_norm

CLEAN = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 0.25, 0.5]]).view(2, 1, 2, 2)
MOVED = torch.tensor([[0.5, 0.5, 0.5, 0.75], [0.25, 0.75, 0.5, 0.25]]).view(
    2, 1, 2, 2
)  # one pixel value, and all four, by a quarter


def random_images(n=20, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_the_names_and_their_order_are_what_they_were():
    assert NAMES == ("Linf", "L2", "L1") == tuple(NORMS)
    assert all(norm.name == name for name, norm in NORMS.items())


@pytest.mark.parametrize(("name", "expected"), [("Linf", [0.25, 0.25]), ("L2", [0.25, 0.5]), ("L1", [0.25, 1.0])])
def test_distances_are_the_ones_known_by_hand(name, expected):
    found = ThreatModel(name, 1).distance(CLEAN, MOVED)
    assert found.dtype == torch.float32 and found.tolist() == expected
    assert ThreatModel(name, 0.3).contains(CLEAN, MOVED).tolist() == [each <= 0.3 for each in expected]


@pytest.mark.parametrize(
    ("name", "eps", "slack"), [("Linf", 0.5, 1e-6), ("L2", 0.1, 1e-6), ("L2", 2.0, 8e-6), ("L1", 12, 1e-4), ("L1", 2000, 1e-4)]
)
def test_the_tolerance_grows_with_eps_in_l2_alone(name, eps, slack):
    assert ThreatModel(name, eps).tolerance == slack


@pytest.mark.parametrize("name", ["Linf", "L2"])
def test_what_our_steps_project_lies_in_the_ball_and_on_its_surface(name):
    threat = ThreatModel(name, 0.1)
    images = 0.25 + random_images() / 2  # away from the faces of the box
    projected = project(images + torch.randn(images.shape, generator=torch.Generator().manual_seed(1)), images, threat)
    assert threat.contains(images, projected).all()
    assert threat.distance(images, projected) == pytest.approx(torch.full((20,), 0.1), abs=1e-6)
    assert torch.equal(project(images, images, threat), images)


@pytest.mark.parametrize("name", NORMS)
def test_the_dual_norm_is_what_the_best_step_of_length_one_gains(name):
    weights = torch.tensor([[3.0, -4.0], [1.0, 0.0]])
    best = {
        "Linf": weights.sign(),
        "L2": weights / weights.norm(dim=1, keepdim=True),
        "L1": torch.tensor([[0.0, -1.0], [1.0, 0.0]]),
    }
    norm, steps = NORMS[name], best[name]
    assert norm.distance(torch.zeros_like(steps), steps) == pytest.approx(torch.ones(2))
    assert norm.dual(weights) == pytest.approx((weights * steps).sum(1))
    assert norm.dual(weights[None]).shape == (1, 2)


@pytest.mark.parametrize("name", NORMS)
def test_some_pixels_tell_how_far_images_are_apart_at_least(name):
    norm, (one, other) = NORMS[name], (random_images(seed=seed) for seed in (0, 1))
    chosen = [3, 50, 51, 120]
    pixels, others = one.flatten(1)[:, chosen], other.flatten(1)[:, chosen]
    bound = norm.at_least((pixels - others).abs())
    assert (bound <= norm.distance(one, other) + 1e-6).all() and (bound > 0).all()
    assert norm.pairs_at_least(pixels, others).diagonal() == pytest.approx(bound)
    assert norm.pairs_at_least(pixels, others[:7]).shape == (20, 7)


@pytest.mark.parametrize("name", NORMS)
def test_the_diameter_is_the_distance_from_black_to_white(name):
    black, white = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert NORMS[name].diameter((3, 8, 8)) == pytest.approx(float(NORMS[name].distance(black, white)))


@pytest.mark.parametrize(
    ("name", "eps", "message"),
    [
        ("Linf", 8, "^eps 8 is larger than the whole pixel range: eps is in pixel units of .* did you mean 8/255"),
        ("L2", 51, "^eps 51 in L2 is nearly as far as black from white at 32x32 .55.4.: eps is in pixel units"),
        ("L1", 3000, "^eps 3000 in L1 is nearly as far as black from white at 32x32 .3,072.: eps is in pixel units"),
    ],
)
def test_an_eps_that_can_hardly_be_meant_is_refused(name, eps, message):
    assert ThreatModel(name, NORMS[name].largest_eps).eps == NORMS[name].largest_eps
    with pytest.raises(RobenchError, match=message):
        ThreatModel(name, eps)


@pytest.mark.parametrize(
    "asked", [lambda norm: ThreatModel(norm, 0.1), parse_norm, default_suite, lambda norm: AuditRequest(norm=norm)]
)
@pytest.mark.parametrize("norm", ["L7", ["Linf"], None])
def test_an_unknown_norm_is_refused(asked, norm):
    with pytest.raises(RobenchError, match="^unknown norm .*; expected one of Linf, L2, L1$"):
        asked(norm)


@pytest.mark.parametrize("written", ["Linf", "linf", "inf", "LINF"])
def test_a_norm_is_known_however_it_is_written(written):
    assert ThreatModel(written, 0.1) == ThreatModel("Linf", 0.1) and parse_norm(written) is NORMS["Linf"]


def test_a_threat_model_names_its_norm_and_travels():
    threat = ThreatModel("L2", 0.5)
    assert type(threat.norm) is str and threat.norm == "L2" and asdict(threat) == {"norm": "L2", "eps": 0.5}
    arrived = pickle.loads(pickle.dumps(threat))
    assert arrived == threat and hash(arrived) == hash(threat) and arrived.geometry is NORMS["L2"]
    assert ThreatModel("L2", 0.5) in {threat} and ThreatModel("L1", 0.5) not in {threat}
    with pytest.raises(FrozenInstanceError):
        threat.norm = "L1"
    with pytest.raises(FrozenInstanceError):
        threat.geometry.name = "L1"


@pytest.mark.parametrize("name", NORMS)
def test_the_attacks_that_a_norm_names_are_defined_for_it(name):
    norm, threat = NORMS[name], ThreatModel(name, 0.1)
    for suite in filter(None, (norm.single_step, norm.curve_attack, norm.suite)):
        assert parse_columns(suite, threat, 10)
    assert default_suite(name) == norm.suite == AttackRequest(norm=name).names
    assert SweepRequest(AttackRequest(norm=name)).suite == norm.curve_attack
    if norm.has_pgd:
        assert parse_columns("pgd20", threat, 10) and AuditRequest(norm=name)
    else:
        with pytest.raises(RobenchError, match=f"defined for Linf, L2 only, not for {name}; use {norm.suite}"):
            parse_columns("pgd20", threat, 10)
        with pytest.raises(RobenchError, match=f"of which only AutoAttack's are defined in {name}; `robench attack --norm {name}`"):
            AuditRequest(norm=name)


def test_norms_and_types_import_no_torch():
    code = "import sys, robench.norms, robench.types; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@dataclass(frozen=True)
class L0(Linf):
    """How many pixel values change at all."""

    name = "L0"
    moves = "at most {eps} pixel values may change"
    largest_eps = 3071.0
    too_large = "in L0 is every pixel value at 32x32"
    has_pgd = False
    suite = "mine"

    def distance(self, images, adv_images):
        return (images != adv_images).flatten(1).sum(1).float()

    def tolerance(self, eps):
        return 0.0


@pytest.fixture
def new_norm(monkeypatch):
    """L0, which robench does not know."""
    monkeypatch.setitem(NORMS, "L0", L0())


def blacken(model, images, labels, threat, seed):
    """Blackens as many pixel values as the threat model allows, where it is asked within it."""
    adv_images = images.clone()
    adv_images.flatten(1)[:, : int(threat.eps)] = 0
    return adv_images


@pytest.mark.usefixtures("new_norm")
def test_a_new_norm_is_one_class_for_the_threat_model_and_the_judge():
    threat = ThreatModel("l0", 2)
    assert (threat.norm, str(threat), default_suite("L0")) == ("L0", "L0 2", "mine")
    images, labels = brightness_data([0.01, 0.2, 0.01])  # 2 of 48 values at 0.51 move the mean by 0.021
    adv_images = blacken(None, images, labels, threat, 0)
    adv_images[2, 2, 3, 3] = 0  # a third
    judged = judge(Classifier(BrightnessClassifier(), 2), images, labels, adv_images, threat)
    assert judged.outcomes == [Outcome.BROKEN, Outcome.ROBUST, Outcome.INVALID] and judged.distance.tolist() == [2, 2, 3]
    assert "1 outside the ball (up to 3 of L0 2)" in judged.complaint
    with pytest.raises(RobenchError, match="eps 4000 in L0 is every pixel value at 32x32: eps is in"):
        ThreatModel("L0", 4000)
    with pytest.raises(RobenchError, match="only AutoAttack's are defined in L0"):
        AuditRequest(norm="L0")
    with pytest.raises(RobenchError, match="bright has no radius of its own in L0: give `eps`"):
        AttackRequest(norm="L0").threat(Dataset("bright", "test", images, labels, ("dark", "bright")))
    assert threat_text({"norm": "L0", "eps_text": "2"}) == "at most 2 pixel values may change"


@pytest.mark.usefixtures("new_norm")
def test_a_new_norm_is_one_class_for_the_engine_and_for_attacks(tmp_path):
    assert attack(norms="L0")(blacken).robench_attack.norms == ("L0",)
    spec = RunSpec(**(asdict(SPEC) | {"norm": "L0", "eps": 2}))
    results = run(tmp_path, [Column("mine", (fake("mine", blacken),), is_cascade=False)], spec=spec, offsets=[0.01, 0.2])
    assert outcomes(results, "mine") == {0: "broken", 1: "robust"}
    with pytest.raises(RobenchError, match="is defined for Linf, L2, L1 only, not for L0; use mine"):
        parse_columns("square", ThreatModel("L0", 2), 10)  # AutoAttack does not know it
