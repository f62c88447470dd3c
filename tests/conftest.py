"""One thread, and data that several tests share."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray reads this once, when it is first imported; without it, it takes this machine's address in the network for 127.0.0.1 (2.60.0).
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import pytest
import torch

from robench.data import file_index, load_dataset, packed_pictures
from robench.types import Dataset

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_train():
    return load_dataset("digits", "train")


@pytest.fixture(scope="session")
def digits_test():
    return load_dataset("digits", "test")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """What robench keeps of pictures goes into a folder of the test, and not into the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    for module in (file_index, packed_pictures):
        monkeypatch.setattr(module, "cache_folder", lambda: folder)


def first_digits(digits):
    return Dataset(
        "digits", "train", digits.images[:128], digits.labels[:128], digits.classes, digits.default_eps,
        digits.coarse_labels[:128], digits.coarse_classes, mirror=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def few(digits_train):
    """128 digits, for trainings of a second."""
    return first_digits(digits_train)


@pytest.fixture(scope="session")
def cifar_folder():
    """Where real CIFAR lies; tests that need it say so when they skip."""
    folder = os.environ.get("ROBENCH_DATA")
    if not folder:
        pytest.skip("needs real CIFAR: set ROBENCH_DATA to a folder that has cifar-10-batches-py/ and cifar-100-python/")
    return folder
