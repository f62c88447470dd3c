"""Models that people already have: each kind is attacked by one command, and each refusal says what to do."""

import json
import os
import pickle
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from robench.adapters import robustbench
from robench.cli import main
from robench.data import load_dataset
from robench.models import Classifier, hub
from robench.models.subject import classifier_of_model
from robench.types import ExternalModel, RobenchError

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
NORMALISE = ["--mean", "0.49,0.48,0.45", "--std", "0.25,0.24,0.26"]
CODE = """
from collections import namedtuple

import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, n_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 49, n_classes)

    def forward(self, images):
        return self.fc(torch.relu(self.norm(self.conv(images))).flatten(1))


class Several(Tiny):
    kind = tuple

    def forward(self, images):
        logits = super().forward(images)
        features = images.flatten(2).mean(2)
        if self.kind is tuple:
            return features, logits
        if self.kind is dict:
            return {"features": features, "logits": logits}
        return namedtuple("Answer", "features logits")(features, logits)


def seeded(model):
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def tiny():
    return seeded(Tiny())


def several_tuple():
    return seeded(Several())


def several_dict():
    model = seeded(Several())
    model.kind = dict
    return model


def several_object():
    model = seeded(Several())
    model.kind = object
    return model
"""
nets = types.ModuleType("nets_of_the_tests")
exec(CODE, nets.__dict__)


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def eval_of(module):
    return module.eval().requires_grad_(False)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def normalised(module):
    """The plain torch computation that --mean and --std stand for."""
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (MEAN, STD))
    return lambda images: module((images - mean) / std)


@pytest.fixture
def digits(digits_test):
    return digits_test.images[:8]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_file(folder):
    (folder / "mine.py").write_text(CODE)
    return ["--model", "mine.py:tiny"], eval_of(nets.tiny())


def a_file_with_weights(folder):
    (folder / "mine.py").write_text(CODE)
    trained = eval_of(nn.Sequential(nets.tiny())[0])
    trained.fc.bias += 1.5 * torch.arange(10)
    torch.save({"model": state(trained)}, folder / "w.pt")
    return ["--model", "mine.py:Tiny", "--weights", "w.pt"], trained


def a_package(folder):
    (folder / "their_package_of_nets").mkdir()
    (folder / "their_package_of_nets" / "__init__.py").write_text("")
    (folder / "their_package_of_nets" / "nets.py").write_text(CODE)
    return ["--model", "their_package_of_nets.nets:tiny"], eval_of(nets.tiny())


