"""What a model's own files say of its images, against the library that wrote them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from robench.data.preprocessing import Preprocessing
from robench.models.own_preprocessing import own_preprocessing
from robench.models.preprocessor_config import geometry_of, normalisation_of
from robench.types import ExternalModel, RobenchError

CFG = {"input_size": [3, 224, 224], "crop_pct": 0.95, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}


def said(resize, crop, interpolation="bicubic"):
    return resize, crop, interpolation


def shown(preprocessing):
    return preprocessing.resize, preprocessing.crop, preprocessing.interpolation


@pytest.fixture(scope="module")
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((410, 300), Image.Resampling.BICUBIC)


def applied(preprocessing, photo):
    """The pixels in [0, 1] that these settings stand for, computed by torchvision on PIL's images."""
    steps = []
    if preprocessing.resize is not None:
        steps.append(transforms.Resize(preprocessing.resize, InterpolationMode(preprocessing.interpolation)))
    if preprocessing.crop is not None:
        steps.append(transforms.CenterCrop(preprocessing.crop))
    return transforms.Compose([*steps, transforms.ToTensor()])(photo)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50.a1_in1k", "vit_tiny_patch16_224", "convnext_atto", "eva02_tiny_patch14_336", "beit_base_patch16_224"],
)
def test_of_a_timm_architecture_it_is_what_timm_itself_does(name, photo):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    found = own_preprocessing(ExternalModel(f"timm:{name}"))
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    theirs = transforms.Compose(timm.data.create_transform(**config).transforms[:-1])(photo)
    assert not found.of_these_weights and found.preprocessing.origin.startswith(
        f"timm's pretrained_cfg of {name.partition('.')[0]}."
    )
    assert torch.equal(applied(found.preprocessing, photo), theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_b_16", "convnext_tiny", "inception_v3"])
def test_of_a_torchvision_architecture_it_is_what_its_weights_say(name, photo):
    import torchvision

    found = own_preprocessing(ExternalModel(f"torchvision:{name}"))
    weights = torchvision.models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    mean, std = (torch.tensor(each)[:, None, None] for each in (preset.mean, preset.std))
    assert not found.of_these_weights
    assert found.preprocessing.origin == f"torchvision's {type(weights).__name__}.{weights.name}"
    assert torch.allclose(applied(found.preprocessing, photo), preset(photo) * std + mean, atol=1e-6)


def folder(tmp_path, config, processor=None):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return ExternalModel(str(tmp_path))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, said(235, (224, 224))),
        ({"crop_mode": "squash", "crop_pct": 1.0}, said((224, 224), (224, 224))),
        ({"crop_mode": "squash", "input_size": [3, 200, 100], "crop_pct": 0.5}, said((400, 200), (200, 100))),
        ({"interpolation": "bilinear", "crop_pct": 0.875}, said(256, (224, 224), "bilinear")),
    ],
)
def test_of_a_hub_model_of_timm_it_is_its_pretrained_cfg(tmp_path, more, expected):
    found = own_preprocessing(folder(tmp_path, {"architecture": "tiny", "pretrained_cfg": CFG | more}))
    assert shown(found.preprocessing) == expected and found.of_these_weights
    assert found.preprocessing.origin == f"config.json of {tmp_path}"


