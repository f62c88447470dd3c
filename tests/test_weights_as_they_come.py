"""State dicts and modules as people have them: wrapped, averaged, beside other things, in half precision, compiled, channels last."""

import argparse
import copy
import re
import warnings
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import robench
from robench.models.adapting import adapt
from robench.models.subject import classifier_of_model, classifier_of_module
from robench.types import Dataset, ExternalModel, RobenchError

N = 12
CODE = """
from torch import nn


def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
"""


def make(seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    module(torch.rand(8, 3, 4, 4))
    return module.eval()


def named(prefix, module):
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


@pytest.fixture
def images():
    return torch.rand(N, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def subject_of(images, content=None, **more):
    if content is not None:
        torch.save(content, "w.pt")
    data = Dataset("photos", "test", images, torch.zeros(N, dtype=torch.int64), tuple("abcde"))
    return classifier_of_model(ExternalModel("mine.py:make", "w.pt", **more), data, "cpu")


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "model._orig_mod.", "module._orig_mod.", "model.net.", "net.module."]
)
def test_prefixes_of_wrappers_are_taken_off_however_they_are_nested(here, images, prefix):
    module = make()
    assert torch.equal(subject_of(images, named(prefix, module)).classifier(images), module(images))


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_parts_that_were_wrapped_by_themselves_are_found(here, images, wrapper):
    module = make()
    content = {name.replace("4.", f"4.{wrapper}"): tensor for name, tensor in module.state_dict().items()}
    assert torch.equal(subject_of(images, {"state_dict": content}).classifier(images), module(images))


def test_a_lightning_checkpoint_is_read_and_what_lies_beside_the_model_is_named(here, images):
    module = make()
    content = {
        "pytorch-lightning_version": "2.5", "epoch": 3, "hyper_parameters": {"lr": 0.1}, "callbacks": {"best": 0.5}, "optimizer_states": [],
        "state_dict": {**named("model._orig_mod.", module), **named("ema_model.", make(1)), "criterion.weight": torch.ones(5)},
    }  # fmt: skip
    subject = subject_of(images, content)
    assert torch.equal(subject.classifier(images), module(images))
    assert subject.origin["weights entry"] == "state_dict"
    assert "criterion.weight" in subject.origin["weights left out"] or "more" in subject.origin["weights left out"]


def test_nothing_beside_a_model_is_left_out_where_the_model_itself_lacks_something(here, images):
    content = {"state_dict": {**named("model.", make()), "criterion.weight": torch.ones(5)}}
    del content["state_dict"]["model.4.bias"]
    with pytest.raises(RobenchError, match="do not fit mine.py:make: "):
        subject_of(images, content)


def test_a_lightning_checkpoint_that_holds_objects_is_refused_with_the_way_out(here, images):
    content = {
        "pytorch-lightning_version": "2.5",
        "hyper_parameters": argparse.Namespace(lr=1),
        "state_dict": named("model.", make()),
    }
    with pytest.raises(
        RobenchError,
        match=r"is a Lightning checkpoint .*hyper_parameters or callbacks .it asks for argparse.Namespace.*\['state_dict'\]",
    ):
        subject_of(images, content)
    with pytest.raises(RobenchError, match="is a full pickle"):
        subject_of(images, {"args": argparse.Namespace(lr=1), "state_dict": named("model.", make())})