def shufflenet():
    from torchvision.models import shufflenet_v2_x0_5

    torch.manual_seed(0)
    model = shufflenet_v2_x0_5(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(torch.rand(8, 3, 32, 32))  # statistics with which a signal gets through an untrained network
    nn.init.normal_(model.fc.weight)
    return eval_of(model)


def torchvision_safetensors(folder):
    model = shufflenet()
    save_file(state(model), folder / "w.safetensors")
    return ["--model", "torchvision:shufflenet_v2_x0_5", "--weights", "w.safetensors", *NORMALISE], normalised(model)


def torchvision_wrapped_pickle(folder):
    model = shufflenet()
    wrapped = {f"module.{name}": tensor for name, tensor in state(model).items() if not name.endswith("num_batches_tracked")}
    torch.save({"epoch": 3, "best": 0.5, "state_dict": wrapped}, folder / "w.pth.tar")
    return ["--model", "torchvision:shufflenet_v2_x0_5", "--weights", "w.pth.tar"], model


def torchvision_with_its_own_normalisation(folder):
    model = shufflenet()
    torch.save({"net": state(model), "mean": list(MEAN), "std": torch.tensor(STD)}, folder / "w.pt")
    return ["--model", "torchvision:shufflenet_v2_x0_5", "--weights", "w.pt"], normalised(model)


def safetensors_with_its_own_normalisation(folder):
    model = shufflenet()
    save_file(state(model), folder / "w.safetensors", metadata={"mean": json.dumps(MEAN), "std": json.dumps(STD)})
    return ["--model", "torchvision:shufflenet_v2_x0_5", "--weights", "w.safetensors"], normalised(model)


def of_timm(folder):
    timm = pytest.importorskip("timm")
    model = eval_of(timm.create_model("resnet10t", num_classes=10))
    torch.save({"state_dict": {f"_orig_mod.module.{name}": tensor for name, tensor in state(model).items()}}, folder / "w.pt")
    return ["--model", "timm:resnet10t", "--weights", "w.pt"], model


def torchscript(folder):
    model = eval_of(nets.tiny())
    torch.jit.trace(model, torch.rand(1, 3, 32, 32)).save(str(folder / "m.pt"))
    return ["--model", "m.pt", "--trust", *NORMALISE], normalised(model)


def torchscript_with_trainable_weights(folder):
    model = eval_of(nets.tiny()).requires_grad_(True)
    torch.jit.trace(model, torch.rand(1, 3, 32, 32)).save(str(folder / "m.pt"))
    return ["--model", "m.pt", "--trust"], model


def frozen_torchscript(folder):
    model = eval_of(nets.tiny()).requires_grad_(True)
    torch.jit.freeze(torch.jit.trace(model, torch.rand(1, 3, 32, 32))).save(str(folder / "m.pt"))
    return ["--model", "m.pt", "--trust"], model


def exported(folder):
    model = eval_of(nets.tiny())
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(model, (torch.rand(2, 3, 32, 32),), dynamic_shapes=shapes), folder / "m.pt2")
    return ["--model", "m.pt2", "--trust"], model


def exported_for_three_images_at_a_time(folder):
    model = eval_of(nets.tiny())
    torch.export.save(torch.export.export(model, (torch.rand(3, 3, 32, 32),)), folder / "m.pt2")
    return ["--model", "m.pt2", "--trust"], model


def returns_a_tuple(folder):
    (folder / "mine.py").write_text(CODE)
    return ["--model", "mine.py:several_tuple", "--head", "1", *NORMALISE], normalised(eval_of(nets.tiny()))


def returns_a_dictionary(folder):
    (folder / "mine.py").write_text(CODE)
    return ["--model", "mine.py:several_dict", "--head", "logits"], eval_of(nets.tiny())


def returns_an_object(folder):
    (folder / "mine.py").write_text(CODE)
    return ["--model", "mine.py:several_object", "--head", "logits"], eval_of(nets.tiny())


def write_hub_model(folder, model, **config):
    folder.mkdir(parents=True)
    save_file(state(model), folder / "model.safetensors")
    cfg = {"mean": MEAN, "std": STD, "input_size": [3, 32, 32]}
    (folder / "config.json").write_text(json.dumps({"architecture": "tiny", "num_classes": 10, "pretrained_cfg": cfg, **config}))


def local_hub_folder(folder):
    model = eval_of(nets.tiny())
    write_hub_model(folder / "theirs", model)
    return ["--model", "theirs"], normalised(model)


def from_the_hub(folder):
    model = eval_of(nets.tiny())
    write_hub_model(folder / "snapshots" / "abc123", model)
    return ["--model", "hf:them/theirs"], normalised(model)


def from_the_zoo(folder):
    return ["--model", "robustbench:cifar10/Linf/Good2020Model", "--data-dir", "."], eval_of(nets.tiny())


KINDS = [
    a_file, a_file_with_weights, a_package, torchvision_safetensors, torchvision_wrapped_pickle, torchvision_with_its_own_normalisation,
    safetensors_with_its_own_normalisation, of_timm, torchscript, torchscript_with_trainable_weights, frozen_torchscript, exported, exported_for_three_images_at_a_time, returns_a_tuple,
    returns_a_dictionary, returns_an_object, local_hub_folder, from_the_hub, from_the_zoo,
]  # fmt: skip


