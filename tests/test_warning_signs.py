"""What is said of a model before any attack: no gradient, probabilities, randomness, a batch that matters; and what is not said of an honest one."""

import re
import warnings

import pytest
import torch
from cases import CLASSES, Centred, N, NoGradient
from torch import nn

import robench
from robench.types import RobenchError


@pytest.fixture
def images():
    return torch.rand(N, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05


class ZeroGradient(Centred):
    def forward(self, images):
        return super().forward(images.detach()) + 0 * images.sum()


class NotANumber(Centred):
    def forward(self, images):
        return super().forward(images) + ((images - images.detach()).flatten(1).sum(1, keepdim=True)).sqrt()


class ThroughNumPy(Centred):
    def forward(self, images):
        return super().forward(torch.from_numpy(images.numpy()))


class Probabilities(Centred):
    def forward(self, images):
        return super().forward(images).softmax(1)


class Noisy(Centred):
    def forward(self, images):
        return super().forward(images + 0.05 * torch.randn_like(images))


class MeanOfBatch(Centred):
    def forward(self, images):
        return super().forward(images - images.mean(0) + 0.5)


def said(model, images, **more):
    labels = Centred()(images).argmax(1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        robench.evaluate(model, images, labels, **{"suite": "fgsm", "eps": "1/255", "device": "cpu", **more})
    return " ".join(str(each.message) for each in seen if "attack failed" not in str(each.message))


@pytest.mark.parametrize(
    ("model", "sign"),
    [
        (ZeroGradient, f"gradient of the loss is exactly zero on {N} of {N} correct samples.*fast or square"),
        (NotANumber, f"NaN or infinite on {N} of {N}"),
        (NoGradient, "passes no gradient .RuntimeError: .*does not require grad"),
        (ThroughNumPy, "passes no gradient .RuntimeError: Can't call numpy"),
        (Probabilities, "returns probabilities"),
        (Noisy, "model is random.*majority of 100 passes"),
        (MeanOfBatch, "when other images are beside it"),
    ],
)
def test_a_sign_that_a_number_means_little_is_named_before_any_attack(model, sign, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert re.search(sign, said(model(), images))


def test_nothing_is_said_of_an_honest_model(images):
    assert said(Centred(), images) == ""


def test_a_failed_attack_names_one_that_needs_no_gradient(images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = robench.evaluate(NoGradient(), images, Centred()(images).argmax(1), suite="pgd7", eps="1/255", device="cpu")
    assert "such as square" in result.failures[0]


def test_modules_in_a_plain_list_are_in_eval_mode_and_in_the_digest(images):
    from robench.models.subject import classifier_of_module

    class Listed(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.parts = [nn.Sequential(nn.Dropout(0.5), Centred())]
            self.parts[0][1].weight.data.mul_(scale)

        def forward(self, images):
            return self.parts[0](images)

    first, second = (classifier_of_module(Listed(scale), None, "cpu", images=images) for scale in (1.0, 2.0))
    assert first.digest != second.digest
    assert torch.equal(first.classifier(images), first.classifier(images))
    assert "plain list (parts)" in first.notes[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "`mean` has 3 values and `std` 0"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "the images have 3 channels"),
        ({"mean": (123.0, 116.0, 103.0), "std": (58.0, 57.0, 57.0)}, "divide values of 0 to 255 by 255"),
        ({"eps": "-1/255"}, "finite and not negative"),
        ({"classes": ("a", "b")}, "2 names of classes, but the model has 5 outputs"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(more, message, images):
    with pytest.raises(RobenchError, match=message):
        said(Centred(), images, **more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, labels: (images[0], labels[0]), r"one image\? give images\[None\]"),
        (lambda images, labels: (images[None], labels[None]), r"a batch of batches\?"),
        (lambda images, labels: (images, torch.ones(N, CLASSES, dtype=torch.int64)), "several classes an image"),
        (lambda images, labels: (images, ["cat"] * N), "labels are str; .*names under `classes`"),
    ],
)
def test_brackets_and_labels_that_are_off_are_named(change, message, images):
    with pytest.raises(RobenchError, match=message):
        robench.evaluate(Centred(), *change(images, Centred()(images).argmax(1)), suite="fgsm", device="cpu")


def test_a_rounding_error_outside_the_box_is_no_mistake(images):
    off = images.clone()
    off[0, 0, 0, 0], off[1, 0, 0, 0] = -1e-7, 1 + 1e-6
    assert said(Centred(), off) == ""


def test_a_computed_attribute_is_named_where_it_keeps_a_model_from_being_copied(images):
    class Computed(Centred):
        def __init__(self):
            super().__init__()
            self.scale = self.weight.norm()

    with pytest.raises(RobenchError, match=r"attribute scale is computed from other tensors.; set it to scale.detach\(\)"):
        said(Computed(), images)


class Trains(Centred):
    """Puts itself, or a part of itself, into training mode in forward."""

    def __init__(self, how):
        super().__init__()
        self.norm, self.drop, self.how = nn.BatchNorm2d(3), nn.Dropout(0.0), how

    def forward(self, images):
        if self.how == "whole":
            self.train()
        elif self.how != "never":
            getattr(self, self.how.split()[0]).train()
        images = self.drop(self.norm(images))
        if self.how == "norm for a while":
            self.norm.eval()
        return super().forward(images)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("whole", r"norm \(BatchNorm2d\), drop \(Dropout\)"), ("norm", r"norm \(BatchNorm2d\)"), ("drop", r"drop \(Dropout\)"),
        ("norm for a while", r"norm \(BatchNorm2d\)"),
    ],
)  # fmt: skip
def test_a_model_that_puts_itself_into_training_mode_is_named_with_its_parts(images, how, named):
    assert re.search(rf"puts itself into training mode in forward \({named}\), where", said(Trains(how), images))
    assert "training mode in forward" not in said(Trains("never"), images)


def test_a_function_that_puts_a_model_into_training_mode_is_told(images):
    model = Trains("norm").eval()
    assert "puts a BatchNorm2d into training mode" in said(lambda x: model(x), images)
    honest = Trains("never").eval()
    assert "training mode" not in said(lambda x: honest(x), images)
