"""A model with more outputs than the data has classes: some of them are chosen, or somebody says what to do."""

import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import robench
from robench.data.imagenet_classes import names, synsets
from robench.models.chosen_outputs import Data, SomeOutputs, selection_of
from robench.models.output import remedy_for_outputs
from robench.models.subject import classifier_of_model
from robench.run.attack import attack
from robench.run.request import AttackRequest
from robench.run.verify import verify
from robench.types import Dataset, ExternalModel, RobenchError

N = 12
CODE = """
import torch
from torch import nn


class Flat(nn.Module):
    def __init__(self, n_outputs=10):
        super().__init__()
        self.fc = nn.Linear(48, n_outputs)

    def forward(self, images):
        return self.fc(images.flatten(1))


def thousand():
    torch.manual_seed(0)
    return Flat(1000)
"""
IMAGENETTE = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


@pytest.fixture
def images():
    return torch.rand(N, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def thousand():
    namespace = {"__name__": "thousand"}
    exec(CODE, namespace)
    return namespace["thousand"]().eval()


def data_of(images, classes, labels=None):
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    return Dataset("photos", "test", images, labels, tuple(classes))


def test_the_chosen_logits_are_those_columns_in_the_order_of_the_classes(images):
    module = thousand()
    assert torch.equal(SomeOutputs(module, (7, 2, 999))(images), module(images)[:, [7, 2, 999]])


@pytest.mark.parametrize(
    "classes", [IMAGENETTE, tuple(names()[synsets().index(each)] for each in IMAGENETTE), ("English_springer", "TENCH")],
    ids=["synsets", "torchvision's names", "names of folders"],
)  # fmt: skip
def test_imagenets_outputs_are_found_by_synset_and_by_name(here, images, classes):
    subject = classifier_of_model(ExternalModel("mine.py:thousand", classes="imagenet"), data_of(images, classes), "cpu")
    plain = [name.replace("_", " ").casefold() for name in classes]
    known = synsets() if classes == IMAGENETTE else [name.casefold() for name in names()]
    assert torch.equal(subject.classifier(images), thousand()(images)[:, [known.index(name) for name in plain]])
    assert subject.origin["classes"] == "imagenet"


@pytest.mark.parametrize(("asked", "columns"), [("2,0", (2, 0)), ("5, 4", (5, 4)), ("outputs.txt", (3, 1))])
def test_numbers_and_a_file_of_names_choose_outputs(here, images, asked, columns):
    (here / "outputs.txt").write_text("background\ndog\ntree\ncat\nsea\nsky\n\n")
    data = data_of(images, ("cat", "dog"))
    torch.manual_seed(3)
    own = nn.Linear(48, 6)
    save_file({"fc.weight": own.weight.data, "fc.bias": own.bias.data}, here / "w.safetensors")
    subject = classifier_of_model(ExternalModel("mine.py:thousand", classes=asked), data, "cpu")
    assert torch.equal(subject.classifier(images), thousand()(images)[:, list(columns)])
    assert selection_of(asked, Data("photos", data.classes)).columns == columns


def test_an_architecture_is_built_with_the_outputs_of_its_weights_whatever_is_chosen(here, images):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=1000).eval()
    save_file(module.state_dict(), here / "w.safetensors")
    larger = torch.rand(2, 3, 64, 64)
    for asked, columns in (("imagenet", [0, 217]), ("4,7", [4, 7])):
        external = ExternalModel("timm:test_resnet", here / "w.safetensors", classes=asked)
        subject = classifier_of_model(external, data_of(larger, IMAGENETTE[:2]), "cpu")
        with torch.no_grad():
            assert torch.allclose(subject.classifier(larger), module(larger)[:, columns], atol=1e-6)