def test_a_hub_model_is_asked_for_small_files_alone(tmp_path, monkeypatch):
    import sys
    import types

    class EntryNotFoundError(Exception):
        pass

    asked = []

    def download(name, file, revision):
        asked.append((name, file, revision))
        if file == "preprocessor_config.json" and revision != "v2":
            raise EntryNotFoundError("404")
        return str(tmp_path / file)

    client = types.ModuleType("huggingface_hub")
    client.hf_hub_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    config = {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
    folder(tmp_path, config, {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 2})
    assert own_preprocessing(ExternalModel("hf:a/b")) is None
    assert own_preprocessing(ExternalModel("hf:a/b@v2")).preprocessing == Preprocessing(
        resize=(32, 32), crop=None, interpolation="bilinear", origin="preprocessor_config.json of hf:a/b@v2"
    )
    assert {file for _, file, _ in asked} == {"config.json", "preprocessor_config.json"}
    client.hf_hub_download = lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no network"))
    with pytest.raises(RobenchError, match="cannot get config.json .ConnectionError: no network"):
        own_preprocessing(ExternalModel("hf:a/b"))


@pytest.mark.parametrize("reference", ["mine.py:make", "robustbench:cifar10/Linf/X"])
def test_where_nobody_says_anything_there_is_none(reference):
    assert own_preprocessing(ExternalModel(reference)) is None


def test_a_folder_that_says_no_crop_has_none(tmp_path):
    assert own_preprocessing(folder(tmp_path, {"architecture": "tiny", "pretrained_cfg": {"input_size": [3, 32, 32]}})) is None
    assert own_preprocessing(ExternalModel(str(tmp_path / ".."))) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"size": 224, "resample": 2}, said((224, 224), None, "bilinear")),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 200}, "resample": 3}, said((224, 200), None)),
        ({"image_processor_type": "CLIPImageProcessor", "size": 224, "do_center_crop": True, "crop_size": 224, "resample": 3}, said(224, (224, 224))),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "resample": 1}, said(256, (224, 224), "lanczos")),
        ({"size": {"shortest_edge": 256}, "do_center_crop": False, "crop_size": 224, "resample": 0}, said(256, None, "nearest")),
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875, "resample": 3}, said(256, (224, 224))),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 3}, said((384, 384), None)),
        ({"image_processor_type": "ConvNextImageProcessorFast", "size": {"shortest_edge": 288}, "crop_pct": 0.95, "resample": 3}, said(303, (288, 288))),
        ({"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, "resample": 3}, said(256, (224, 224))),
        ({"image_processor_type": "PoolFormerImageProcessor", "size": 224, "crop_pct": 0.9, "do_center_crop": True, "crop_size": 224, "resample": 3}, said(248, (224, 224))),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 24, "size": 32, "resample": 3}, said(None, (24, 24))),
    ],
)  # fmt: skip
def test_a_preprocessor_config_is_read_as_its_image_processor_reads_it(config, expected):
    assert shown(geometry_of(config, "theirs")) == expected


def test_a_preprocessor_config_that_does_nothing_or_names_no_interpolation():
    assert geometry_of({"do_resize": False, "size": 32}, "theirs") is None
    assert geometry_of({"size": 32}, "theirs").origin == "theirs, which names no interpolation"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"image_processor_type": "PerceiverImageProcessor", "size": 224},
            "theirs: what PerceiverImageProcessor does to images is more",
        ),
        ({"size": {"longest_edge": 640}}, "images of size {'longest_edge': 640} are not understood; say yourself"),
        ({"size": 224, "resample": "bicubic"}, "resample is 'bicubic', expected one of PIL's numbers, 0 to 5"),
    ],
)
def test_what_resizing_and_cropping_cannot_say_is_refused(config, message):
    with pytest.raises(RobenchError, match=message):
        geometry_of(config, "theirs")


def test_a_crop_mode_of_timm_that_resizing_and_cropping_cannot_say_is_refused(tmp_path):
    with pytest.raises(
        RobenchError, match=r"crop_mode 'border' to 224x224 is more than resizing and cropping; say yourself how images are resized"
    ):
        own_preprocessing(folder(tmp_path, {"architecture": "tiny", "pretrained_cfg": CFG | {"crop_mode": "border"}}))


def by_hand(config, pixels):
    """What an image processor computes of pixels of 0 to 255 in numbers, step by step."""
    values = pixels.astype(np.float64)
    if config.get("do_rescale", True):
        values = values * config.get("rescale_factor", 1 / 255) - (1 if config.get("rescale_offset") else 0)
    mean, std = (np.broadcast_to(config.get(name, default), 3) for name, default in (("image_mean", 0), ("image_std", 1)))
    if config.get("do_normalize", "image_mean" in config):
        values = (values - mean) / std
    return values / std if config.get("include_top") else values


