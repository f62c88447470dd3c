"""Data that people already have: .npz files, folders, parquet; each misfit is told with its remedy."""

import io
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from robench.cli import main
from robench.data import load_dataset
from robench.types import RobenchError

CLASSES = ("ant", "bee", "cow")


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def pixels():
    return np.random.RandomState(0).randint(0, 256, (12, 10, 14, 3)).astype(np.uint8)  # neither square nor 32


@pytest.fixture
def labels():
    return np.arange(12) % 3


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "own.npz"


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("x", "y"), ("x_test", "y_test"), ("test_images", "test_labels"), ("images_val", "labels_val")]
)
@pytest.mark.parametrize(
    "arrange", [lambda a: a, lambda a: a.transpose(0, 3, 1, 2), lambda a: a.astype(np.float32) / np.float32(255)]
)
def test_any_usual_arrangement_is_the_same_data_to_the_last_bit(file, pixels, labels, names, arrange):
    np.savez(file, **{names[0]: arrange(pixels), names[1]: labels, "classes": CLASSES})
    data = load_dataset(str(file))
    assert torch.equal(data.images, torch.from_numpy(pixels.transpose(0, 3, 1, 2))) and data.images.dtype == torch.uint8
    assert data.labels.tolist() == labels.tolist() and data.labels.dtype == torch.int64
    assert data.classes == CLASSES and data.image_shape == (3, 10, 14) and data.name == "own"


def test_floats_between_the_levels_of_8_bits_stay_floats(file, pixels, labels):
    images = np.random.RandomState(0).rand(12, 3, 10, 14)
    np.savez(file, images=images, labels=labels)
    data = load_dataset(str(file))
    assert data.images.dtype == torch.float32 and np.array_equal(data.images.numpy(), images.astype(np.float32))


def test_gray_images_labels_in_a_column_and_classes_without_names(file, pixels, labels):
    np.savez(file, x_test=pixels[..., 0], y_test=labels[:, None], x_train=pixels[:4, ..., 0], y_train=np.array([0, 1, 2, 3]))
    data = load_dataset(str(file))
    assert data.image_shape == (1, 10, 14) and data.labels.tolist() == labels.tolist()
    assert data.classes == ("0", "1", "2", "3")  # also those that only the other split has
    assert len(load_dataset(str(file), "train")) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": lambda a: a.astype(np.float32)},
            r"images range from 0 to 255, .*look like 0 to 255: make them uint8, or divide",
        ),
        (
            {"images": lambda a: (a / 255.0 - 0.5) / 0.25},
            r"look normalised already: use them as they were before.*`mean` and `std`",
        ),
        ({"images": lambda a: a / 250.0}, r"range from 0 to 1.02, expected floats in \[0, 1\]: clip or scale them"),
        ({"images": lambda a: np.where(a > 9, np.nan, a / 255.0)}, "hold NaN or infinity"),
        ({"images": lambda a: a.astype(np.int64) - 1}, "range from -1 to 254; expected 0 to 255"),
        ({"images": lambda a: (a > 99).astype(np.uint8)}, r"integers of 0 and 1 only; were they floats in \[0, 1\] before"),
        ({"images": lambda a: a[:, :, :, :2]}, r"shape \(12, 10, 14, 2\): .*neither has 1 or 3 channels"),
        ({"images": lambda a: a[:, :3]}, r"shape \(12, 3, 14, 3\): .*both could be the channels"),
        ({"images": lambda a: a[0, 0]}, r"have shape \(14, 3\), expected \(N, H, W, C\)"),
        ({"images": lambda a: a[:0]}, "expected at least one image"),
        ({"images": lambda a: a[:11]}, r"labels have shape \(12,\) for 11 images"),
        ({"labels": lambda a: a.astype(np.float32)}, "labels are float32, expected integers: store labels.astype"),
        ({"labels": lambda a: np.array(CLASSES)[a]}, "labels are <U3, expected integers"),
        ({"labels": lambda a: np.eye(3)[a]}, r"labels have shape \(12, 3\): one-hot\? store their argmax"),
        (
            {"labels": lambda a: a + 1},
            "range from 1 to 3, expected 0 to 2 for the 3 classes ant, bee, cow; they start at 1: subtract 1",
        ),
        ({"labels": lambda a: a - 1}, "range from -1 to 1, expected 0 to 2 for the 3 classes"),
        ({"labels": lambda a: 5 * a}, "range from 0 to 10, expected 0 to 2 for the 3 classes"),
        ({"classes": lambda a: np.array(["ant", "ant", "cow"])}, "classes must be one list of different names"),
        ({"labels": lambda a: np.array([{}] * 12, dtype=object)}, "pickled objects, which are not loaded since they can run code"),
    ],
)
def test_arrays_that_are_no_images_or_labels_are_refused_with_the_remedy(file, pixels, labels, change, message):
    arrays = {"images": pixels, "labels": labels, "classes": np.array(CLASSES)}
    pixels[0, 0, 0, 0], pixels[0, 0, 0, 1] = 0, 255
    np.savez(file, **arrays | {name: how(arrays[name]) for name, how in change.items()})
    with pytest.raises(RobenchError, match=message) as caught:
        load_dataset(str(file))
    assert "own.npz" in str(caught.value)