@pytest.fixture(autouse=True)
def networks(monkeypatch, tmp_path):
    """Stand-ins for timm's builder, the Hub and RobustBench's zoo, which knows one good and two bad downloads."""

    def build(name, *, num_classes, in_chans):
        assert (name, in_chans) == ("tiny", 3)
        return nets.Tiny(num_classes)

    def download(identifier, path):
        model = nets.tiny()
        if identifier == "good":
            torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state(model).items()}}, path)
        elif identifier == "html":
            path.write_text("<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>")
        elif identifier == "bomb":
            torch.save({"state_dict": Bomb(tmp_path / "crater")}, path)

    def load(entry, folder):
        (file,) = entry.files
        model = nets.Tiny()
        content = torch.load(folder / file, weights_only=True)["state_dict"]
        model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in content.items()})
        return model

    def entry(threat, name, identifier):
        files = {f"cifar10/{threat}/{name}.pt": identifier} if identifier else {}
        return robustbench.Entry("cifar10", threat, name, files)

    names = [
        ("Linf", "Good2020Model", "good"), ("Linf", "Page2020Model", "html"), ("Linf", "Bomb2020Model", "bomb"), ("Linf", "None2020Model", ""),
        ("Linf", "Twice2020Model", "good"), ("L2", "Twice2020Model", "good"),
    ]  # fmt: skip
    monkeypatch.setattr(
        robustbench, "zoo", lambda: {("cifar10", threat, name): entry(threat, name, own) for threat, name, own in names}
    )
    monkeypatch.setattr(robustbench, "library", lambda: "robustbench 0")
    monkeypatch.setattr(robustbench, "download", download)
    monkeypatch.setattr(robustbench, "load", load)
    monkeypatch.setattr(hub, "build_timm", build)
    client = types.ModuleType("huggingface_hub")
    client.hf_hub_download = lambda name, file, revision: str(tmp_path / "snapshots" / "abc123" / file)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"mkdir {self.path}",)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_foreign_model_is_attacked_by_one_command_and_computes_what_it_computed_before(kind, here, digits):
    arguments, plain = kind(here)
    images = digits.float() / 255
    with torch.no_grad():
        logits = plain(images)
    np.savez(here / "own.npz", images=digits.numpy(), labels=logits.argmax(1).numpy(), classes=list("0123456789"))
    result = call("attack", *arguments, "--dataset", "own.npz", "--suite", "fgsm", "-n", 8, "--out", "run", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "run/report.md"
    verdicts = pd.read_csv("run/verdicts.csv")
    clean = verdicts[verdicts["attack"] == "clean"].sort_values("index")
    assert (clean["clean_pred"].to_numpy() == logits.argmax(1).numpy()).all()
    two_largest = logits.topk(2, 1).values
    assert np.allclose(clean["margin"], two_largest[:, 0] - two_largest[:, 1], atol=1e-5)
    assert (verdicts["attack"] == "fgsm").sum() == 8
    origin = json.loads((here / "run" / "run.json").read_text())["model"]["origin"]
    assert origin["model"] == arguments[1]
    if not isinstance(plain, nn.Module):
        assert origin["mean"] == list(MEAN) and np.allclose(origin["std"], STD)


def load(where, data=None, head="main", **more):
    data = data or load_dataset("digits", "test")
    return classifier_of_model(ExternalModel(where, **more), data, "cpu", head)


def test_logits_are_those_of_the_plain_module_with_normalisation_inside(here, digits):
    model = shufflenet()
    save_file(state(model), here / "w.safetensors")
    subject = load("torchvision:shufflenet_v2_x0_5", weights=here / "w.safetensors", mean=MEAN, std=STD)
    images = digits.float() / 255
    assert torch.allclose(subject.classifier(images), normalised(model)(images), atol=1e-6)
    assert not torch.allclose(subject.classifier(images), model(images), atol=1e-2)


def test_normalisation_and_program_are_part_of_the_digest(here):
    torchscript(here)
    plain = load("m.pt", trust=True)
    assert plain.digest == load("m.pt", trust=True).digest
    assert plain.digest != load("m.pt", trust=True, mean=MEAN, std=STD).digest
    doubled = eval_of(nets.tiny())
    doubled.forward = lambda images: 2 * type(doubled).forward(doubled, images)
    torch.jit.trace(doubled, torch.rand(1, 3, 32, 32)).save(str(here / "doubled.pt"))
    assert load("doubled.pt", trust=True).digest != plain.digest  # the same weights in another program


def test_given_normalisation_replaces_that_of_the_file(here, digits):
    model = shufflenet()
    torch.save({"net": state(model), "mean": [0.9], "std": [0.1]}, here / "w.pt")
    subject = load("torchvision:shufflenet_v2_x0_5", weights=here / "w.pt", mean=MEAN, std=STD)
    images = digits.float() / 255
    assert torch.allclose(subject.classifier(images), normalised(model)(images), atol=1e-6)


def test_a_program_for_three_images_takes_any_number_and_passes_gradients(here):
    _, plain = exported_for_three_images_at_a_time(here)
    classifier = load("m.pt2", trust=True).classifier
    for n in (1, 2, 3, 7):
        images = torch.rand(n, 3, 32, 32, requires_grad=True)
        (gradient,) = torch.autograd.grad(classifier(images)[:, 0].sum(), images)
        (expected,) = torch.autograd.grad(plain(images)[:, 0].sum(), images)
        assert torch.allclose(gradient, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torchvision_safetensors, torchscript, returns_a_tuple], ids=lambda kind: kind.__name__)
