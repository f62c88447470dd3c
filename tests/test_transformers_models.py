"""Image classifiers of Hugging Face's transformers, from a folder as ``save_pretrained`` leaves it."""

import json
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

import robench
from robench.models.own_preprocessing import own_preprocessing
from robench.models.subject import classifier_of_model
from robench.types import Dataset, ExternalModel, RobenchError

pytestmark = pytest.mark.slow  # a minute together; `make test-all` and CI run them

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
PROCESSOR = {
    "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": MEAN, "image_std": STD, "image_processor_type": "ViTImageProcessor",
}  # fmt: skip
CONFIG = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "id2label": {str(n): f"LABEL_{n}" for n in range(10)},
}


@pytest.fixture
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def data_of(images, classes="0123456789"):
    return Dataset("photos", "test", images, torch.zeros(len(images), dtype=torch.int64), tuple(classes))


def load(where, images, names="0123456789", **more):
    return classifier_of_model(ExternalModel(str(where), **more), data_of(images, names), "cpu")


def vit(**more):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**{**small, "num_labels": 10, **more})).eval()
    torch.nn.init.normal_(model.classifier.weight)
    return model


@pytest.fixture
def theirs(tmp_path):
    model = vit()
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model, tmp_path / "theirs"


def edited(folder, name, **more):
    content = json.loads((folder / name).read_text()) | more
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def normalised(images):
    mean, std = (torch.tensor(each)[None, :, None, None] for each in (MEAN, STD))
    return (images - mean) / std


slow = pytest.mark.slow  # transformers takes seconds to import


@slow
def test_a_folder_computes_what_transformers_computes_with_the_normalisation_of_its_processor(theirs, images):
    model, folder = theirs
    subject = load(folder, images)
    with torch.no_grad():
        assert torch.allclose(subject.classifier(images), model(normalised(images)).logits, atol=1e-5)
        plain = load(folder, images, mean=(0.0,), std=(1.0,))
        assert torch.allclose(plain.classifier(images), model(images).logits, atol=1e-5)
    assert subject.origin["architecture"] == "ViTForImageClassification" and subject.origin["mean"] == list(MEAN)
    assert subject.digest == load(folder, images).digest != plain.digest
    assert own_preprocessing(ExternalModel(str(folder))).preprocessing.resize == (32, 32)


@slow
def test_a_transformers_model_is_attacked_and_audited_as_any_other_is(theirs, images, capfd):
    model, folder = theirs
    with torch.no_grad():
        labels = model(images).logits.argmax(1)
    found = robench.evaluate(model, images, labels, suite="fgsm,pgd7", eps="8/255", device="cpu")
    table = found.summary.set_index("attack")["robust_accuracy"]
    assert table["clean"] == 1 and not found.failures
    subject = load(folder, images)
    assert subject.classifier.digest() == load(folder, images).classifier.digest()
    assert "Loading weights" not in capfd.readouterr().err


@slow
def test_its_names_of_classes_are_held_against_the_datas(theirs, images):
    _, folder = theirs
    edited(folder, "config.json", id2label={str(n): f"{9 - n}" for n in range(10)})
    with pytest.raises(RobenchError, match="has the classes of photos in another order: 9, 8, 7, ...; the data has 0, 1, 2"):
        load(folder, images)
    edited(folder, "config.json", id2label={str(n): f"LABEL_{n}" for n in range(10)})
    load(folder, images, [f"LABEL_{9 - n}" for n in range(10)])  # made up by the library, they say nothing


@slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_computed_in_float32(theirs, images, dtype):
    model, folder = theirs
    model.to(dtype).save_pretrained(folder)
    subject = load(folder, images)
    with torch.no_grad():
        assert torch.allclose(subject.classifier(images), model.float()(normalised(images)).logits, atol=1e-5)
    assert any("the model is computed in float32" in note for note in subject.notes)
    assert any("computes in them" in note for note in load(folder, images, weights_dtype="as-is").notes)


@slow
def test_outputs_are_chosen_of_a_transformers_model(theirs, images):
    model, folder = theirs
    with torch.no_grad():
        expected = model(normalised(images)).logits[:, [7, 2]]
        assert torch.allclose(load(folder, images, "ab", classes="7,2").classifier(images), expected, atol=1e-5)


@slow
def test_what_a_config_would_have_fetched_or_run_is_left_alone(theirs, images, tmp_path):
    model, folder = theirs
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'crater')!r})\n")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "them/evil"}))
    edited(
        folder, "config.json", auto_map={"AutoModelForImageClassification": "evil.Model", "AutoConfig": "evil.Config"}, _name_or_path="them/evil",
        transformers_weights="pytorch_model.bin", attn_implementation="them/kernels", use_pretrained_backbone=True,
    )  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(load(folder, images).classifier(images), model(normalised(images)).logits, atol=1e-5)
    assert not (tmp_path / "crater").exists()


@slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("classifier.bias"), r"do not fit ViTForImageClassification: 1 missing .classifier.bias."),
        (
            lambda weights: weights.update({"classifier.bias": torch.zeros(7)}),
            r"do not fit .*1 of another shape .classifier.bias .7,., expected .10,..",
        ),
    ],
)
def test_weights_that_transformers_would_draw_at_random_are_refused(theirs, images, change, message):
    _, folder = theirs
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(RobenchError, match=message):
        load(folder, images)


@slow
def test_weights_that_the_classifier_does_not_use_are_named(theirs, images):
    _, folder = theirs
    save_file(load_file(folder / "model.safetensors") | {"vit.pooler.dense.bias": torch.zeros(16)}, folder / "model.safetensors")
    subject = load(folder, images)
    assert subject.origin["weights left out"] == "vit.pooler.dense.bias"
    assert any("no part of the model, which are left out: vit.pooler.dense.bias" in note for note in subject.notes)


@slow
def test_a_processor_that_flips_the_channels_has_them_flipped(theirs, images):
    model, folder = theirs
    edited(folder, "preprocessor_config.json", do_flip_channel_order=True)
    with torch.no_grad():
        assert torch.allclose(load(folder, images).classifier(images), model(normalised(images).flip(1)).logits, atol=1e-5)


@slow
def test_an_architecture_that_transformers_does_not_know_is_an_error_in_one_sentence(theirs, images):
    _, folder = theirs
    edited(folder, "config.json", model_type="no-such-type")
    with pytest.raises(RobenchError, match=r"config.json: transformers cannot build it \(ValueError: .*no-such-type"):
        load(folder, images)


@slow
def test_the_hub_is_asked_for_three_files(theirs, images, monkeypatch):
    _, folder = theirs
    asked = []
    client = types.ModuleType("huggingface_hub")
    client.hf_hub_download = lambda name, file, revision: asked.append(file) or str(folder / file)
    plain = load(folder, images)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    subject = load("hf:them/theirs", images)
    assert subject.digest == plain.digest and subject.name == "them-theirs" and subject.origin["revision"] == "theirs"
    assert set(asked) == {"config.json", "model.safetensors", "preprocessor_config.json"}


@slow
def test_a_model_without_a_preprocessor_config_is_told_to_be_taken_as_it_is(theirs, images):
    model, folder = theirs
    (folder / "preprocessor_config.json").unlink()
    subject = load(folder, images)
    with torch.no_grad():
        assert torch.allclose(subject.classifier(images), model(images).logits, atol=1e-5)
    notes = [note for note in subject.notes if "nothing is normalised, and pictures are taken as asked for" in note]
    assert len(notes) == 1 and "no preprocessor_config.json" in notes[0]
    assert not any("normalised" in note for note in load(folder, images, mean=MEAN, std=STD).notes)


@slow
def test_a_processor_that_normalises_without_numbers_has_the_librarys_own_or_the_users(theirs, images):
    model, folder = theirs
    edited(folder, "preprocessor_config.json", image_mean=None, image_std=None)
    with torch.no_grad():
        assert torch.allclose(load(folder, images).classifier(images), model((images - 0.5) / 0.5).logits, atol=1e-5)
    edited(folder, "preprocessor_config.json", image_processor_type="TheirsImageProcessor")
    with pytest.raises(RobenchError, match="preprocessor_config.json: the file says normalise but not by what"):
        load(folder, images)
    with torch.no_grad():
        own = load(folder, images, mean=MEAN, std=STD).classifier(images)
        assert torch.allclose(own, model(normalised(images)).logits, atol=1e-5)


def written(tmp_path, **more):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | more))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("more", "classes", "message"),
    [
        ({}, "ab", "describes a model with 10 classes, photos has 2; name the data .* or choose with `classes`"),
        ({"id2label": {str(n): "x" for n in range(1000)}}, "ab", "with 1000 classes, photos has 2; .*`classes=imagenet` picks"),
        ({"id2label": {str(n): "x" for n in range(21843)}}, "ab", "ImageNet-21k's"),
        ({"id2label": ["a", "b"]}, "ab", r"config.json: id2label is \['a', 'b'\], expected an object"),
        ({"id2label": None, "num_labels": "x"}, "ab", "config.json: num_labels is 'x', expected a number"),
        ({"quantization_config": {"bits": 4}}, "0123456789", "is of a compressed model"),
        ({"architectures": ["BertForMaskedLM"]}, "0123456789", r"but \['BertForMaskedLM'\] of another library"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_loaded(tmp_path, images, more, classes, message):
    with pytest.raises(RobenchError, match=message):
        load(written(tmp_path, **more), images, classes)


def test_without_transformers_one_clear_message_says_how_to_get_it(tmp_path, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RobenchError, match=r"^transformers is not installed: pip install 'robench\[transformers\]'$"):
        load(written(tmp_path), images)