def test_missing_arrays_and_splits_say_what_is_there(file, pixels, labels):
    np.savez(file, pictures=pixels, labels=labels)
    with pytest.raises(RobenchError, match="has the arrays pictures, labels, expected x_test and y_test, or images and labels"):
        load_dataset(str(file))
    np.savez(file, images=pixels, labels=labels)
    with pytest.raises(RobenchError, match="expected x_train and y_train; one set, images and labels, is for testing only"):
        load_dataset(str(file), "train")
    file.write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(RobenchError, match="no readable .npz file of plain arrays"):
        load_dataset(str(file))
    other = file.with_name("own.csv")
    other.write_text("a,b")
    with pytest.raises(RobenchError, match="expected a folder of images per class, a folder of parquet files, or a .npz file"):
        load_dataset(str(other))


MODEL = """
import torch
from torch import nn

def make(n_classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, n_classes))

def four():
    return make(4)
"""


@pytest.fixture
def model(file):
    (file.parent / "mine.py").write_text(MODEL)
    namespace = {}
    exec(MODEL, namespace)
    return namespace["make"]().eval()


def predicted(model, pixels):
    with torch.no_grad():
        return model(torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float() / 255).argmax(1).numpy()


ASKED = ("--suite", "fgsm", "--out", "run", "--threads", 1)


@pytest.mark.parametrize("as_float", [False, True])
def test_one_command_attacks_arrays_of_any_size_and_names_the_classes(file, model, pixels, as_float):
    images = pixels / 255.0 * 0.999 if as_float else pixels
    np.savez(file, images=images, labels=predicted(model, pixels), classes=CLASSES)
    result = call("attack", "--model", "mine.py:make", "--dataset", "own.npz", *ASKED)
    assert result.exit_code == 0, result.output
    assert "12 test images, 3 x 10 x 14, 3 classes: ant, bee, cow" in result.output
    described = json.loads((file.parent / "run" / "run.json").read_text())
    assert described["data"] == {"name": "own", "split": "test", "n": 12, "classes": list(CLASSES), "path": "own.npz"}
    clean = next(row for row in described["results"] if row["attack"] == "clean")
    assert clean["robust_accuracy"] == 1


def test_the_quick_audit_takes_arrays(file, model, pixels):
    np.savez(file, images=pixels, labels=predicted(model, pixels), classes=CLASSES)
    result = call("audit", "--model", "mine.py:make", "--dataset", "own.npz", "--quick", "--out", "audit", "--threads", 1)
    assert result.exit_code in (0, 3) and (file.parent / "audit" / "audit.md").exists(), result.output


def test_a_model_of_another_number_of_classes_is_told_with_both(file, model, pixels, labels):
    np.savez(file, images=pixels, labels=labels + 1)
    result = call("attack", "--model", "mine.py:make", "--dataset", "own.npz", *ASKED)
    assert result.exit_code == 1 and not (file.parent / "run").exists()
    assert "returned shape (12, 3) for 12 images, expected (12, 4)" in result.output
    assert "own: 4 classes, 0, 1, 2, 3, with labels from 1 to 3; do its labels start at 1?" in result.output
    np.savez(file, images=pixels, labels=labels, classes=CLASSES)
    result = call("attack", "--model", "mine.py:four", "--dataset", "own.npz", *ASKED)
    assert "expected (12, 3)" in result.output and "own: 3 classes, ant, bee, cow, with labels from 0 to 2)" in result.output