@pytest.mark.parametrize(
    "config",
    [
        {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]},
        {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "do_normalize": False},
        {"image_mean": [123.0, 116.0, 103.0], "image_std": [58.0, 57.0, 57.0], "do_rescale": False},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
        {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.47, 0.46, 0.48], "include_top": True},
        {"image_mean": 0.5, "image_std": 0.25},
        {"do_rescale": False},
        {},
    ],
)  # fmt: skip
def test_the_normalisation_is_all_that_a_processor_does_to_the_numbers(config):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3))
    mean, std = normalisation_of(config)
    ours = (pixels / 255 - (np.array(mean) if mean else 0)) / (np.array(std) if std else 1)
    assert np.allclose(ours, by_hand(config, pixels), atol=1e-9)


def test_common_normalisations_stay_the_numbers_that_the_file_has():
    assert normalisation_of({"image_mean": [0.485], "image_std": [0.229], "rescale_factor": 0.00392156862745098}) == (
        (0.485,),
        (0.229,),
    )
    assert normalisation_of({"image_mean": [0.0] * 3, "image_std": [1.0] * 3}) == ((), ())
    with pytest.raises(RobenchError, match="3 values of image_mean and 1 of image_std"):
        normalisation_of({"image_mean": [0.5] * 3, "image_std": 0.5})


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["Beit", "Bit", "CLIP", "ConvNext", "DeiT", "EfficientNet", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer", "Pvt", "Segformer", "Siglip", "ViT"]
)  # fmt: skip
@pytest.mark.parametrize("size", [None, 200])
def test_it_is_what_every_image_processor_of_transformers_does_itself(kind, size, photo, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**({"size": size} if size else {}))
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    theirs = processor(photo, return_tensors="np")["pixel_values"][0]
    pixels = applied(geometry_of(config, "theirs"), photo).numpy()
    mean, std = (
        np.array(each or [neutral])[:, None, None] for each, neutral in zip(normalisation_of(config), (0.0, 1.0), strict=True)
    )
    ours = ((pixels[::-1] if config.get("do_flip_channel_order") else pixels) - mean) / std
    assert ours.shape == theirs.shape
    # A pixel between two numbers may be rounded either way, and a crop between two pixels: torchvision's is at the even one.
    apart = min(np.abs(np.roll(ours, shift, 2) - theirs)[:, :, 2:-2].max() for shift in (-1, 0, 1))
    assert apart <= 1.5 / 255 / std.min()