def test_a_run_of_a_foreign_model_is_verified_from_what_it_says_about_itself(kind, here, digits):
    arguments, plain = kind(here)
    np.savez(
        here / "own.npz", images=digits.numpy(), labels=plain(digits.float() / 255).argmax(1).numpy(), classes=list("0123456789")
    )
    made = call(
        "attack", *arguments, "--dataset", "own.npz", "--suite", "fgsm", "--eps", 0.3, "--save-adv", "--out", "run", "--threads", 1
    )
    assert made.exit_code == 0, made.output
    result = call("verify", "run", "--threads", 1)
    if kind is not torchvision_safetensors:
        assert_one_clear_message(result, "is code that would be run: add --trust where you trust it")
        result = call("verify", "run", "--trust", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "every broken sample is broken again" in result.output


def test_a_run_may_not_make_verify_run_code(here):
    (here / "mine.py").write_text("import os\nos.mkdir('crater')\n" + CODE)
    np.savez(here / "own.npz", images=np.zeros((9, 32, 32, 3), np.uint8), labels=np.arange(9), classes=list("0123456789"))
    call(
        "attack", "--model", "mine.py:tiny", "--dataset", "own.npz", "--suite", "fgsm", "--save-adv", "--out", "run", "--threads", 1
    )
    (here / "crater").rmdir()
    assert_one_clear_message(call("verify", "run"), "is code that would be run")
    assert not (here / "crater").exists()


@pytest.mark.slow
def test_a_model_no_better_than_a_guess_is_warned_of_before_the_attack(here, digits_test):
    (here / "mine.py").write_text(CODE)
    result = call(
        "attack", "--model", "mine.py:tiny", "--dataset", "digits", "-n", 100, "--suite", "fgsm", "--out", "run", "--threads", 1
    )
    assert result.exit_code == 0, result.output
    (said,) = [line for line in result.output.splitlines() if "warning" in line]
    assert "no more than a guess among 10 classes would; check its normalisation (--mean, --std), the order of its classes" in said
    right = nets.tiny().eval()(digits_test.images[:100].float() / 255).argmax(1)
    np.savez(here / "own.npz", images=digits_test.images[:100].numpy(), labels=right.numpy(), classes=list("0123456789"))
    result = call("attack", "--model", "mine.py:tiny", "--dataset", "own.npz", "--suite", "fgsm", "--out", "run2", "--threads", 1)
    assert result.exit_code == 0 and "warning" not in result.output, result.output


def test_python_takes_normalisation_and_head_too(digits):
    import robench

    images = digits.float() / 255
    labels = normalised(eval_of(nets.tiny()))(images).argmax(1)
    found = robench.evaluate(nets.several_tuple(), images, labels, suite="fgsm", mean=MEAN, std=STD, head=1, device="cpu")
    assert found.summary.set_index("attack").loc["clean", "robust_accuracy"] == 1
    with pytest.raises(
        RobenchError, match=r"a tuple of 2 \(0: float32 \(1, 3\), 1: float32 \(1, 10\)\).*name one with `head`, such as `head=0`"
    ):
        robench.evaluate(nets.several_tuple(), images, labels, suite="fgsm", device="cpu")


def test_a_checkpoint_dictionary_with_a_main_head_needs_no_head_option(digits):
    from robench.models.multihead import MultiHead

    model = MultiHead("small", {"main": {"layers": "linear", "width": 10, "classes": 10}}).eval()
    images = digits.float() / 255
    assert torch.equal(Classifier(model, 10)(images), model(images)["main"])


def assert_one_clear_message(result, message):
    assert result.exit_code == 1, result.output
    said = [line for line in result.output.splitlines() if line.startswith("robench: ")]
    assert len(said) == 1 and message in said[0], result.output
    assert "Traceback" not in result.output


def save_pickled(path):
    torch.save({"weight": Bomb(path.parent / "crater")}, path)


def save_torchscript(path):
    torch.jit.trace(eval_of(nets.tiny()), torch.rand(1, 3, 32, 32)).save(str(path))


def save_in_training_mode(path):
    torch.export.save(torch.export.export(nets.tiny().train(), (torch.rand(2, 3, 32, 32),)), path)


def save_for_other_images(path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).eval()
    torch.export.save(torch.export.export(model, (torch.rand(2, 3, 4, 4),)), path)


def save_state(path, n_classes=10, wrap=lambda content: content):
    from torchvision.models import shufflenet_v2_x0_5

    torch.save(wrap(state(shufflenet_v2_x0_5(num_classes=n_classes))), path)


def without(*names):
    return lambda content: {name: tensor for name, tensor in content.items() if name not in names}


TORCHVISION = ["--model", "torchvision:shufflenet_v2_x0_5", "--weights", "w.pt"]


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (save_torchscript, ["--model", "w.pt"], "w.pt is a TorchScript program: using it runs code that came with the file; add --trust"),
        (save_torchscript, TORCHVISION, "a program brings its weights: --model w.pt --trust"),
        (save_in_training_mode, ["--model", "w.pt", "--trust"], "was exported in training mode (aten.batch_norm.default)"),
        (save_for_other_images, ["--model", "w.pt", "--trust"], "exported for images of shape (3, 4, 4), digits has (3, 32, 32)"),
        (save_state, ["--model", "w.pt"], "that is weights, or a whole pickled model; name the architecture: --model torchvision:NAME"),
        (save_pickled, TORCHVISION, "full pickle (it asks for posix.system): loading it can run code, so robench does not. The safe way"),
        (lambda path: torch.save(nets.tiny().fc, path), TORCHVISION, "is a full pickle (it asks for torch.nn.modules.linear.Linear)"),
        (lambda path: path.write_bytes(pickle.dumps({"a": Bomb(path.parent / "crater")})), TORCHVISION, "w.pt "),
        (lambda path: path.write_text("<html>quota</html>"), TORCHVISION, "is an HTML page, expected a state dict"),
        (lambda path: path.write_text("<!doctype html>"), ["--model", "w.pt"], "is an HTML page: the download failed"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), TORCHVISION, "`git lfs pull`"),
        (lambda path: path.write_bytes(b""), TORCHVISION, "is an empty file"),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut"), TORCHVISION, "is the beginning of a zip file, cut off"),
        (lambda path: torch.save([1, 2], path), TORCHVISION, "holds a list, expected a state dict, alone or under one of state_dict"),
        (lambda path: torch.save({"epoch": 1}, path), TORCHVISION, "holds entries epoch, expected a state dict"),
        (lambda path: save_state(path, 7), TORCHVISION, "are of a model with 7 classes, digits has 10 (0, 1, 2"),
        (lambda path: save_state(path, wrap=without("fc.bias", "fc.weight")), TORCHVISION, "2 missing (fc.weight, fc.bias)"),
        (lambda path: save_state(path, wrap=lambda own: own | {"fc2.bias": own["fc.bias"]}), TORCHVISION, "1 unexpected (fc2.bias)"),
        (None, ["--model", "torchvision:resnet18"], "names an architecture, whose weights would be random: add --weights FILE"),
        (None, ["--model", "torchvision:resnet18", "--weights", "w.pt"], "w.pt is not there; expected a file"),
        (save_state, ["--model", "torchvision:resnet81", "--weights", "w.pt"], "has no classifier of that name (did you mean 'resnet18'?)"),
        (save_torchscript, ["--model", "w.pt", "--trust", "--weights", "w.pt"], "--model w.pt brings its own weights"),
        (save_state, ["--model", "robustbench:Good2020Model", "--weights", "w.pt"], "brings its own weights; leave it out"),
        (None, ["--model", "nowhere.module:make"], "there is no Python module 'nowhere' here"),
        (None, ["--model", "json:absent"], "json has no function 'absent'"),
        (None, ["--model", "json:JSONDecoder"], "the model is a JSONDecoder; expected a torch.nn.Module"),
        (None, ["--model", "what is this"], "expected one of FILE.py:FACTORY, torchvision:NAME, timm:NAME"),
        (None, ["--model", "nowhere.pt"], "nowhere.pt is not there; expected a file"),
        (save_state, [*TORCHVISION, "--mean", "0.5,0.5"], "--mean has 2 values and --std 0; give both"),
        (save_state, [*TORCHVISION, "--mean", "0.5,0.5", "--std", "0.5,0.5"], "but digits has 3 channels"),
        (save_state, [*TORCHVISION, "--mean", "125,123,114", "--std", "63,62,67"], "divide values of 0 to 255 by 255"),
        (save_state, [*TORCHVISION, "--mean", "half", "--std", "1"], "--mean 'half': expected numbers separated by commas"),
        (None, ["--ckpt", "w.pt", "--trust"], "--weights, --mean, --std, --trust, --weights-dtype and --classes belong to --model"),
        (save_state, ["--ckpt", "w.pt"], "--model torchvision:NAME --weights w.pt"),
        (save_torchscript, ["--ckpt", "w.pt"], "is a TorchScript program, not a checkpoint of robench"),
        (lambda path: save_file({"a": torch.zeros(1)}, path), ["--ckpt", "w.pt"], "--model torchvision:NAME --weights w.pt"),
        (save_torchscript, ["--model", "w.pt", "--trust", "--ray"], "--ray cannot send the program w.pt to its workers"),
        (None, ["--model", "robustbench:cifar10/Good2020Modell"], "has no model 'Good2020Modell' for cifar10 (did you mean 'Good2020Model'?)"),
        (None, ["--model", "robustbench:Good2020Model"], "the data here is digits"),
        (None, ["--model", "robustbench:cifar10/Twice2020Model"], "say which: robustbench:cifar10/Linf/Twice2020Model, robustbench:cifar10/L2"),
        (None, ["--model", "robustbench:cifar10/None2020Model"], "weights other libraries fetch unchecked"),
        (None, ["--model", "robustbench:cifar10/Page2020Model"], "is an HTML page, not a model (Google Drive answers so"),
        (None, ["--model", "robustbench:cifar10/Bomb2020Model"], "the download of Bomb2020Model.pt is a full pickle (it asks for posix.system)"),
        (None, ["--model", "hf:theirs"], "expected hf:ORG/NAME"),
        (None, ["--model", "."], "no config.json in it"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_had_gets_one_clear_message(here, make, arguments, message):
    if make is not None:
        make(here / "w.pt")
    result = call("attack", *arguments, "--dataset", "digits", "--suite", "fgsm", "-n", 8, "--out", "run", "--data-dir", "zoo")
    assert_one_clear_message(result, message)
    assert not (here / "crater").exists() and not (here / "run").exists()
    assert not list(here.glob("zoo/**/*.pt")) and not list(here.rglob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.py:several_tuple"], "returned a tuple of 2 (0: float32 (8, 3), 1: float32 (8, 10))"),
        (["mine.py:several_tuple"], "such as --head 1"),
        (["mine.py:several_dict"], "returned a dict of 2 (features: float32 (8, 3), logits: float32 (8, 10))"),
        (["mine.py:several_tuple", "--head", "2"], "--head 2: the model has no such output; it returned a tuple of 2"),
        (
            ["mine.py:several_dict", "--head", "probs"],
            "--head probs: the model has no such output; it returned a dict of 2 (features",
        ),
        (["mine.py:tiny", "--head", "0"], "--head 0: the model has no such output; it returned float32 (1, 10)"),
        (["mine.py:several_tuple", "--head", "0"], "returned shape (8, 3) for 8 images, expected (8, 10)"),
    ],
)
def test_outputs_that_are_not_one_tensor_of_logits_are_told_apart(here, arguments, message):
    (here / "mine.py").write_text(CODE)
    result = call("attack", "--model", *arguments, "--dataset", "digits", "--suite", "fgsm", "-n", 8, "--out", "run")
    assert_one_clear_message(result, message)
    assert not (here / "run").exists()


