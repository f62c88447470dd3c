"""The contract of attacks: a cheat of each kind trips the claim that is about it, an honest attack none."""

import random

import pytest
import torch
from click.testing import CliRunner

from robench.attacks import find_attack
from robench.cli import main
from robench.evaluation.contract import SIZES, check_contract
from robench.types import Attack


def honest(model, images, labels, threat, seed):
    delta = torch.rand_like(images) * 2 - 1
    size = {"Linf": delta.abs().flatten(1).amax(1), "L2": delta.flatten(1).norm(dim=1), "L1": delta.abs().flatten(1).sum(1)}
    step = threat.eps * 0.999 / size[threat.norm].view(-1, 1, 1, 1)
    return (images + delta * step).clamp(0, 1)


def half(model, images, labels, threat, seed):
    return images.half()


def one_less(model, images, labels, threat, seed):
    return images[1:]


def out_of_the_box(model, images, labels, threat, seed):
    return images - threat.eps / images[0].numel()


def too_far(model, images, labels, threat, seed):
    return (images + (1.1 if threat.norm == "Linf" else 5) * threat.eps).clamp(0, 1)


def a_little_at_zero(model, images, labels, threat, seed):
    return (images + 0.01).clamp(0, 1)


def writes_into_its_input(model, images, labels, threat, seed):
    return images.mul_(1)[:].add_(threat.eps / 2 / images[0].numel()).clamp_(0, 1)


def mends_the_weights(model, images, labels, threat, seed):
    model.module[0].bias.data += 1
    return images


def trains(model, images, labels, threat, seed):
    model.module[1].training = True
    return images


def turns_gradients_off(model, images, labels, threat, seed):
    torch.set_grad_enabled(False)
    return images


def draws_by_itself(model, images, labels, threat, seed):
    noise = random.SystemRandom().random() * threat.eps / images[0].numel()
    return (images + noise).clamp(0, 1)


def fails_on_one(model, images, labels, threat, seed):
    return images if len(images) > 1 else images[3]


def fails_where_nothing_is_right(model, images, labels, threat, seed):
    return images[(model(images).argmax(1) == labels).nonzero().flatten().max().item() * 0 :]


def ends_itself(model, images, labels, threat, seed):
    raise SystemExit(0)


def failed(fn, *norms):
    return [claim for claim in check_contract(lambda threat: Attack.of(fn), norms or ("Linf",)) if not claim.holds]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_an_honest_attack_keeps_every_claim(norm):
    claims = list(check_contract(lambda threat: Attack.of(honest), (norm,)))
    assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]
    assert len(claims) == 4 * len(SIZES) + 4 and all(claim.seen for claim in claims)


@pytest.mark.parametrize(
    ("fn", "about"),
    [
        (half, "shape, dtype and device"),
        (one_less, "shape, dtype and device"),
        (too_far, "in the ball"),
        (a_little_at_zero, "eps 0 gives clean accuracy"),
        (writes_into_its_input, "leaves alone what it is lent"),
        (mends_the_weights, "leaves alone what it is lent"),
        (trains, "leaves alone what it is lent"),
        (turns_gradients_off, "leaves alone what it is lent"),
        (draws_by_itself, "same seed, same bytes"),
        (fails_on_one, "batch of 1"),
        (fails_where_nothing_is_right, "nothing to attack"),
        (ends_itself, "closed form"),
    ],
)
def test_each_cheat_trips_the_claim_that_is_about_it(fn, about):
    broken = failed(fn)
    assert any(about in claim.about for claim in broken), broken
    assert torch.is_grad_enabled()


def test_an_image_outside_the_box_is_noticed_to_the_last_bit():
    def below(model, images, labels, threat, seed):
        return torch.where(images == images.min(), torch.full_like(images, -1e-7), images)

    assert any("in the box" in claim.about for claim in failed(below, "L2")) is False or failed(below, "L2")
    assert any("in the box" in claim.about for claim in failed(out_of_the_box_by_much, "Linf"))


def out_of_the_box_by_much(model, images, labels, threat, seed):
    return images - threat.eps


def test_the_command_says_pass_or_fail_per_claim_and_exits_with_three(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def cheat(model, images, labels, threat, seed):\n    return images - threat.eps\n")
    result = CliRunner().invoke(main, ["check-attack", f"{path}:cheat", "--norm", "Linf"])
    lines = result.output.splitlines()
    assert result.exit_code == 3 and lines[-1].startswith("cheat: ") and "claims hold" in lines[-1]
    assert any(line.startswith("FAIL  Linf, batch of 3: in the box") and "pixels from -" in line for line in lines)
    assert any(line.startswith("pass  Linf: same seed, same bytes") for line in lines)


def test_an_attack_that_holds_in_one_norm_alone_is_told_how_to_say_so(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def shift(model, images, labels, threat, seed):\n    return (images - threat.eps).clamp(0, 1)\n")
    result = CliRunner().invoke(main, ["check-attack", f"{path}:shift"])
    assert result.exit_code == 3 and "every claim holds in Linf: " in result.stderr and '@attack(norms=("Linf",))' in result.stderr
    assert "every claim holds" not in CliRunner().invoke(main, ["check-attack", f"{path}:shift", "--norm", "L2"]).stderr


def test_images_with_a_graph_are_measured_without_a_warning_of_torch(recwarn):
    def step(model, images, labels, threat, seed):
        images.requires_grad_(True)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        return (images + 0.999 * threat.eps * images.grad.sign()).clamp(0, 1)

    assert not failed(step) and not [str(each.message) for each in recwarn if "requires_grad" in str(each.message)]


def test_a_name_of_robench_s_own_is_checked_by_the_same_command():
    result = CliRunner().invoke(main, ["check-attack", "pgd3", "--norm", "Linf"])
    assert result.exit_code == 0 and "pgd3: 16 of 16 claims hold" in result.output
    assert find_attack("fgsm")[2] == ("Linf",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["autoattack"], "is no single attack"),
        (["pgd"], "unknown attack 'pgd'"),
        (["fgsm", "--norm", "L2"], "defined for Linf only"),
        (["fgsm", "--norm", "L7"], "unknown norm 'L7'"),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments, message):
    result = CliRunner().invoke(main, ["check-attack", *arguments])
    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.output