def test_other_chosen_outputs_are_another_model(here, images):
    digests = {
        classifier_of_model(ExternalModel("mine.py:thousand", classes=asked), data_of(images, "ab"), "cpu").digest
        for asked in ("0,1", "1,0", "0,2")
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("asked", "classes", "message"),
    [
        ("nowhere.txt", "ab", "`classes=nowhere.txt`: expected imagenet, a text file"),
        ("0,1,x" * 99, "ab", "expected imagenet, a text file"),
        ("1,2,3", "ab", r"names 3 outputs, photos has 2 classes .a, b.; give one for each"),
        ("4,4", "ab", "names output 4 twice"),
        ("4,1000", "ab", "output 1000 was chosen .* but the model has 1000, from 0 to 999"),
        ("imagenet", "ab", "photos has classes that are none of ImageNet's .a, b."),
        ("imagenet", ("tench", "unicorn"), "has 1000 names, and unicorn of photos is none of them"),
        ("imagenet", ("n01440764", "n00000000"), "none of ImageNet's .n00000000."),
        ("outputs.txt", ("dog", "cats"), r"cats of photos is none of them .did you mean 'cat'\?.; the names must be equal"),
        ("outputs.txt", ("dog", "sea"), "names sea 2 times; which output is meant"),
        ("binary.txt", "ab", "is no text file"),
    ],
)  # fmt: skip
def test_a_choice_that_does_not_fit_is_refused_with_the_reason(here, images, asked, classes, message):
    (here / "outputs.txt").write_text("dog\ncat\nsea\nsea\n")
    (here / "binary.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(RobenchError, match=message):
        classifier_of_model(ExternalModel("mine.py:thousand", classes=asked), data_of(images, classes), "cpu")


@pytest.fixture
def named_model(monkeypatch):
    """A way to have a model of a thousand outputs whose files call the first of them as is asked."""
    from robench.models import subject
    from robench.models.loaded_model import LoadedModel

    def call(*classes):
        monkeypatch.setattr(subject, "load_external", lambda *_: LoadedModel(thousand(), "mine", classes=classes))

    return call


@pytest.mark.parametrize(
    ("called", "classes", "asked"),
    [(("b", "a"), "ab", "1,0"), (("c", "b", "a"), "ab", "2,1"), (("a", "b"), "ab", "0,1"), (("b", "a"), "xy", "0,1")],
)
def test_outputs_in_the_order_of_the_data_are_taken_whatever_their_own_order_is(images, named_model, called, classes, asked):
    named_model(*called)
    subject = classifier_of_model(ExternalModel("theirs", classes=asked), data_of(images, classes), "cpu")
    assert torch.equal(subject.classifier(images), thousand()(images)[:, [int(column) for column in asked.split(",")]])


@pytest.mark.parametrize(
    ("called", "asked", "right"), [(("a", "b"), "1,0", "0,1"), (("b", "a"), "0,1", "1,0"), (("sea", "b", "a"), "0,1", "2,1")]
)
def test_outputs_that_the_models_files_call_otherwise_are_refused_with_the_right_ones(images, named_model, called, asked, right):
    named_model(*called)
    with pytest.raises(
        RobenchError, match=f"`classes={asked}` chooses outputs .* but the classes of photos are a, b; .*`classes={right}`"
    ):
        classifier_of_model(ExternalModel("theirs", classes=asked), data_of(images, "ab"), "cpu")


def test_a_file_of_names_in_another_order_than_the_models_own_is_refused(here, images, named_model):
    (here / "outputs.txt").write_text("a\nb\nsea\n")
    named_model("b", "a", "sea")
    with pytest.raises(RobenchError, match="`classes=outputs.txt` chooses outputs .* call b, a, but"):
        classifier_of_model(ExternalModel("theirs", classes="outputs.txt"), data_of(images, "ab"), "cpu")


@pytest.mark.parametrize(
    ("n_outputs", "message"),
    [
        (21843, "ImageNet-21k's: choose with `classes` .*fine-tuned on the data"),
        (21841, "ImageNet-21k's"),
        (1000, r"\(Imagenette, ImageNet-100\), `classes=imagenet` picks"),
        (1001, "behind a background class"),
        (17, "name the data that it was trained on with `dataset`; or choose with `classes`"),
        (3, "name the data that it was trained on with `dataset`$"),
    ],
)
def test_weights_of_other_classes_say_what_to_do(here, images, n_outputs, message):
    save_file({"fc.weight": torch.zeros(n_outputs, 48), "fc.bias": torch.zeros(n_outputs)}, here / "w.safetensors")
    with pytest.raises(RobenchError, match=f"of a model with {n_outputs} classes, photos has 10 .*{message}"):
        classifier_of_model(ExternalModel("mine.py:Flat", here / "w.safetensors"), data_of(images, "0123456789"), "cpu")


def test_a_module_of_a_thousand_outputs_on_ten_classes_is_told_of_imagenets(here, images):
    from robench.evaluation.sanity_check import sanity_check

    data = data_of(images, "0123456789")
    subject = classifier_of_model(ExternalModel("mine.py:thousand"), data, "cpu")
    with pytest.raises(RobenchError, match=r"returned shape .12, 1000. for 12 images, expected .12, 10..*`classes=imagenet` picks"):
        sanity_check(subject.classifier, data, N)


def test_python_chooses_outputs_too_and_the_verdicts_are_those_of_the_columns(images):
    module, columns = thousand(), (5, 3, 8)
    labels = module(images)[:, list(columns)].argmax(1)
    few = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    few[1].weight.data, few[1].bias.data = module.fc.weight.data[list(columns)], module.fc.bias.data[list(columns)]
    settings = {"suite": "fgsm,pgd7", "eps": "4/255", "device": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = (
            robench.evaluate(module, images, labels, outputs=columns, **settings),
            robench.evaluate(few, images, labels, **settings),
        )
    shown = ["attack", "index", "outcome", "adv_pred"]
    assert found.verdicts[shown].equals(expected.verdicts[shown])
    assert set(found.verdicts["outcome"]) >= {"broken", "robust"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"outputs": "imagenet"}, "looks up names of classes: give them as `classes`"),
        ({"outputs": "imagenet", "classes": ("tench", "x")}, "`outputs=imagenet` has 1000 names, and x of the data is none"),
        ({"outputs": (1, 1)}, "`outputs=1,1` names output 1 twice"),
        ({"classes": ("a", "b")}, "2 names of classes, but the model has 1000 outputs; .*`outputs` says which"),
    ],
)
def test_python_says_what_is_wrong_with_a_choice(images, more, message):
    with pytest.raises(RobenchError, match=message):
        robench.evaluate(thousand(), images, torch.zeros(N, dtype=torch.int64), suite="fgsm", device="cpu", **more)


def test_the_number_of_outputs_decides_the_remedy_only_where_it_is_telling():
    assert "ImageNet" not in remedy_for_outputs(999, 10) and "ImageNet" in remedy_for_outputs(1000, 100)


@pytest.mark.slow
def test_a_run_with_chosen_outputs_is_verified_from_what_it_says_about_itself(here, images):
    import numpy as np

    labels = thousand()(images)[:, [0, 217]].argmax(1)
    np.savez(here / "own.npz", images=(images * 255).to(torch.uint8).numpy(), labels=labels.numpy(), classes=list(IMAGENETTE[:2]))
    external = ExternalModel("mine.py:thousand", classes="imagenet")
    assert external.options == ["--model", "mine.py:thousand", "--classes", "imagenet"]
    attack(AttackRequest("fgsm", eps="0.3", save_adv=True), model=external, dataset="own.npz", out=here / "run", threads=1)
    verified = verify(here / "run", model=ExternalModel("", trust=True), threads=1)
    assert verified.difference == ""