def test_a_robench_checkpoint_given_to_model_or_weights_names_the_right_option(here):
    save_file({"a": torch.zeros(1)}, here / "ours.safetensors", metadata={"robench": "{}"})
    asked = ("--dataset", "digits", "--suite", "fgsm")
    assert_one_clear_message(
        call("attack", "--model", "ours.safetensors", *asked), "is a robench checkpoint: use --ckpt ours.safetensors"
    )
    result = call("attack", "--model", "torchvision:resnet18", "--weights", "ours.safetensors", *asked)
    assert_one_clear_message(result, "attack it with --ckpt ours.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_classes": 7}, "describes a model with 7 classes, digits has 10"),
        (
            {"architecture": None, "architectures": ["BertForMaskedLM"]},
            "['BertForMaskedLM'] of another library",
        ),
        ({"model_args": {"checkpoint_path": "evil.pt"}}, "model_args has checkpoint_path, which is not a model's to set"),
        ({"label_names": list("1234567890")}, "has the classes of digits in another order: 1, 2, 3, ...; the data has 0, 1, 2"),
    ],
)
def test_a_hub_model_that_does_not_fit_is_refused(here, config, message):
    write_hub_model(here / "theirs", nets.tiny(), **config)
    assert_one_clear_message(call("attack", "--model", "theirs", "--dataset", "digits", "--suite", "fgsm"), message)


