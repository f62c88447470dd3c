import itertools
import math
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch

from robench.checkpoint import load_checkpoint
from robench.models.multihead import rebuild
from robench.report.trained import trained_on, trained_short
from robench.training import Ranks, TrainSpec, precision, train, trainer
from robench.training.adversarial import n_fgsm, pgd
from robench.training.loop import Loop
from robench.training.precision import arithmetic
from robench.training.recipes import authors_rate, paper_rate
from robench.training.trainer import _computed_on
from robench.types import Dataset, RobenchError


def quick(arch, few, **chosen):
    settings = {"backbone": "small", "epochs": 2, "batch_size": 32} | chosen
    return TrainSpec.of(arch, few, **settings)


def trained(spec, few, path):
    return load_checkpoint(train(spec, few, few, out=path, show_progress=False))


def test_paper_rate_is_constant_for_a_tenth_then_a_cosine_to_zero():
    rates = [paper_rate(step, 10, 100) for step in range(1000)]
    assert rates[:100] == [1.0] * 100
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[100:]))
    assert math.isclose(rates[550], 0.5, abs_tol=1e-9)
    assert rates[-1] < 1e-5


def test_authors_rate_is_stepped_per_epoch_and_hardly_falls():
    rates = [authors_rate(epoch * 195 + 7, 195, 100) for epoch in range(100)]
    assert rates[:11] == [1.0] * 11
    assert math.isclose(authors_rate(195 * 100, 195, 100), 0.56, abs_tol=0.005)


@pytest.mark.parametrize("adversarial", ["none", "nfgsm", "pgd"])
@pytest.mark.parametrize("arch", ["single", "supervised", "contrastive"])
def test_every_variant_trains_and_describes_itself(arch, adversarial, few, tmp_path):
    checkpoint = trained(quick(arch, few, adversarial=adversarial, epochs=1), few, tmp_path / "model.safetensors")
    assert (checkpoint.arch, checkpoint.epochs, checkpoint.dataset) == (arch, 1, "digits")
    assert set(checkpoint.heads) == {"main"} | {"supervised": {"coarse"}, "contrastive": {"projection"}}.get(arch, set())
    assert set(checkpoint.clean_accuracy) == {"main"} | ({"coarse"} if arch == "supervised" else set())
    assert all(math.isfinite(value) for value in checkpoint.history[0].values())
    assert checkpoint.recipe["train_eps"] == (None if adversarial == "none" else "0.2")
    rebuild(checkpoint)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_says_on_what_it_was_trained(few, tmp_path, precision):
    checkpoint = trained(quick("single", few, epochs=1, precision=precision), few, tmp_path / "model.safetensors")
    assert checkpoint.versions["device"] == "cpu" and "convolutions" not in checkpoint.versions
    assert checkpoint.recipe["precision"] == precision


