"""Architectures at the size at which they are used: a ResNet, a ViT and a ConvNeXt of timm, 224 pixels, random weights."""

import warnings

import pytest
import torch
from safetensors.torch import save_file

import robench
from robench.models.subject import classifier_of_model, classifier_of_module
from robench.types import Dataset, ExternalModel

NAMES = ["resnet10t", "vit_tiny_patch16_224", "convnext_atto"]


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def built(name):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000).eval()
    torch.nn.init.normal_(model.get_classifier().weight, std=0.1)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_timm_computes_from_half_weights_and_with_chosen_outputs(name, images, tmp_path):
    model = built(name)
    stored = {f"_orig_mod.{key}": value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file(stored, tmp_path / "w.safetensors")
    model.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in stored.items()})
    data = Dataset("photos", "test", images, torch.zeros(2, dtype=torch.int64), ("n01440764", "n02102040", "n15075141"))
    external = ExternalModel(f"timm:{name}", tmp_path / "w.safetensors", classes="imagenet")
    subject = classifier_of_model(external, data, "cpu")
    with torch.no_grad():
        assert torch.allclose(subject.classifier(images), model(images)[:, [0, 217, 999]], atol=1e-5)
    assert subject.origin["weights stored in"] == "float16"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_attacked_as_it_is_and_channels_last_is_the_same_model(name, images):
    model = built(name)
    digest = classifier_of_module(model, None, "cpu", images=images).digest
    last = model.to(memory_format=torch.channels_last)
    assert classifier_of_module(last, None, "cpu", images=images).digest == digest
    with torch.no_grad():
        last.get_classifier().bias -= last(images).mean(0)  # no class leads on every image
        labels = last(images).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = robench.evaluate(last, images, labels, suite="fgsm", eps="16/255", device="cpu")
    table = found.summary.set_index("attack")["robust_accuracy"]
    assert table["clean"] == 1 and table["fgsm"] < 1 and not found.failures
