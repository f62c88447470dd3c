"""The sanity check names a normalisation that is given twice, and a model that says the same of every image; an honest model is accused of neither."""

import re
import warnings

import pytest
import torch
from torch import nn

from robench.evaluation.sanity_check import sanity_check
from robench.models.classifier import Classifier
from robench.types import Dataset

CLASSES = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Net(nn.Module):
    """Two layers on images (N, C, 8, 8), with a normalisation inside where one is given."""

    def __init__(self, channels=3, mean=(), std=(), seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(channels * 64, 64), nn.Linear(64, CLASSES)
        nn.init.normal_(self.last.weight)
        self.mean, self.std = (torch.tensor(each or (neutral,))[None, :, None, None] for each, neutral in ((mean, 0.0), (std, 1.0)))

    def forward(self, images):
        return self.last(torch.relu(self.first(((images - self.mean) / self.std).flatten(1))))


def photos(channels=3, n=60, seed=0):
    return torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed)) * 0.1 + (0.1 if channels == 3 else 0.8)


def said(classifier, images, labels):
    return " ".join(sanity_check(classifier, Dataset("photos", "test", images, labels, tuple("abcde")), len(images)))


def centred(net, images):
    """A net whose classes are all met: its logits less their mean over the images."""
    with torch.no_grad():
        net.last.bias -= net(images).mean(0)
    return net.eval()


@pytest.mark.parametrize(("channels", "mean", "std"), [(3, MEAN, STD), (1, (0.1307,), (0.3081,)), (3, (0.5,), (0.5,))])
def test_a_normalisation_that_is_given_twice_is_named_with_the_remedy(channels, mean, std):
    images = photos(channels)
    net = centred(Net(channels, mean, std), images)
    labels = net(images).argmax(1)
    assert said(Classifier(net, CLASSES), images, labels) == ""
    text = said(Classifier(net, CLASSES, mean=mean, std=std), images, labels)
    assert re.search(
        r"has \d+ of 60 samples right before any attack, but 60 when it is fed pixels in \[0, 1\] as they are: the norm", text
    )
    assert "the normalisation is given twice, or to a model that needs none; leave `mean` and `std` out" in text


def test_a_model_that_needs_the_normalisation_is_not_told_to_leave_it_out():
    images = photos()
    net = centred(Net(), (images - torch.tensor(MEAN)[None, :, None, None]) / torch.tensor(STD)[None, :, None, None])
    classifier = Classifier(net, CLASSES, mean=MEAN, std=STD)
    labels = classifier(images).argmax(1)
    assert said(classifier, images, labels) == ""
    assert "ImageNet's normalisation: give `mean=(0.485,0.456,0.406)`" in said(Classifier(net, CLASSES), images, labels)


@pytest.mark.parametrize("seed", range(20))
def test_a_weak_model_with_a_normalisation_is_not_accused_of_having_it_twice(seed):
    images = photos(seed=seed)
    classifier = Classifier(centred(Net(seed=seed), images), CLASSES, mean=MEAN, std=STD)
    labels = torch.randint(0, CLASSES, (60,), generator=torch.Generator().manual_seed(seed))
    assert "twice" not in said(classifier, images, labels)


def labels_of(n=60):
    return torch.arange(n) % CLASSES


class Dead(Net):
    """All of its ReLUs are off."""

    def forward(self, images):
        return self.last(torch.relu(self.first(images.flatten(1)) - 1e6))


class Bytes(Net):
    """Made for pixels of 0 to 255, and scales them itself; its last layer leans to a class."""

    def forward(self, images):
        return super().forward(images / 255) + torch.tensor([0.0, 0.0, 0.5, 0.0, 0.0])


def test_logits_that_are_the_same_for_every_image_are_named_with_the_likely_reason():
    images = photos()
    text = said(Classifier(Dead().eval(), CLASSES), images, labels_of())
    assert re.search(
        r"has 12 of 60 samples right .*, no more than a guess among 5 classes would; its logits are nearly the same for every image",
        text,
    )
    assert "are its weights the trained ones, and do its BatchNorm statistics belong to them" in text
    net = centred(Bytes(), images * 255)
    with torch.no_grad():
        net.last.bias[2] += 0.4
        net.first.weight *= 0.3
    text = said(Classifier(net, CLASSES), images, labels_of())
    assert (
        "nearly the same for every image: it tells them apart where pixels are 255 times as large; are they divided by 255 twice"
        in text
    )


class Masked(Net):
    """Rules out a class, and leans far to another one, on images that it does tell apart."""

    def __init__(self, mask, lean):
        super().__init__()
        self.mask, self.lean = mask, lean

    def forward(self, images):
        logits = super().forward(images).clone()
        logits[:, -1] = self.mask
        return logits + self.lean * nn.functional.one_hot(torch.tensor(0), CLASSES)


@pytest.mark.parametrize("mask", [-float("inf"), -1e6, -30.0])
def test_a_model_that_leans_to_a_class_but_tells_images_apart_is_not_called_collapsed(mask):
    images, module = photos(), Masked(mask, 6.0)
    with torch.no_grad():
        assert len(module(images).argmax(1).unique()) == 1, "the case is to be one in which a single class is said"
    text = said(Classifier(module.eval(), CLASSES), images, labels_of())
    assert "no more than a guess" in text and "nearly the same" not in text


def test_images_of_a_single_class_say_nothing_about_a_model_that_knows_them():
    images = photos()
    assert (
        said(Classifier(Dead().eval(), CLASSES), images, torch.full((60,), int(Dead()(images)[0].argmax()))).find("nearly the same")
        == -1
    )


@pytest.mark.parametrize("seed", range(10))
def test_untrained_networks_that_tell_images_apart_are_not_called_collapsed(seed):
    images = photos(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "nearly the same" not in said(Classifier(centred(Net(seed=seed), images), CLASSES), images, labels_of())