def test_a_hub_file_that_is_not_what_the_hub_has_on_record_is_refused(here):
    import hashlib

    from_the_hub(here)
    file = here / "snapshots" / "abc123" / "model.safetensors"
    for folder in ("blobs", "shared"):
        (here / folder).mkdir()
    promised = hashlib.sha256(file.read_bytes()).hexdigest()
    stored = here / "shared" / ("0" * 64)  # a store that several models share names files otherwise
    file.rename(stored)
    (here / "blobs" / promised).symlink_to(stored)
    file.symlink_to(here / "blobs" / promised)
    assert load("hf:a/b").name == "a-b"
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(bytes(content))
    assert_one_clear_message(
        call("attack", "--model", "hf:a/b", "--dataset", "digits", "--suite", "fgsm"), "is damaged: its sha256"
    )


def test_a_page_that_lies_where_a_zoo_model_should_is_refused_with_the_file_to_delete(here):
    (here / "robustbench" / "cifar10" / "Linf").mkdir(parents=True)
    (here / "robustbench" / "cifar10" / "Linf" / "Good2020Model.pt").write_text("<html>")
    result = call(
        "attack", "--model", "robustbench:cifar10/Good2020Model", "--dataset", "digits", "--suite", "fgsm", "--data-dir", here
    )
    assert_one_clear_message(result, "Good2020Model.pt is an HTML page, not a model")
    assert "delete it and run the command again" in result.output


