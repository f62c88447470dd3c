"""Images and labels of odd types: the right reading, or a refusal that says what was given and what to do."""

import numpy as np
import pytest
import torch
from PIL import Image

from robench.data.arrays import to_labels
from robench.data.in_memory import gather
from robench.data.pictures import read_picture
from robench.types import RobenchError

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SEVERAL = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])


@pytest.fixture
def images():
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Pairs(torch.utils.data.Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, place):
        return self.images[place], self.labels[place]


WRONG = {
    "fractions": ([0.5, 1, 2, 0, 1, 2], "1 of 6 are fractions or no numbers, the first is 0.5 at place 0; give classes from 0"),
    "not a number": ([0, 1, float("nan"), 0, 1, 2], "the first is nan at place 2"),
    "several": (SEVERAL, r"shape \(6, 3\): several classes an image\?"),
    "none": (SEVERAL * (torch.arange(6) > 0)[:, None], "several classes an image, or none of them"),
    "one or none": (torch.eye(3)[LABELS] * (torch.arange(6) > 0)[:, None], "or none of them"),
    "shares": (torch.eye(3)[LABELS] * 0.8 + 0.2 / 3, "shares of classes.*argmax"),
    "masks": (torch.zeros(6, 8, 8).long(), "a mask for every image.*robench judges classifiers"),
    "unequal": ([[1], [1, 2], [0], [1], [2], [0]], "lists of unequal length: several classes"),
    "names": (["cat"] * 6, "labels are str; .*names under `classes`"),
    "missing": ([None] * 6, "labels are NoneType"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("whole", [True, False], ids=["arrays", "data set"])
def test_labels_that_are_no_classes_are_refused_with_the_reason(kind, whole, images):
    labels, message = WRONG[kind]
    with pytest.raises(RobenchError, match=message):
        gather(images, labels) if whole else gather(Pairs(images, labels))


@pytest.mark.parametrize(
    "change", [lambda y: y.bool(), lambda y: y.double(), lambda y: y.numpy().astype(np.float16), lambda y: y.bfloat16()]
)
def test_labels_of_other_types_are_whole_numbers(change, images):
    labels = (LABELS > 0).long()
    assert torch.equal(gather(images, change(labels)).labels, labels)
    assert torch.equal(gather(Pairs(images, change(labels))).labels, labels)


def test_a_file_says_store_where_a_call_says_give():
    with pytest.raises(RobenchError, match="the first is 0.5 at place 0; store classes from 0"):
        to_labels(np.array([0.5, 1.0]), 2, (), "labels")
    with pytest.raises(RobenchError, match="labels are float64, expected integers: store labels.astype"):
        to_labels(np.array([0.0, 1.0]), 2, (), "labels")


@pytest.mark.parametrize("pixels", [np.uint16, np.int32, np.float32])
def test_pictures_of_more_than_8_bits_are_refused_and_never_cut_off(pixels, tmp_path):
    values = (np.linspace(0, 1, 64).reshape(8, 8) * (1 if pixels == np.float32 else 65535)).astype(pixels)
    picture = Image.fromarray(values)
    with pytest.raises(RobenchError, match=f"mode {picture.mode} have more than 8 bits.*/ 65535"):
        gather([picture] * 6, LABELS)
    picture.save(tmp_path / "deep.tiff")
    if pixels == np.uint16:  # in a file the largest value is known
        read = read_picture(tmp_path / "deep.tiff")
        assert np.array_equal(read[..., 0], np.rint(values / 257).astype(np.uint8)) and len(np.unique(read)) == 64
        return
    with pytest.raises(RobenchError, match="more than 8 bits"):
        read_picture(tmp_path / "deep.tiff")


def test_a_gray_picture_among_coloured_ones_is_named():
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    with pytest.raises(RobenchError, match="some images are gray and some have colours"):
        gather([gray.convert("RGB"), *[gray] * 5], LABELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_every_width_are_the_same_pixels_in_float32(dtype, images):
    given = images.to(dtype)
    loader = torch.utils.data.DataLoader(Pairs(given, LABELS), 4)
    for source in (gather(given, LABELS), gather(list(given), LABELS), gather(Pairs(given, LABELS)), gather(loader)):
        assert source.images.dtype == torch.float32 and torch.equal(source.images, given.float())
    if dtype != torch.bfloat16:  # NumPy has none
        assert torch.equal(gather(given.numpy(), LABELS).images, given.float())


def test_a_rounding_error_outside_the_box_is_no_mistake_in_an_array_either(images):
    images[0, 0, 0, 0], images[0, 0, 0, 1] = -1e-7, 1 + 1e-6
    for given in (images.numpy(), list(images.numpy()), list(images)):
        held = gather(given, LABELS).images
        assert float(held.min()) == 0.0 and float(held.max()) == 1.0


def test_gray_images_without_a_channel_are_read_from_tensors_as_from_arrays():
    given = torch.randint(0, 255, (6, 28, 28), dtype=torch.uint8)
    assert torch.equal(gather(given, LABELS).images, given[:, None])
    assert torch.equal(gather(given.numpy(), LABELS).images, given[:, None])


def test_batches_of_one_image_may_bring_their_label_without_an_axis(images):
    for label in (int, torch.tensor, np.int64):
        held = gather([(images[place : place + 1], label(LABELS[place])) for place in range(len(images))])
        assert torch.equal(held.images, gather(images, LABELS).images) and held.labels.tolist() == [int(each) for each in LABELS]


class Raises(Pairs):
    def __getitem__(self, place):
        raise OSError("disk")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda x: Raises(x, LABELS), "the Raises that brings images and labels raised OSError: disk"),
        (lambda x: [(x[:2], LABELS[:2]), (x[:2, :, :4], LABELS[:2])], "differ in size from batch to batch"),
        (lambda x: [(x[:2], LABELS[:3]), (x[:3], LABELS[:2])], "batch 0 has 2 images and 3 labels"),
    ],
)
def test_a_source_that_cannot_be_read_gets_one_message(source, message, images):
    with pytest.raises(RobenchError, match=message):
        gather(source(images))


@pytest.mark.parametrize(("change", "message"), [(lambda x: x.to("meta"), "device meta"), (lambda x: x + 1j, "complex64")])
def test_tensors_without_pixels_are_refused(change, message, images):
    with pytest.raises(RobenchError, match=message):
        gather(change(images), LABELS)


def test_sparse_and_quantised_images_are_read(images):
    assert torch.equal(gather(images.to_sparse(), LABELS).images, images)