@pytest.mark.parametrize(
    ("content", "seed", "entry"),
    [
        (
            lambda: {"state_dict_ema": make(1).state_dict(), "state_dict": make().state_dict()},
            0,
            "state_dict (and not state_dict_ema)",
        ),
        (lambda: {"model": make().state_dict(), "model_ema": named("module.", make(1))}, 0, "model (and not model_ema)"),
        (lambda: {"epoch": 3, "state_dict_ema": named("module.", make(1))}, 1, "state_dict_ema"),
        (lambda: {"model_ema": {"state_dict": make(1).state_dict()}}, 1, "model_ema.state_dict"),
        (lambda: make().state_dict(), 0, None),
        (lambda: {"n_averaged": torch.tensor(3), **named("module.", make(1))}, 1, None),
    ],
)
def test_plain_weights_are_preferred_to_their_average_and_the_entry_is_told(here, images, content, seed, entry):
    subject = subject_of(images, content())
    assert torch.equal(subject.classifier(images), make(seed)(images))
    assert subject.origin.get("weights entry") == entry


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_in_a_file_are_computed_in_float32_unless_asked_otherwise(here, images, dtype):
    stored = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in make().state_dict().items()}
    save_file(stored, "w.pt")
    plain = make()
    plain.load_state_dict(stored)
    subject = subject_of(images)
    assert torch.equal(subject.classifier(images), plain(images)) and not torch.equal(plain(images), make()(images))
    assert subject.origin["weights stored in"] == str(dtype).removeprefix("torch.")
    as_is = subject_of(images, weights_dtype="as-is")
    with torch.no_grad():
        expected = plain.to(dtype)(images.to(dtype)).float()
    assert torch.equal(as_is.classifier(images), expected)


@pytest.mark.slow  # torch.compile's own import
def test_a_compiled_module_is_the_plain_one_with_the_same_digest(images):
    module = make()
    compiled = torch.compile(module, backend="eager")
    subject, plain = (classifier_of_module(each, None, "cpu", images=images) for each in (compiled, module))
    assert subject.digest == plain.digest and subject.origin["module"] == plain.origin["module"] == "Sequential"
    assert subject.notes == ("torch.compile's wrapper was taken off: the module inside is attacked",) and plain.notes == ()
    assert torch.equal(subject.classifier(images), module(images))


@pytest.mark.slow  # torch.compile's own import
def test_parts_that_were_compiled_and_modules_compiled_in_place_are_the_plain_ones_too(images):
    module, parts, in_place = make(), make(), make()
    parts[0] = torch.compile(parts[0], backend="eager")
    in_place.compile(backend="eager")
    plain, first, second = (classifier_of_module(each, None, "cpu", images=images) for each in (module, parts, in_place))
    assert plain.digest == first.digest == second.digest
    assert first.notes == ("torch.compile's wrapper (of 0) was taken off: the module inside is attacked",)
    assert type(parts[0]).__name__ == "OptimizedModule", "the user's own module was changed"


def test_a_module_in_channels_last_has_the_digest_and_the_verdicts_of_the_plain_one(images):
    module = make()
    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    assert not last[0].weight.is_contiguous()
    labels = module(images).argmax(1)
    assert len({classifier_of_module(each, None, "cpu", images=images).digest for each in (module, last)}) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = (
            robench.evaluate(each, images, labels, suite="fgsm,pgd7", eps="8/255", device="cpu") for each in (module, last)
        )
    shown = ["attack", "index", "outcome", "adv_pred"]
    assert one.verdicts[shown].equals(other.verdicts[shown])