@pytest.fixture
def library(monkeypatch):
    """A stand-in for transformers' defaults, by image processor."""
    from robench.models import preprocessor_config

    known = {
        "ViTImageProcessor": {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_center_crop": False},
        "CLIPImageProcessor": {"do_normalize": True, "image_mean": [0.4] * 3, "image_std": [0.2] * 3, "do_center_crop": True, "crop_size": {"height": 9, "width": 9}},
    }  # fmt: skip
    monkeypatch.setattr(preprocessor_config, "default_of", lambda kind, entry: known.get(kind, {}).get(entry))


def test_what_a_preprocessor_config_does_not_say_is_the_librarys_own_default(library):
    vit, clip = ({"image_processor_type": f"{kind}ImageProcessor"} for kind in ("ViT", "CLIP"))
    assert normalisation_of(vit | {"do_normalize": True}) == ((0.5,) * 3, (0.25,) * 3) == normalisation_of(vit)
    assert normalisation_of(clip | {"do_normalize": True, "image_std": [0.3] * 3}) == ((0.4,) * 3, (0.3,) * 3)
    assert normalisation_of(vit | {"do_normalize": False}) == ((), ())
    assert shown(geometry_of(clip | {"size": 12, "crop_size": 8, "resample": 3}, "theirs")) == said(12, (8, 8))
    assert shown(geometry_of(clip | {"size": 12, "resample": 3}, "theirs")) == said(12, (9, 9))
    assert shown(geometry_of(clip | {"size": 12, "do_center_crop": False, "resample": 3}, "theirs")) == said(12, None)
    assert shown(geometry_of(vit | {"size": 12, "crop_size": 8, "resample": 3}, "theirs")) == said((12, 12), None)


@pytest.mark.parametrize(
    "kind", [{}, {"image_processor_type": "TheirsImageProcessor"}, {"image_processor_type": "BitImageProcessor"}]
)
def test_what_neither_a_preprocessor_config_nor_the_library_says_is_refused(library, kind):
    with pytest.raises(
        RobenchError, match=r"^a/p.json: the file says normalise but not by what .image_mean, image_std.; give `mean`, `std`$"
    ):
        normalisation_of(kind | {"do_normalize": True}, "a/p.json")
    with pytest.raises(RobenchError, match=r"not by what .image_std."):
        normalisation_of(kind | {"do_normalize": True, "image_mean": 0.5})
    with pytest.raises(
        RobenchError, match=r"theirs: the file does not say whether the centre is cut out .do_center_crop.; say yourself"
    ):
        geometry_of(kind | {"size": 12, "crop_size": 8}, "theirs")
    with pytest.raises(RobenchError, match=r"the centre is cut out, but not of which size .crop_size.; say yourself"):
        geometry_of(kind | {"size": 12, "do_center_crop": True}, "theirs")


def test_without_transformers_there_are_no_defaults(monkeypatch):
    import sys

    from robench.models.processor_defaults import default_of

    monkeypatch.setitem(sys.modules, "transformers", None)
    assert default_of("ViTImageProcessor", "image_mean") is None


@pytest.mark.slow
def test_the_defaults_are_those_of_transformers_classes():
    pytest.importorskip("transformers", reason="transformers is not installed")
    from robench.models.processor_defaults import default_of

    for kind in ("ViTImageProcessor", "ViTFeatureExtractor"):
        assert list(default_of(kind, "image_mean")) == [0.5] * 3 and not default_of(kind, "do_center_crop")
    clip = "CLIPImageProcessor"
    assert default_of(clip, "image_mean")[0] == pytest.approx(0.48145466) and default_of(clip, "do_center_crop") is True
    assert shown(geometry_of({"image_processor_type": clip, "size": 224, "resample": 3}, "theirs")) == said(224, (224, 224))
    assert default_of("AutoModel", "image_mean") is None and default_of("NoSuchImageProcessor", "image_mean") is None


def test_who_says_how_pictures_are_read_needs_no_word_of_the_models_files(tmp_path):
    from robench.run.inputs import load_inputs
    from robench.types import ExternalData

    processor = {"image_processor_type": "PerceiverImageProcessor", "size": 8}
    model = folder(tmp_path, {"architectures": ["ViTForImageClassification"], "model_type": "vit"}, processor)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (9, 7)).save(tmp_path / "photos" / name / "1.png")
    photos = str(tmp_path / "photos")
    with pytest.raises(RobenchError, match="is more than resizing and cropping; say yourself"):
        load_inputs(None, ExternalData(photos, resize="4"), None, "main", model=model)
    own = ExternalData(photos, resize="4", crop="4", interpolation="bicubic")
    assert load_inputs(None, own, None, "main", model=model).data.image_shape == (3, 4, 4)