def test_the_zoo_is_downloaded_once_and_its_hash_is_recorded(here, monkeypatch):
    import hashlib

    first = load("robustbench:cifar10/Linf/Good2020Model", data_dir=here)
    monkeypatch.setattr(robustbench, "download", lambda *_: pytest.fail("downloaded again"))
    assert load("robustbench:cifar10/Linf/Good2020Model", data_dir=here).digest == first.digest
    content = (here / "robustbench/cifar10/Linf/Good2020Model.pt").read_bytes()
    assert first.origin["weights file sha256"] == {"cifar10/Linf/Good2020Model.pt": hashlib.sha256(content).hexdigest()}


def test_list_models_shows_every_way_without_torch():
    import subprocess

    script = (
        "import sys; from robench.cli import main; main(['list', 'models'], standalone_mode=False); print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "False"
    for way in ("torchvision:NAME", "timm:NAME", "hf:ORG/NAME", "robustbench:NAME", "package.module:FACTORY", "FILE.pt", "FOLDER"):
        assert way in shown


def test_an_audit_takes_a_foreign_model_with_a_head(here, digits):
    arguments, plain = returns_a_tuple(here)
    np.savez(
        here / "own.npz", images=digits.numpy(), labels=plain(digits.float() / 255).argmax(1).numpy(), classes=list("0123456789")
    )
    result = call("audit", *arguments, "--dataset", "own.npz", "--quick", "--out", "audit", "--threads", 1)
    assert result.exit_code in (0, 3), result.output
    assert (here / "audit" / "audit.md").exists() and "Traceback" not in result.output


@pytest.mark.slow
def test_a_program_that_names_float32_inside_is_verified_without_the_column_of_float64(here, digits):
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nets.tiny()

        def forward(self, images):
            return self.inner(images.to(torch.float32))

    model = eval_of(Casts())
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(model, (torch.rand(2, 3, 32, 32),), dynamic_shapes=shapes), here / "m.pt2")
    labels = model(digits.float() / 255).argmax(1).numpy()
    np.savez(here / "own.npz", images=digits.numpy(), labels=labels, classes=list("0123456789"))
    asked = ("--dataset", "own.npz", "--suite", "fgsm", "--eps", 0.3, "--save-adv", "--out", "run", "--threads", 1)
    assert call("attack", "--model", "m.pt2", "--trust", *asked).exit_code == 0
    result = call("verify", "run", "--trust", "--threads", 1)
    assert result.exit_code == 0, result.output
    header, row = (line.split("  ") for line in result.stdout.splitlines()[:2])
    assert [cell.strip() for cell in row if cell.strip()][3] == "-" and "float64" in [cell.strip() for cell in header]


def test_a_sweep_takes_a_foreign_model_with_a_head(here, digits):
    arguments, plain = returns_a_tuple(here)
    np.savez(
        here / "own.npz", images=digits.numpy(), labels=plain(digits.float() / 255).argmax(1).numpy(), classes=list("0123456789")
    )
    asked = ("--dataset", "own.npz", "--suite", "fgsm", "--eps", "0,8/255", "--out", "sweep", "--threads", 1)
    result = call("sweep", *arguments, *asked)
    assert result.exit_code == 0, result.output