@pytest.mark.parametrize(("precision", "said"), [("fp32", "float32"), ("tf32", "TF32"), ("bf16", "bf16")])
def test_on_a_gpu_it_also_says_in_what_convolutions_were_computed(precision, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU behind {device}")
    assert _computed_on("cuda:1", precision) == {"device": "GPU behind cuda:1", "convolutions": said}


def allowed():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def allow(convolutions, products):
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


@pytest.fixture
def flags():
    """They are put back after the test."""
    before = allowed()
    yield
    allow(*before)


@pytest.mark.parametrize("before", [(True, False), (False, True)])
@pytest.mark.parametrize(("precision", "inside"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_on_a_gpu_float32_is_exact_unless_tf32_is_asked_for_and_flags_are_put_back(precision, inside, before, flags):
    allow(*before)
    with pytest.raises(KeyboardInterrupt), arithmetic(precision, "cuda:0"):
        assert allowed() == (inside, inside)
        raise KeyboardInterrupt
    assert allowed() == before
    with arithmetic("tf32", "cpu"):
        assert allowed() == before


def test_a_training_computes_in_its_precision_and_is_measured_in_float32(few, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(trainer, "arithmetic", lambda *arguments: asked.append(arguments) or nullcontext())
    trained(quick("single", few, epochs=1, precision="bf16"), few, tmp_path / "model.safetensors")
    assert asked == [("bf16", "cpu"), ("fp32", "cpu")]


def test_tf32_is_refused_where_there_is_none(few, tmp_path, monkeypatch):
    spec = quick("single", few, precision="tf32")
    with pytest.raises(RobenchError, match="`precision=tf32` is of NVIDIA GPUs since Ampere; on this CPU use fp32 or bf16"):
        trained(spec, few, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(RobenchError, match="on this Tesla T4 use fp32 or bf16"):
        precision.refuse_unknown_to("cuda", "tf32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    precision.refuse_unknown_to("cuda", "tf32")


def test_a_recipe_of_tf32_is_told_in_words():
    origin = {"versions": {"device": "NVIDIA H200", "convolutions": "TF32"}, "recipe": {"precision": "tf32"}}
    assert (trained_on(origin), trained_short(origin)) == ("NVIDIA H200 in TF32", "NVIDIA H200, tf32")


def test_training_learns_and_measures_the_last_epoch(few, tmp_path):
    checkpoint = trained(quick("single", few, epochs=15, lr=5e-3), few, tmp_path / "model.safetensors")
    model = rebuild(checkpoint)
    accuracy = (model(few.images / 255)["main"].argmax(1) == few.labels).float().mean()
    assert math.isclose(checkpoint.clean_accuracy["main"], accuracy, abs_tol=1e-6)
    assert accuracy > 0.8
    assert checkpoint.history[-1]["main"] < checkpoint.history[0]["main"] / 2


def test_authors_head_is_1000_wide_and_its_extra_outputs_are_trained(few, tmp_path):
    checkpoint = trained(quick("single", few, recipe="authors"), few, tmp_path / "model.safetensors")
    assert checkpoint.heads["main"] == {"layers": "linear", "width": 1000, "classes": 10}
    assert checkpoint.weights["heads.main.bias"][10:].mean() < 0  # pushed down: cross-entropy runs over all of them


def test_same_seed_same_weights_other_seed_other_weights(few, tmp_path):
    first, again, other = (
        trained(quick("contrastive", few, seed=seed), few, tmp_path / f"{place}.safetensors")
        for place, seed in enumerate((3, 3, 4))
    )
    assert first.digest == again.digest != other.digest


def test_training_leaves_the_global_generator_alone(few, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained(quick("single", few, adversarial="nfgsm"), few, tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_killed_training_continues_to_the_same_weights(tmp_path, few):
    command = [
        *(sys.executable, "-m", "robench", "train", "--arch", "contrastive", "--dataset", "digits", "--backbone", "small"),
        *("--epochs", "3", "--threads", "1"),
    ]  # fmt: skip
    killed, undisturbed = tmp_path / "killed.safetensors", tmp_path / "undisturbed.safetensors"
    process = subprocess.Popen([*command, "--out", str(killed)], stderr=subprocess.DEVNULL)
    state = tmp_path / "killed.safetensors.training"
    wait_until(lambda: state.exists() and len(torch.load(state, weights_only=True)["history"]) >= 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    for path in (killed, undisturbed):
        subprocess.run([*command, "--out", str(path)], check=True, capture_output=True)
    assert load_checkpoint(killed).digest == load_checkpoint(undisturbed).digest
    assert not state.exists()


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_a_finished_training_is_not_repeated_and_another_is_refused(few, tmp_path):
    path = tmp_path / "model.safetensors"
    trained(quick("single", few), few, path)
    before = path.stat().st_mtime_ns
    trained(quick("single", few), few, path)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(RobenchError, match="other settings: epochs is 2 there and 3 here"):
        trained(quick("single", few, epochs=3), few, path)


def test_an_unreadable_state_is_named_and_not_overwritten(few, tmp_path):
    state = tmp_path / "model.safetensors.training"
    state.write_bytes(b"broken")
    with pytest.raises(RobenchError, match=r"unfinished training in .*model\.safetensors\.training cannot be read"):
        trained(quick("single", few), few, tmp_path / "model.safetensors")
    assert state.read_bytes() == b"broken"


@pytest.mark.parametrize(
    ("arch", "chosen", "message"),
    [
        ("singel", {}, "unknown arch 'singel'; expected one of single, supervised, contrastive"),
        ("single", {"recipe": "ours"}, "unknown recipe 'ours'"),
        ("single", {"adversarial": "fgsm"}, "unknown adversarial training 'fgsm'"),
        ("single", {"backbone": "vgg"}, "unknown backbone 'vgg'"),
        ("single", {"views": "mixup"}, "unknown views 'mixup'"),
        ("single", {"temperature": 0.1}, "`temperature` has no meaning for arch 'single'"),
        ("single", {"train_eps": "8/255"}, "`train_eps` has no meaning without `adversarial`"),
        ("single", {"adversarial": "pgd", "train_eps": "8"}, "did you mean 8/255"),
        ("single", {"epochs": 0}, "epochs 0"),
        ("single", {"batch_size": 999}, "batch size 999 exceeds the 128 training images"),
        ("single", {"lr": -1.0}, "`lr=-1.0`: expected a number above 0"),
        ("single", {"seed": 2**64}, "`seed=18446744073709551616`: expected 0 to"),
        ("single", {"precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(arch, chosen, message, few):
    with pytest.raises(RobenchError, match=message):
        quick(arch, few, **chosen)


def test_supervised_without_coarse_labels_is_refused_with_a_reason(few, tmp_path):
    plain = Dataset("plain", "train", few.images, few.labels, few.classes)
    with pytest.raises(RobenchError, match="plain has none; use cifar100"):
        train(quick("supervised", plain), plain, plain, out=tmp_path / "model.safetensors")


def test_a_test_split_with_other_classes_is_refused(few, tmp_path):
    fewer = Dataset("digits", "test", few.images, few.labels.clamp(max=1), ("0", "1"), coarse_classes=few.coarse_classes)
    with pytest.raises(RobenchError, match=r"test split of digits has other classes \(\('0', '1'\)\)"):
        train(quick("single", few), few, fewer, out=tmp_path / "model.safetensors")


def test_simclr_views_with_a_single_head_is_the_ablation(few, tmp_path):
    ablation, plain = quick("single", few, views="simclr"), quick("single", few)
    assert (ablation.views, plain.views, quick("contrastive", few).views) == ("simclr", "standard", "simclr")
    assert trained(ablation, few, tmp_path / "a.safetensors").digest != trained(plain, few, tmp_path / "p.safetensors").digest


def brightness_logits(images):
    mean = images.flatten(1).mean(1)
    return torch.stack([0.5 - mean, mean - 0.5], 1)


def test_adversarial_training_images_move_as_their_papers_say():
    images, labels = torch.full((6, 3, 4, 4), 0.5), torch.ones(6, dtype=torch.int64)
    noise = torch.empty_like(images).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    crafted = n_fgsm(brightness_logits, images, labels, 0.1, noise)
    assert torch.allclose(crafted, images + 0.2 * noise - 0.1)  # every pixel's gradient is negative: one step down of eps
    crafted = pgd(brightness_logits, images, labels, 0.1, noise)
    assert torch.allclose(crafted, images - 0.1, atol=1e-6)  # ten steps of eps/4 reach the face of the ball


def test_auto_takes_the_precision_that_steps_faster_and_says_so(few, tmp_path, monkeypatch, capsys):
    for fp32, bf16, expected in ((1.0, 0.5, "bf16"), (1.0, 0.95, "fp32"), (0.1, 9.0, "fp32")):
        seconds = {"fp32": [9.0, fp32], "bf16": [9.0, bf16]}  # the fastest step counts
        monkeypatch.setattr(precision, "step_times", lambda spec, *_, of=seconds, **__: of[spec.precision])
        found = precision.settled(
            quick("single", few, precision="auto"), few, tmp_path / "m", tmp_path / "s", device="cpu", ranks=Ranks()
        )
        assert found == quick("single", few, precision=expected)
        assert f"precision auto: {expected}" in capsys.readouterr().err


def test_auto_goes_on_with_what_a_training_began_with(few, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    monkeypatch.setattr(precision, "_quicker", lambda *_: "bf16")
    assert trained(quick("single", few, precision="auto", epochs=1), few, path).recipe["precision"] == "bf16"
    monkeypatch.setattr(precision, "_quicker", lambda *_: "fp32")
    assert train(quick("single", few, precision="auto", epochs=1), few, few, out=path, show_progress=False) == path  # as it is
    killed = tmp_path / "killed.safetensors"
    monkeypatch.setattr(Loop, "run_epoch", raises)
    with pytest.raises(KeyboardInterrupt):
        train(quick("single", few, precision="bf16"), few, few, out=killed, show_progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(precision, "_quicker", lambda *_: "fp32")
    assert trained(quick("single", few, precision="auto"), few, killed).recipe["precision"] == "bf16"


def raises(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("arch", ["single", "contrastive"])
def test_timing_steps_changes_no_draw_of_the_training(arch, few, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "LEAST_SPEEDUP", float("inf"))
    named = trained(quick(arch, few, precision="fp32", epochs=1), few, tmp_path / "named.safetensors")
    auto = trained(quick(arch, few, precision="auto", epochs=1), few, tmp_path / "auto.safetensors")
    assert auto.recipe["precision"] == "fp32" and auto.digest == named.digest