VIT = {"architectures": ["ViTForImageClassification"], "model_type": "vit"}


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"size": {"height": "x", "width": 8}}, "size's height is 'x', expected a number"),
        ({"size": {"shortest_edge": None}}, "size's shortest_edge is None, expected a number"),
        ({"size": 0}, "size is 0, expected 1 to 10000 pixels"),
        ({"size": 224000000000}, "size is 224000000000, expected 1 to 10000 pixels"),
        ({"size": True}, "size is True, expected a number"),
        ({"size": 8, "do_center_crop": True, "crop_size": {"height": [8], "width": 8}}, r"crop_size's height is \[8\], expected a number"),
        ({"size": 8, "crop_pct": "x", "image_processor_type": "ConvNextImageProcessor"}, "crop_pct is 'x', expected a number above 0"),
        ({"size": 224, "crop_pct": 1e-9, "image_processor_type": "ConvNextImageProcessor"}, "crop_pct is 1e-09, by which 224 pixels become 2.24e.11"),
        ({"size": 8, "crop_pct": 1e-9, "do_center_crop": False, "image_processor_type": "PoolFormerImageProcessor"}, "crop_pct is 1e-09, by which 8"),
        ({"size": 10_000, "do_center_crop": False, "image_processor_type": "LevitImageProcessor"}, "size is 11428, expected 1 to 10000 pixels"),
    ],
)  # fmt: skip
def test_a_size_that_is_none_is_an_error_with_its_file_and_entry(tmp_path, processor, message):
    model = folder(tmp_path, VIT, processor)
    with pytest.raises(RobenchError, match=f"^preprocessor_config.json of {tmp_path}: {message}"):
        own_preprocessing(model)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"crop_pct": "x"}, "crop_pct is 'x', expected a number above 0"),
        ({"crop_pct": 0}, "crop_pct is 0, expected a number above 0"),
        ({"crop_pct": float("nan")}, "crop_pct is nan, expected a number above 0"),
        ({"crop_pct": 1e-9}, "crop_pct is 1e-09, by which 224 pixels become 2.24e.11, expected 1 to 10000"),
        ({"input_size": [3]}, r"input_size is \[3\], expected channels, height and width"),
        ({"input_size": 224}, "input_size is 224, expected channels, height and width"),
        ({"input_size": [3, "x", 224]}, "input_size is 'x', expected a number"),
    ],
)
def test_a_pretrained_cfg_of_other_things_is_an_error_with_its_file_and_entry(tmp_path, more, message):
    model = folder(tmp_path, {"architecture": "tiny", "pretrained_cfg": CFG | more})
    with pytest.raises(RobenchError, match=f"^config.json of {tmp_path}: {message}"):
        own_preprocessing(model)


def test_a_pretrained_cfg_that_is_no_object_is_an_error_with_its_file_and_entry(tmp_path):
    with pytest.raises(RobenchError, match="config.json of .*: pretrained_cfg is 'x', expected an object"):
        own_preprocessing(folder(tmp_path, {"architecture": "tiny", "pretrained_cfg": "x"}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_mean": ["a"], "image_std": [1]}, "image_mean is 'a', expected a number"),
        ({"image_mean": [0.5], "image_std": [0]}, "image_std is 0, expected a number above 0"),
        ({"image_mean": {"r": 1}, "image_std": [1]}, "image_mean is {'r': 1}, expected a number"),
        ({"rescale_factor": None}, "rescale_factor is None, expected a number above 0"),
        ({"rescale_factor": 0}, "rescale_factor is 0, expected a number above 0"),
    ],
)
def test_a_normalisation_of_other_things_is_an_error_with_its_file_and_entry(config, message):
    with pytest.raises(RobenchError, match=f"^a/p.json: {message}"):
        normalisation_of(config, "a/p.json")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_refuses_an_unknown_name_before_pictures_are_read_and_names_its_normalisation(library):
    pytest.importorskip(library)
    from robench.models.own_preprocessing import normalisation_hint

    with pytest.raises(RobenchError, match=r"resnet81.*did you mean 'resnet18'"):
        own_preprocessing(ExternalModel(f"{library}:resnet81"))
    assert normalisation_hint(ExternalModel(f"{library}:resnet18")) == (
        "nothing is normalised in front of resnet18; the library's own weights of it take `mean=0.485,0.456,0.406` `std=0.229,0.224,0.225`"
    )
    assert not normalisation_hint(ExternalModel("mine.py:make"))
