import hashlib
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image

from robench.data import data_folder, load_dataset
from robench.types import RobenchError


def test_digits_are_the_real_ones_with_a_fixed_split(digits_train, digits_test):
    from sklearn.datasets import load_digits

    assert (len(digits_train), len(digits_test)) == (1397, 400)
    assert digits_test.images.shape == (400, 3, 32, 32) and digits_test.images.dtype == torch.uint8
    originals = {np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images}
    small = digits_test.images.float().unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5)).to(torch.uint8).numpy()
    assert all(image.tobytes() in originals for image in small)
    assert digits_test.digest == load_dataset("digits", "test").digest


def test_coarse_labels_of_digits_are_shapes(digits_test):
    shape_of = {
        int(fine): digits_test.coarse_classes[coarse]
        for fine, coarse in zip(digits_test.labels, digits_test.coarse_labels, strict=True)
    }
    assert {digit for digit, shape in shape_of.items() if shape == "straight"} == {1, 4, 7}
    assert {digit for digit, shape in shape_of.items() if shape == "loops"} == {0, 6, 8, 9}
    assert {digit for digit, shape in shape_of.items() if shape == "open curves"} == {2, 3, 5}


def test_data_folder_is_the_option_then_the_variable_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBENCH_DATA", "/from/variable")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(data_folder(tmp_path)) == str(tmp_path)
    assert str(data_folder()) == "/from/variable"
    monkeypatch.delenv("ROBENCH_DATA")
    assert str(data_folder()) == "/cache/robench"


def test_unknown_dataset_suggests_the_nearest():
    with pytest.raises(RobenchError, match=r"unknown dataset 'cifar11' \(did you mean 'cifar10+'\?\)"):
        load_dataset("cifar11")


def test_absent_cifar_without_network_names_the_ways_out(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(
        RobenchError, match=r"cannot be downloaded: Network is unreachable. Ways out: \(1\).*\(2\).*`data_dir`.*\(3\).*digits"
    ):
        load_dataset("cifar10", "test", tmp_path)
    assert not list((tmp_path).rglob("data_batch*"))


def test_damaged_cifar_is_refused_before_it_is_unpickled(tmp_path):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for file, _ in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], None)]:
        (folder / file).write_bytes(b"cos\nsystem\n(S'touch /tmp/robench-was-here'\ntR.")
    with pytest.raises(RobenchError, match="is damaged: its MD5 is not the published"):
        load_dataset("cifar10", "test", tmp_path)


@pytest.mark.slow
def test_real_cifar_has_the_published_shape(cifar_folder):
    test = load_dataset("cifar100", "test", cifar_folder)
    assert test.images.shape == (10_000, 3, 32, 32)
    assert (len(test.classes), len(test.coarse_classes)) == (100, 20)
    assert torch.equal(test.labels.bincount(), torch.full((100,), 100))
    assert test.classes[int(test.labels[0])] == "mountain"
    pairs = {(int(fine), int(coarse)) for fine, coarse in zip(test.labels, test.coarse_labels, strict=True)}
    assert len(pairs) == 100  # every class lies in one superclass
    train = load_dataset("cifar10", "train", cifar_folder)
    assert train.images.shape == (50_000, 3, 32, 32) and train.coarse_labels is None


def make_folder(root, sizes=((6, 6),), per_class=5):
    for name, value in (("ant", 10), ("bee", 200)):
        (root / name).mkdir(parents=True)
        for place in range(per_class):
            Image.new("RGB", sizes[place % len(sizes)], (value, place, 0)).save(root / name / f"{place}.png")


def test_a_folder_of_images_per_class_is_a_data_set(tmp_path):
    make_folder(tmp_path / "bugs")
    train, test = (load_dataset(str(tmp_path / "bugs"), split) for split in ("train", "test"))
    assert test.name == "bugs" and test.classes == ("ant", "bee")
    assert (len(train), len(test)) == (8, 2)
    assert torch.equal(test.images[:, 0, 0, 0] == 200, test.labels == 1)
    pixels = {hashlib.sha256(image.numpy().tobytes()).hexdigest() for part in (train, test) for image in part.images}
    assert len(pixels) == 10  # no image in both splits


def test_the_first_samples_of_a_folder_hold_all_classes(tmp_path):
    make_folder(tmp_path / "train", per_class=1)
    make_folder(tmp_path / "test", per_class=6)
    assert load_dataset(str(tmp_path), "test").labels.view(-1, 2).sort(dim=1).values.tolist() == [[0, 1]] * 6


def test_a_folder_with_splits_uses_them(tmp_path):
    make_folder(tmp_path / "train", per_class=4)
    make_folder(tmp_path / "val", per_class=3)
    assert len(load_dataset(str(tmp_path), "train")) == 8
    assert len(load_dataset(str(tmp_path), "test")) == 6


def test_a_folder_of_unequal_images_is_refused_with_their_sizes(tmp_path):
    make_folder(tmp_path, sizes=((6, 6), (8, 6)))
    with pytest.raises(RobenchError, match=r"differ in size \(\dx6: \d, \dx6: \d\)"):
        load_dataset(str(tmp_path), "train")


def test_an_image_that_is_none_is_named(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "ant" / "0.png").write_text("not an image")
    with pytest.raises(RobenchError, match=r"1 of 2 pictures cannot be read: .*0\.png: no picture that PIL can read"):
        load_dataset(str(tmp_path), "test")


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(RobenchError, match="0 class folders"):
        load_dataset(str(tmp_path), "test")