class ModelOutput(OrderedDict):
    """As that of transformers, by name and kind."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Answers(nn.Module):
    def __init__(self, kind, **more):
        super().__init__()
        self.inner, self.kind, self.more = make(), kind, more

    def forward(self, images):
        return self.kind({name: images.flatten(1) for name in self.more} | {"logits": self.inner(images)})


def test_the_logits_of_transformers_outputs_are_taken_without_being_named(images):
    adapted = adapt(Answers(ModelOutput, hidden_states=1), images, mean=(0.5,), std=(0.5,))
    assert torch.equal(adapted.module(images), make()(images)) and adapted.n_classes == 5
    assert any("the model returned a ModelOutput of 2" in note and "its logits are taken" in note for note in adapted.notes)


def test_of_a_plain_dictionary_or_another_output_one_is_still_to_be_named(images):
    for module in (Answers(dict, hidden_states=1), Answers(lambda outputs: ModelOutput(logits_per_image=outputs["logits"]))):
        assert "name one with `head`" in adapt(module, images).remedy
    assert torch.equal(adapt(Answers(dict), images, head="logits").module(images), make()(images))


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def beside(mean="normalize.mean", std="normalize.std", means=MEAN, stds=STD, prefix="model.", shape=(1, 3, 1, 1)):
    """A state dict as robust checkpoints look: a model, and what it was wrapped with."""
    extra = {name: torch.tensor(values).reshape(shape) for name, values in ((mean, means), (std, stds)) if name}
    return {**named(prefix, make()), **extra}


def normalised(images, mean=MEAN, std=STD):
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize(
    "content",
    [
        lambda: beside(),
        lambda: beside("mean", "std", shape=(3,)),
        lambda: beside("mu", "sigma"),
        lambda: {"state_dict": {f"module.{name}": tensor for name, tensor in beside("normalizer.new_mean", "normalizer.new_std").items()}},
        lambda: beside() | {"attacker.mean_": torch.tensor(MEAN), "attacker.std_": torch.tensor(STD)},
    ],
    ids=["normalize.mean", "mean", "mu", "new_mean", "twice the same"],
)  # fmt: skip
def test_a_normalisation_beside_the_model_is_used_and_told(here, images, content):
    subject = subject_of(images, content())
    assert torch.allclose(subject.classifier(images), make()(normalised(images)), atol=1e-5)
    assert subject.origin["mean"] == pytest.approx(MEAN) and subject.origin["std"] == pytest.approx(STD)
    assert re.search(r"mean|mu", subject.origin["normalisation of the weights"])
    assert "weights left out" not in subject.origin
    (note,) = subject.notes
    assert "w.pt holds a normalisation (" in note and "which is used: mean 0.4914,0.4822,0.4465 and std 0.247,0.2435,0.2616" in note


def test_one_number_for_all_channels_is_a_normalisation_too(here, images):
    subject = subject_of(images, {**named("model.", make()), "mean": torch.tensor(0.5), "std": torch.tensor([0.25])})
    assert torch.allclose(subject.classifier(images), make()((images - 0.5) / 0.25), atol=1e-5)


def test_the_users_normalisation_wins_over_one_beside_the_model_and_that_is_told(here, images):
    plain = subject_of(images, beside(), mean=(0.0,), std=(1.0,))
    assert torch.equal(plain.classifier(images), make()(images)) and plain.origin["mean"] == [0]
    (note,) = plain.notes
    assert "normalize.mean 0.4914,0.4822,0.4465, normalize.std 0.247,0.2435,0.2616); yours is used, mean 0 and std 1" in note
    assert plain.origin["weights left out"] == "normalize.mean, normalize.std"
    assert subject_of(images, beside(), mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262)).notes == ()
    assert len(subject_of(images, beside(std=None), mean=MEAN, std=STD).notes) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: beside(std=None), r"holds normalize.mean 0.4914,0.4822,0.4465 beside the model, which looks like a part of a normal"),
        (lambda: beside(mean=None), r"a part of a normalisation; say what is meant with `mean` and `std` \(`mean=0` `std=1` for none\)"),
        (lambda: beside(means=(123.7, 116.3, 103.5), stds=(58.4, 57.1, 57.4)), r"123.7,116.3,103.5, .*but not of pixels in \[0, 1\]"),
        (lambda: beside() | {"other.mean": torch.full((3,), 0.3), "other.std": torch.ones(3)}, "looks like several normalisations"),
        (
            lambda: {"state_dict": beside(), "mean": [0.5] * 3, "std": [0.5] * 3},
            "elsewhere the model's files say mean 0.5,0.5,0.5 and std 0.5,0.5,0.5",
        ),
    ],
)  # fmt: skip
def test_what_may_or_may_not_be_a_normalisation_is_refused(here, images, content, message):
    with pytest.raises(RobenchError, match=message):
        subject_of(images, content())


def test_whatever_else_is_left_out_is_told_in_one_note(here, images):
    content = {
        **named("model.", make()),
        "criterion.weight": torch.ones(5),
        "bn.running_mean": torch.zeros(3),
        "center.mean": torch.zeros(7),
    }
    subject = subject_of(images, content)
    names = "criterion.weight, bn.running_mean, center.mean"
    (note,) = subject.notes
    assert note == f"w.pt holds tensors that are no part of the model, which are left out: {names}"
    assert subject.origin["weights left out"] == names and "mean" not in subject.origin
    assert torch.equal(subject.classifier(images), make()(images))