def test_training_reads_arrays_too(file, labels):
    pixels = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    np.savez(file, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels, classes=CLASSES)
    asked = ("--arch", "single", "--backbone", "small", "--epochs", 1, "--batch-size", 4, "--out", "m.safetensors", "--threads", 1)
    result = call("train", "--dataset", "own.npz", *asked)
    assert result.exit_code == 0, result.output
    np.savez(file, x_train=pixels / 255 * 0.9, y_train=labels, x_test=pixels, y_test=labels)
    result = call("train", "--dataset", "own.npz", *asked)
    assert result.exit_code == 1 and "to train, store uint8" in result.output


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def parquet(file, pixels):
    """Writes parquet files as the Hub keeps them: ``write(name, rows, classes, struct)``."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = file.parent / "theirs"
    (folder / "data").mkdir(parents=True)

    def write(name, labels, classes=CLASSES, images=pixels, columns=("image", "label"), struct=True):
        cells = [{"bytes": png(image), "path": None} if struct else png(image) for image in images]
        table = pa.table({columns[0]: cells, columns[1]: pa.array(list(labels))})
        features = {columns[1]: {"names": list(classes), "_type": "ClassLabel"}} if classes else {}
        note = json.dumps({"info": {"features": features}})
        parquet.write_table(table.replace_schema_metadata({"huggingface": note}), folder / "data" / f"{name}.parquet")
        return str(folder)

    return write


def test_a_hub_folder_of_parquet_files_is_a_data_set_dealt_class_by_class(parquet, pixels, labels):
    parquet("train-00000-of-00001", labels[:5], images=pixels[:5])
    where = parquet("test-00000-of-00001", sorted(labels))
    data = load_dataset(where)
    assert data.classes == CLASSES and (len(data), len(load_dataset(where, "train"))) == (12, 5)
    assert data.labels.view(-1, 3).sort(dim=1).values.tolist() == [[0, 1, 2]] * 4  # though the file holds them class by class
    where_from = {image.tobytes(): label for image, label in zip(pixels, sorted(labels), strict=True)}
    assert [where_from[image.permute(1, 2, 0).numpy().tobytes()] for image in data.images] == data.labels.tolist()


def test_bare_bytes_other_column_names_and_no_split_in_the_name(parquet, labels):
    data = load_dataset(parquet("0000", labels, classes=(), columns=("img", "fine_label"), struct=False))
    assert data.classes == ("0", "1", "2") and len(data) == 12


def test_parquet_files_that_do_not_fit_are_refused(parquet, labels, pixels):
    with pytest.raises(RobenchError, match="range from 0 to 2, expected 0 to 1 for the 2 classes ant, bee"):
        load_dataset(parquet("test-0", labels, classes=("ant", "bee")))
    with pytest.raises(RobenchError, match=r"has test-0.parquet, but no train-\*.parquet"):
        load_dataset(parquet("test-0", labels), "train")
    with pytest.raises(RobenchError, match="1 of 12 labels are missing"):
        load_dataset(parquet("test-0", [None, *labels[1:].tolist()]))
    with pytest.raises(RobenchError, match="has the columns photo, label; expected the image in one of image, img"):
        load_dataset(parquet("test-0", labels, columns=("photo", "label")))


def test_parquet_files_without_pyarrow_name_what_to_install(file, monkeypatch):
    import sys

    (file.parent / "theirs").mkdir()
    (file.parent / "theirs" / "test-0.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RobenchError, match=r"need pyarrow: pip install 'robench\[parquet\]'"):
        load_dataset(str(file.parent / "theirs"))


@pytest.mark.slow
def test_reports_of_a_cascade_are_written_where_pandas_keeps_text_in_pyarrow(file, model, pixels):
    pytest.importorskip("pyarrow")  # a stage that breaks nothing then has no rows whose type is a number
    namespace = {}
    exec(MODEL, namespace)
    np.savez(file, images=pixels, labels=predicted(namespace["four"]().eval(), pixels), classes=[*CLASSES, "dog"])
    asked = ("--dataset", "own.npz", "--suite", "fast", "--eps", "0.5", "--out", "run", "--threads", 1)
    result = call("attack", "--model", "mine.py:four", *asked)
    assert result.exit_code == 0, result.output
