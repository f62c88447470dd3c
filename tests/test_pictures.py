"""Picture files as people have them: of any size and kind, many, damaged; read when they are needed, and what is known of them kept."""

import csv
import hashlib
import io
import os
import pickle
import random
import threading
import time
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from robench.data import file_index, folder, load_dataset, picture_files
from robench.data.file_index import Stat, index_files
from robench.data.folder import balanced_order
from robench.data.imagenet_classes import names, synsets
from robench.data.pictures import TURNED, check_picture, read_picture
from robench.data.preprocessing import OwnPreprocessing, Preprocessing, parse_side
from robench.data.recorded import as_recorded
from robench.types import ExternalData, RobenchError

RESIZED = {"resize": "16", "crop": "14"}


def picture(place, size=(24, 20)):
    """A smooth picture of its own, so that JPEG leaves most of it."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    values = [128 + 127 * np.sin((place + 1) * (rows + channel * columns) / 40) for channel in range(3)]
    return Image.fromarray(np.stack(values, -1).astype(np.uint8))


def photographs(root, per_class=4, classes=("ant", "bee"), suffix="jpg", sizes=((24, 20), (20, 30), (32, 32))):
    """Pictures of unequal size, one folder a class; returns how many."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for place in range(per_class):
            picture(10 * place + label, sizes[place % len(sizes)]).save(root / name / f"{place:04}.{suffix}")
    return per_class * len(classes)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos" / "test"
    photographs(root)
    return root.parent


def test_pixels_are_those_of_torchvisions_transforms(photos):
    data = load_dataset(ExternalData(str(photos), resize="16", crop="12x10", interpolation="bicubic"))
    theirs = transforms.Compose(
        [transforms.Resize(16, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop((12, 10)), transforms.PILToTensor()]
    )
    assert data.image_shape == (3, 12, 10) and len(data) == 8
    for place in range(len(data)):
        with Image.open(data.images.name(place)) as opened:
            assert torch.equal(data.pixels(torch.tensor([place]))[0], theirs(opened.convert("RGB")))


def test_a_range_and_numbers_give_the_same_pictures(photos):
    data = load_dataset(ExternalData(str(photos), **RESIZED))
    everything = data.pixels(slice(None))
    assert everything.shape == (8, 3, 14, 14) and everything.dtype == torch.uint8
    assert torch.equal(data.pixels(slice(2, 5)), everything[2:5])
    assert torch.equal(data.pixels(torch.tensor([7, 0, 7])), everything[[7, 0, 7]])


def test_an_exact_size_needs_no_crop_and_a_short_side_does(photos):
    assert load_dataset(ExternalData(str(photos), resize="10x12")).image_shape == (3, 10, 12)
    with pytest.raises(RobenchError, match=r"differ in size \(.*\), also after `resize=16`: give `crop` too"):
        load_dataset(ExternalData(str(photos), resize="16"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"differ in size \(\d+x\d+: \d, .*nothing says what the model takes: give `resize=256` `crop=224`"),
        ({"resize": "16", "crop": "20"}, r"`crop=20x20` is larger than `resize=16`"),
        ({"crop": "22"}, r"`crop=22x22` is larger than an image of .*: give `resize` too"),
        ({"resize": "0"}, "`resize=0`: expected a number of pixels such as 224"),
        ({"crop": "1x2x3"}, "`crop=1x2x3`: expected a number of pixels"),
        ({"resize": "16", "interpolation": "cubic"}, "`interpolation=cubic`: expected one of bilinear, bicubic"),
        ({"interpolation": "bicubic"}, "`interpolation=bicubic` is about a resize: give `resize` too"),
        ({"subset": "robustbench", **RESIZED}, "`subset=robustbench` is of `dataset=imagenet`"),
    ],
)
def test_what_cannot_be_done_with_pictures_is_told_with_the_remedy(photos, given, message):
    with pytest.raises(RobenchError, match=message):
        load_dataset(ExternalData(str(photos), **given))


def test_the_usual_preprocessing_of_imagenet_fills_up_what_is_given_and_none_is_remembered(tmp_path):
    imagenet_by_synset(tmp_path / "imagenet" / "val")

    def read(**given):
        return load_dataset(ExternalData("imagenet", **given), data_dir=tmp_path)

    assert read(crop="200").reading["preprocessing"] == "short side to 256 (bilinear), then the centre 200x200"
    assert read(interpolation="bicubic").reading["preprocessing"] == "short side to 256 (bicubic), then the centre 224x224"
    with pytest.raises(RobenchError, match="`crop=288x288` is larger than `resize=256`"):
        read(crop="288")
    as_they_are = read(resize="none", crop="none")
    again = load_dataset(as_recorded({"name": "imagenet", **as_they_are.reading}), data_dir=tmp_path)
    assert as_they_are.image_shape == (3, 30, 40) and again.digest == as_they_are.digest


def test_a_recorded_folder_that_is_called_as_a_data_set_stays_a_folder():
    assert as_recorded({"name": "imagenet", "path": "imagenet"}).reference == "./imagenet"


def test_arrays_of_pixels_are_not_resized(tmp_path):
    with pytest.raises(RobenchError, match="`resize` is about pictures in files, and digits is an array of pixels"):
        load_dataset(ExternalData("digits", resize="16"))


OWN = Preprocessing(resize=16, crop=(14, 14), origin="the model's card")


@pytest.mark.parametrize(
    ("size", "of_these_weights", "shape"),
    [
        (None, False, (3, 14, 14)),  # pictures of unequal size need it
        ((14, 14), True, (3, 14, 14)),  # they have the model's size already
        ((18, 18), True, (3, 14, 14)),  # the file beside the weights is believed
        ((18, 18), False, (3, 18, 18)),  # what the library says of its own weights is not
    ],
)
def test_the_models_own_preprocessing_is_taken_where_it_is_needed(tmp_path, capsys, size, of_these_weights, shape):
    photographs(tmp_path / "test", sizes=((24, 20), (20, 30)) if size is None else (size,), suffix="png")
    own = OwnPreprocessing(OWN, of_these_weights)
    data = load_dataset(str(tmp_path), own=own, tell=True)
    assert data.image_shape == shape
    said = capsys.readouterr().err
    if size == (14, 14):
        assert not said and not data.reading and not data.is_stored
    elif shape == (3, 18, 18):
        assert "pictures are taken as they are, 18x18; the model's card says" in said and not data.reading
    else:
        assert "short side to 16 (bilinear), then the centre 14x14, as the model's card says" in said
        assert data.reading["preprocessing"].endswith("as the model's card says")
    as_they_are = load_dataset(ExternalData(str(tmp_path), resize="none", crop="none"), own=own) if size else None
    assert size is None or as_they_are.image_shape == (3, *size)


def test_a_models_files_may_ask_for_a_crop_with_black_around(photos):
    own = OwnPreprocessing(Preprocessing(resize=10, crop=(14, 14), origin="the model's card"), of_these_weights=True)
    data = load_dataset(str(photos), own=own)
    pixels = data.pixels(slice(None))
    assert data.image_shape == (3, 14, 14) and (pixels[:, :, :2, :] == 0).any() and pixels[:, :, 4:10, 4:10].float().mean() > 20
    again = load_dataset(as_recorded({"name": data.name, "path": str(photos), **data.reading}))
    assert again.digest == data.digest


def test_a_run_is_read_again_as_it_was_read(photos):
    data = load_dataset(ExternalData(str(photos), **RESIZED, interpolation="lanczos"))
    described = {"name": data.name, "path": str(photos), **data.reading}
    again = load_dataset(as_recorded(described))
    assert again.digest == data.digest and torch.equal(again.pixels(slice(None)), data.pixels(slice(None)))
    elsewhere = photos.rename(photos.with_name("moved"))
    assert load_dataset(as_recorded(described, str(elsewhere))).digest == data.digest
    other = load_dataset(as_recorded(described, ExternalData(str(elsewhere), resize="17", crop="14")))
    assert other.digest != data.digest


def test_the_digest_follows_pixels_labels_and_preprocessing_and_nothing_else(tmp_path):
    photographs(tmp_path / "a" / "test")
    photographs(tmp_path / "b" / "test")
    first, second = (load_dataset(ExternalData(str(tmp_path / name), **RESIZED)) for name in "ab")
    assert first.digest == second.digest
    assert load_dataset(ExternalData(str(tmp_path / "a"), resize="17", crop="14")).digest != first.digest
    picture(99).save(tmp_path / "b" / "test" / "ant" / "0000.jpg")
    assert load_dataset(ExternalData(str(tmp_path / "b"), **RESIZED)).digest != first.digest
    (tmp_path / "a" / "test" / "bee" / "0000.jpg").rename(tmp_path / "a" / "test" / "ant" / "9.jpg")
    assert load_dataset(ExternalData(str(tmp_path / "a"), **RESIZED)).digest != first.digest


def saved(image, tmp_path, name, **how):
    path = tmp_path / name
    image.save(path, **how)
    return read_picture(path)


def test_every_kind_of_picture_is_read_as_people_see_it(tmp_path):
    colours = picture(3)
    values = np.asarray(colours)
    assert np.array_equal(saved(colours, tmp_path, "rgb.png"), values)
    gray = colours.convert("L")
    assert np.array_equal(saved(gray, tmp_path, "gray.png"), np.repeat(np.asarray(gray)[..., None], 3, 2))
    palette = colours.convert("P")
    assert np.array_equal(saved(palette, tmp_path, "palette.png"), np.asarray(palette.convert("RGB")))
    assert np.array_equal(saved(palette, tmp_path, "palette.gif"), np.asarray(palette.convert("RGB")))
    clear = colours.copy()
    clear.putalpha(200)
    assert np.array_equal(saved(clear, tmp_path, "alpha.png"), values)
    print_ink = saved(colours.convert("CMYK"), tmp_path, "ink.tiff")
    assert np.abs(print_ink.astype(int) - values).max() <= 2
    bits = saved(gray.point(lambda value: 255 * (value > 127), "1"), tmp_path, "bits.png")
    assert set(np.unique(bits)) == {0, 255}
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    assert np.array_equal(saved(deep, tmp_path, "deep.png")[..., 0], np.asarray(gray))


def load_turned(root, suffix):
    """Two pictures of 24x20 pixels that an EXIF tag turns by a quarter."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("ant", "bee"):
        (root / "test" / name).mkdir(parents=True)
        picture(1, (24, 20)).save(root / "test" / name / f"0.{suffix}", exif=turned)
    return load_dataset(str(root))


def test_a_picture_with_an_exif_turn_is_upright_in_a_folder_and_as_it_lies_in_imagenet(tmp_path):
    data = load_turned(tmp_path, "png")
    assert data.image_shape == (3, 20, 24)
    upright = np.rot90(np.asarray(picture(1, (24, 20))), -1).transpose(2, 0, 1)
    assert np.array_equal(data.images[0].numpy(), upright)
    assert read_picture(tmp_path / "test" / "ant" / "0.png", upright=False).shape == (24, 20, 3)


def test_a_picture_that_pillow_turns_by_itself_is_turned_once(tmp_path):
    data = load_turned(tmp_path, "tiff")
    upright = np.rot90(np.asarray(picture(1, (24, 20))), -1).transpose(2, 0, 1)
    assert data.image_shape == (3, 20, 24) and np.array_equal(data.images[0].numpy(), upright)


def test_exif_data_that_make_no_sense_turn_nothing(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(1, (24, 20)).save(tmp_path / "whole.jpg", exif=turned)
    content = (tmp_path / "whole.jpg").read_bytes()
    start, random_bytes = content.index(b"Exif"), random.Random(0)
    end = start + content[start:].index(b"\xff\xdb")
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(2):
            changed[random_bytes.randrange(start, end)] = random_bytes.randrange(256)
        header = check_picture(bytes(changed))
        shown = (header.width, header.height) if header.orientation in TURNED else (header.height, header.width)
        assert read_picture(io.BytesIO(changed)).shape[:2] == shown


def test_a_picture_of_another_size_than_its_header_says_is_named(photos, monkeypatch):
    data = load_dataset(ExternalData(str(photos), **RESIZED))
    monkeypatch.setattr(picture_files, "read_picture", lambda *a, **k: np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(RobenchError, match=r"cannot read the image .*jpg: it has 4x3 pixels, its header says otherwise"):
        data.pixels(slice(0, 1))


def test_files_of_a_mac_that_begin_with_a_dot_are_no_pictures(photos):
    before = load_dataset(ExternalData(str(photos), **RESIZED)).digest
    (photos / "test" / "ant" / "._0000.jpg").write_bytes(b"\0\5\x16\7")
    assert load_dataset(ExternalData(str(photos), **RESIZED)).digest == before


def damage(path, how):
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>404</html>")
    elif how == "scrambled":  # header and end are whole
        middle = bytearray(content)
        middle[len(content) // 3 : -20] = bytes(len(content) - 20 - len(content) // 3)
        path.write_bytes(bytes(middle))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
@pytest.mark.parametrize("how", ["cut", "empty", "text"])
def test_damaged_files_are_named_before_anything_is_computed(tmp_path, suffix, how):
    photographs(tmp_path / "test", suffix=suffix)
    for name in ("ant/0001", "bee/0002"):
        damage(tmp_path / "test" / f"{name}.{suffix}", how)
    with pytest.raises(
        RobenchError, match=rf"2 of 8 pictures cannot be read: .*ant/0001\.{suffix}: .*bee/0002\.{suffix}: .*Copy them again"
    ):
        load_dataset(ExternalData(str(tmp_path), **RESIZED))


def test_a_png_that_is_damaged_inside_is_found_by_its_checksums(tmp_path):
    photographs(tmp_path / "test", suffix="png", sizes=((200, 200),))
    damage(tmp_path / "test" / "ant" / "0001.png", "scrambled")
    with pytest.raises(RobenchError, match=r"1 of 8 pictures cannot be read: .*ant/0001\.png: broken PNG"):
        load_dataset(ExternalData(str(tmp_path), **RESIZED))


def test_a_jpeg_that_is_damaged_inside_is_found_by_check_or_when_it_is_read(tmp_path):
    photographs(tmp_path / "test")
    file = tmp_path / "test" / "ant" / "0001.jpg"
    content = bytearray(file.read_bytes())
    tables = content.index(b"\xff\xc4")
    content[tables + 4 : tables + 30] = bytes([255] * 26)
    file.write_bytes(bytes(content))
    with pytest.raises(RobenchError, match=r"1 of 8 pictures cannot be read: .*ant/0001\.jpg"):
        load_dataset(ExternalData(str(tmp_path), **RESIZED, check=True))
    data = load_dataset(ExternalData(str(tmp_path), **RESIZED))
    with pytest.raises(RobenchError, match=r"cannot read the image .*ant/0001\.jpg: .*what was finished before is kept"):
        data.pixels(slice(None))


def test_a_file_that_changes_after_it_was_looked_at_is_not_read(photos):
    data = load_dataset(ExternalData(str(photos), **RESIZED))
    picture(50, (64, 64)).save(data.images.name(0))
    with pytest.raises(RobenchError, match="has changed since it was looked at; start the same command again"):
        data.pixels(slice(0, 1))
    os.remove(data.images.name(1))
    with pytest.raises(RobenchError, match="cannot read the image .*No such file"):
        data.pixels(slice(1, 2))


def stats(root, listed):
    facts = [(root / name).stat() for name in listed]
    return [Stat(name, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for name, each in zip(listed, facts, strict=True)]


@pytest.fixture
def looks(monkeypatch):
    """How often files were looked at, and indices of any number of files are kept."""
    monkeypatch.setattr(file_index, "WORTH_KEEPING", 1)
    counted, look = [], file_index._look
    monkeypatch.setattr(file_index, "_look", lambda path, decode: counted.append(path.name) or look(path, decode))
    return counted


def test_only_files_that_are_new_or_have_changed_are_looked_at_again(tmp_path, looks):
    photographs(tmp_path, classes=("ant",), per_class=6)
    listed = [f"ant/{place:04}.jpg" for place in range(6)]
    first = index_files(tmp_path, stats(tmp_path, listed))
    assert len(looks) == 6
    again = index_files(tmp_path, stats(tmp_path, listed[::-1]))
    assert (
        len(looks) == 6 and np.array_equal(again.sha256, first.sha256[::-1]) and again.names.tolist() == first.names[::-1].tolist()
    )
    picture(77).save(tmp_path / "ant" / "0003.jpg")
    picture(78).save(tmp_path / "ant" / "new.jpg")
    changed = index_files(tmp_path, stats(tmp_path, [*listed, "ant/new.jpg"]))
    assert sorted(looks[6:]) == ["0003.jpg", "new.jpg"]
    assert (changed.sha256[:6] == first.sha256).all(1).tolist() == [True] * 3 + [False] + [True] * 2
    index_files(tmp_path, stats(tmp_path, listed), check=True)  # decoded for the first time
    assert len(looks) == 8 + 6
    index_files(tmp_path, stats(tmp_path, listed), check=True)
    assert len(looks) == 8 + 6


def test_the_splits_of_one_folder_share_its_index(tmp_path, looks):
    photographs(tmp_path, per_class=10, classes=("ant", "bee"))
    for split, seen in (("test", 4), ("train", 20), ("test", 20), ("train", 20)):
        load_dataset(ExternalData(str(tmp_path), **RESIZED), split)
        assert len(looks) == seen


def test_other_pixels_of_the_same_length_and_time_are_noticed(tmp_path, looks):
    photographs(tmp_path / "test", suffix="bmp", sizes=((20, 24),))
    data = load_dataset(ExternalData(str(tmp_path), **RESIZED))
    file = tmp_path / "test" / "ant" / "0001.bmp"
    facts = file.stat()
    picture(55, (20, 24)).save(file)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as rsync and tar leave it
    assert file.stat().st_size == facts.st_size
    with pytest.raises(RobenchError, match=r"0001\.bmp: it has changed since it was looked at"):
        data.pixels(slice(None))
    again = load_dataset(ExternalData(str(tmp_path), **RESIZED))
    assert again.digest != data.digest and looks[8:] == ["0001.bmp"]
    again.pixels(slice(None))


def test_a_process_waits_for_the_one_that_makes_the_index_and_says_so_but_not_for_ever(tmp_path, monkeypatch, capsys):
    with file_index.alone(tmp_path / "made.npz"):
        waiting = threading.Thread(target=lambda: file_index.alone(tmp_path / "made.npz").__enter__())
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive() and "another process makes" in capsys.readouterr().err
    waiting.join(10)
    assert not waiting.is_alive()
    monkeypatch.setattr(file_index, "LONGEST_WAIT", 0.3)
    with file_index.alone(tmp_path / "other.npz"), file_index.alone(tmp_path / "other.npz"):
        pass


def test_an_index_that_is_damaged_or_cannot_be_written_costs_only_time(tmp_path, looks, capsys):
    photographs(tmp_path, classes=("ant",))
    listed = [f"ant/{place:04}.jpg" for place in range(4)]
    first = index_files(tmp_path, stats(tmp_path, listed))
    (kept,) = (file_index.cache_folder() / "indices").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(index_files(tmp_path, stats(tmp_path, listed)).sha256, first.sha256) and len(looks) == 8
    kept.unlink()
    kept.mkdir()
    assert np.array_equal(index_files(tmp_path, stats(tmp_path, listed)).sha256, first.sha256)
    assert "the pictures will be looked at again next time" in capsys.readouterr().err


def test_what_was_looked_at_before_a_damaged_file_is_kept(tmp_path, looks):
    photographs(tmp_path, classes=("ant",))
    damage(tmp_path / "ant" / "0003.jpg", "text")
    listed = [f"ant/{place:04}.jpg" for place in range(4)]
    for seen in (4, 5):
        with pytest.raises(RobenchError, match="1 of 4 pictures"):
            index_files(tmp_path, stats(tmp_path, listed))
        assert len(looks) == seen


def test_small_folders_are_held_and_large_ones_stored_with_the_same_pixels(tmp_path, monkeypatch):
    photographs(tmp_path / "test", suffix="png", sizes=((14, 14),))
    held = load_dataset(str(tmp_path))
    monkeypatch.setattr(folder, "HELD_BYTES", 100)
    stored = load_dataset(str(tmp_path))
    assert not held.is_stored and stored.is_stored
    assert torch.equal(stored.pixels(slice(None)), held.images) and torch.equal(stored.labels, held.labels)
    assert str(stored) == str(held)


def test_stored_images_go_to_another_process(photos):
    data = load_dataset(ExternalData(str(photos), **RESIZED))
    sent = pickle.loads(pickle.dumps(data.images))
    assert sent.is_here() and torch.equal(sent.read([3, 1]), data.images.read([3, 1]))
    photos.rename(photos.with_name("gone"))
    assert not sent.is_here()


def write_parquet(path, contents, labels):
    import pyarrow
    import pyarrow.parquet

    rows = [{"bytes": content, "path": None} for content in contents]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows, "label": labels}), path, row_group_size=3)


def test_pictures_in_parquet_files_are_unpacked_once_and_read_alike(tmp_path, photos, capsys):
    pytest.importorskip("pyarrow")
    data = load_dataset(ExternalData(str(photos), **RESIZED))
    files = [data.images.name(place) for place in range(len(data))]
    contents = [open(file, "rb").read() for file in files]  # noqa: SIM115
    (tmp_path / "hub").mkdir()
    write_parquet(tmp_path / "hub" / "test-0.parquet", contents[:5], data.labels[:5].tolist())
    write_parquet(tmp_path / "hub" / "test-1.parquet", contents[5:], data.labels[5:].tolist())
    hub = load_dataset(ExternalData(str(tmp_path / "hub"), **RESIZED))
    assert "is unpacked once" in capsys.readouterr().err
    assert hub.is_stored and sorted(map(hash_of, hub.pixels(slice(None)))) == sorted(map(hash_of, data.pixels(slice(None))))
    again = load_dataset(ExternalData(str(tmp_path / "hub"), **RESIZED))
    (kept,) = (file_index.cache_folder() / "unpacked").glob("*.pictures")
    assert not capsys.readouterr().err and again.digest == hub.digest
    sent = pickle.loads(pickle.dumps(hub.images))
    assert sent.is_here() and torch.equal(sent.read([2, 0]), hub.pixels(torch.tensor([2, 0])))
    write_parquet(tmp_path / "hub" / "test-1.parquet", [*contents[5:7], contents[0]], data.labels[5:].tolist())
    load_dataset(ExternalData(str(tmp_path / "hub"), **RESIZED))
    (replaced,) = (file_index.cache_folder() / "unpacked").glob("*.pictures")
    assert replaced != kept
    write_parquet(tmp_path / "hub" / "test-1.parquet", [*contents[5:7], b"no picture"], data.labels[5:].tolist())
    with pytest.raises(RobenchError, match="cannot read the image in .*hub, row 7: no picture that PIL can read"):
        load_dataset(ExternalData(str(tmp_path / "hub"), **RESIZED))


def hash_of(pixels):
    return hash(pixels.numpy().tobytes())


def test_the_order_of_a_folder_is_that_of_version_0_1():
    def first(labels):
        random, rank = np.random.RandomState(0), {}
        for label in sorted(set(labels)):
            places = [place for place, each in enumerate(labels) if each == label]
            for turn, place in enumerate(random.permutation(places)):
                rank[int(place)] = (turn, label)
        return sorted(rank, key=rank.__getitem__)

    random.seed(0)
    for n, n_classes in ((1, 1), (7, 2), (300, 13)):
        labels = [random.randrange(n_classes) for _ in range(n)]
        assert balanced_order(labels) == first(labels)


@pytest.mark.parametrize("text", ["16", "16x12", "none"])
def test_a_side_is_read_as_it_is_written(text):
    assert parse_side(text, "crop") == {"16": 16, "16x12": (16, 12), "none": None}[text]


# ImageNet

OFFICIAL = "ILSVRC2012_val_{:08}.JPEG"


def imagenet_by_synset(root, classes=1000):
    content = jpeg(1)
    for place, synset in enumerate(synsets()[:classes]):
        (root / synset).mkdir(parents=True)
        (root / synset / OFFICIAL.format(place + 1)).write_bytes(content)


def jpeg(place, size=(30, 40)):
    buffer = io.BytesIO()
    picture(place, size).save(buffer, "JPEG")
    return buffer.getvalue()


def test_imagenet_in_folders_of_synsets_is_in_torchvisions_order(tmp_path):
    imagenet_by_synset(tmp_path / "imagenet" / "val")
    data = load_dataset("imagenet", data_dir=tmp_path)
    assert len(data) == 1000 and sorted(data.labels.tolist()) == list(range(1000))
    assert max(data.labels[:100]) > 900  # the first hundred are not the first hundred classes, which are animals
    assert data.classes[0] == "n01440764 tench" and data.classes[999].startswith("n15075141 ")
    assert data.image_shape == (3, 224, 224) and data.default_eps == {"Linf": "4/255", "L2": "3.0"}
    assert (
        data.reading["preprocessing"]
        == "short side to 256 (bilinear), then the centre 224x224, as ImageNet's usual evaluation says"
    )
    small = load_dataset(ExternalData("imagenet", resize="16", crop="14"), data_dir=tmp_path)
    assert small.image_shape == (3, 14, 14)
    (tmp_path / "imagenet" / "val" / synsets()[5] / OFFICIAL.format(6)).unlink()
    (tmp_path / "imagenet" / "val" / synsets()[5]).rmdir()
    with pytest.raises(RobenchError, match=r"has 999 of ImageNet's 1,000 classes, n01496331 is missing.*`classes=imagenet`"):
        load_dataset("imagenet", data_dir=tmp_path)


def flat(root, n=6):
    root.mkdir(parents=True)
    for number in range(1, n + 1):
        (root / OFFICIAL.format(number)).write_bytes(jpeg(number))
    return [(7 * number) % 1000 for number in range(1, n + 1)]


def by_number(data):
    return {int(data.images.name(place)[-13:-5]): int(label) for place, label in enumerate(data.labels)}


def test_flat_imagenet_is_labelled_by_kaggles_file_or_by_the_devkit(tmp_path):
    from scipy.io import savemat

    labels = flat(tmp_path / "imagenet" / "val")
    with pytest.raises(RobenchError, match="neither folders named by synsets .* nor ILSVRC2012_val_.* with LOC_val_solution.csv"):
        load_dataset("imagenet", data_dir=tmp_path)
    # the devkit numbers classes in an order of its own
    shuffled = random.Random(0).sample(range(1000), 1000)
    meta = np.array(
        [(place + 1, synsets()[label]) for place, label in enumerate(shuffled)] + [(1001, "n00001740")],
        dtype=[("ILSVRC2012_ID", object), ("WNID", object)],
    )
    devkit = tmp_path / "imagenet" / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{shuffled.index(label) + 1}\n" for label in labels))
    with pytest.raises(RobenchError, match="which meta.mat beside it names; copy that too"):
        load_dataset("imagenet", data_dir=tmp_path)
    savemat(devkit / "meta.mat", {"synsets": meta})
    wanted = {number + 1: label for number, label in enumerate(labels)}
    assert by_number(load_dataset("imagenet", data_dir=tmp_path)) == wanted
    with open(tmp_path / "imagenet" / "LOC_val_solution.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "PredictionString"])
        writer.writerows([f"ILSVRC2012_val_{number:08}", f"{synsets()[label + 1]} 1 2 3 4 "] for number, label in wanted.items())
    assert by_number(load_dataset("imagenet", data_dir=tmp_path)) == {number: label + 1 for number, label in wanted.items()}


def test_robustbenchs_pictures_come_in_the_order_of_its_list(tmp_path, monkeypatch):
    from robench.data import imagenet

    flat(tmp_path / "imagenet" / "val")
    rows = [[f"ILSVRC2012_val_{number:08}", f"{synsets()[number]} 1 2 3 4"] for number in range(1, 7)]
    (tmp_path / "imagenet" / "LOC_val_solution.csv").write_text("\n".join(",".join(row) for row in rows))
    monkeypatch.setattr(imagenet, "_robustbench_list", lambda: [OFFICIAL.format(5), OFFICIAL.format(2)])
    data = load_dataset(ExternalData("imagenet", subset="robustbench"), data_dir=tmp_path)
    assert data.labels.tolist() == [5, 2] and data.name == "imagenet-robustbench"
    again = load_dataset(as_recorded({"name": data.name, **data.reading}), data_dir=tmp_path)
    assert again.digest == data.digest
    monkeypatch.setattr(imagenet, "_robustbench_list", lambda: [OFFICIAL.format(9)])
    with pytest.raises(RobenchError, match=r"1 of its 1 pictures are missing, the first is ILSVRC2012_val_00000009\.JPEG"):
        load_dataset(ExternalData("imagenet", subset="robustbench"), data_dir=tmp_path)
    with pytest.raises(RobenchError, match="`subset=tiny`: expected robustbench"):
        load_dataset(ExternalData("imagenet", subset="tiny"), data_dir=tmp_path)


def test_imagenet_that_is_not_there_says_what_is_expected(tmp_path):
    with pytest.raises(
        RobenchError, match=r"no ImageNet in .*: expected .*val with folders n01440764 to n15075141, or ILSVRC2012_val_"
    ):
        load_dataset("imagenet", data_dir=tmp_path)
    with pytest.raises(RobenchError, match="validation pictures only"):
        load_dataset("imagenet", "train", data_dir=tmp_path)


def test_imagenets_classes_are_a_thousand_and_no_two_alike():
    assert len(set(synsets())) == len(set(names())) == 1000 and list(synsets()) == sorted(synsets())


# From Python


class Small(torch.nn.Module):
    """Two classes by the mean of the first channel."""

    def forward(self, images):
        value = images[:, 0].mean((1, 2))
        return torch.stack([value, 1 - value], 1) * 10


def pairs(n=40, dtype="uint8"):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 6, 6), generator=generator, dtype=torch.uint8)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0, 255
    labels = (images[:, 0].float().mean((1, 2)) < 127.5).long()
    return (images if dtype == "uint8" else images.float() / 256), labels


class Own(torch.utils.data.Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, place):
        return self.images[place], int(self.labels[place])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("loaded", [False, True], ids=["data set", "loader"])
def test_what_is_more_than_memory_should_hold_is_evaluated_from_a_file(monkeypatch, dtype, loaded):
    from robench import evaluate
    from robench.data import in_memory

    images, labels = pairs(dtype=dtype)
    own = Own(images, labels)
    source = torch.utils.data.DataLoader(own, batch_size=7) if loaded else own
    spooled, gathered = [], in_memory.Spool.images
    monkeypatch.setattr(in_memory.Spool, "images", lambda spool: spooled.append(spool) or gathered(spool))
    held = evaluate(Small(), dataset=source, suite="fgsm", eps="4/255", n=30)
    assert not spooled
    monkeypatch.setattr(in_memory, "HELD_BYTES", images[:10].nbytes)
    monkeypatch.setattr(in_memory, "BLOCK_BYTES", images[:5].nbytes)
    stored = evaluate(Small(), dataset=source, suite="fgsm", eps="4/255", n=30)
    assert len(spooled) == 1 and stored.verdicts.equals(held.verdicts) and len(held.verdicts) == 2 * 30


def test_a_data_set_that_raises_in_the_middle_leaves_no_file(tmp_path, monkeypatch):
    from robench.data import in_memory

    class Broken(Own):
        def __getitem__(self, place):
            if place == 30:
                raise OSError("no such image")
            return super().__getitem__(place)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images, labels = pairs()
    monkeypatch.setattr(in_memory, "HELD_BYTES", images[:10].nbytes)
    monkeypatch.setattr(in_memory, "BLOCK_BYTES", images[:5].nbytes)
    with pytest.raises(RobenchError, match="no such image"):
        in_memory.gather(Broken(images, labels))
    assert not list(tmp_path.iterdir())


def test_a_spool_turns_to_floats_when_the_first_float_comes_and_leaves_no_file(tmp_path, monkeypatch):
    from robench.data.spool import Spool

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    whole, spool = torch.randint(0, 256, (600, 3, 4, 5), dtype=torch.uint8), Spool()
    spool.add(whole[:300])
    spool.add(whole[300:])
    spool.add(torch.rand(2, 3, 4, 5))
    images = spool.images()
    assert images.shape == (602, 3, 4, 5) and torch.equal(images[:600], whole.float() / 255) and not list(tmp_path.iterdir())
    with pytest.raises(RobenchError, match="images differ in size"):
        again = Spool()
        again.add(whole)
        again.add(whole[:, :, :3])


@pytest.mark.filterwarnings("ignore")
def test_evaluate_takes_a_path_with_its_reading_and_refuses_two_sources(photos, tmp_path):
    from robench import evaluate

    asked = ExternalData(str(photos), **RESIZED)
    result = evaluate(Small(), dataset=asked, suite="fgsm", out=tmp_path / "run")
    assert len(result.verdicts) == 2 * 8
    images, labels = pairs()
    with pytest.raises(RobenchError, match="`images` with `labels`, or `dataset`, not both"):
        evaluate(Small(), images, labels, dataset=asked)
    with pytest.raises(RobenchError, match="give `images` with `labels`, or `dataset`$"):
        evaluate(Small())
    with pytest.raises(RobenchError, match="digits has 10 classes, but the model has 2 outputs"):
        evaluate(Small(), dataset="digits")


def test_what_is_known_of_a_picture_takes_a_hundred_bytes_and_is_found_again_among_very_many(tmp_path, looks, monkeypatch):
    """200,000 files that are not there, but two: only those are looked at, and the rest are taken from the index."""
    photographs(tmp_path, classes=("ant",), per_class=2)
    there = stats(tmp_path, ["ant/0000.jpg", "ant/0001.jpg"])
    many = [Stat(f"n01440764/ILSVRC2012_val_{place:08}.JPEG", 100_000 + place, place, place) for place in range(200_000)]
    known = file_index._empty(many)
    known.height[:], known.width[:], known.decoded[:] = 375, 500, True
    path = file_index.cache_folder() / "indices" / f"{hashlib.sha256(os.fsencode(tmp_path.resolve())).hexdigest()[:24]}.npz"
    file_index._keep(known, None, path)
    index = index_files(tmp_path, [*reversed(many), *there])
    assert sorted(looks) == ["0000.jpg", "0001.jpg"] and index.sizes(upright=True)[375, 500] == 200_000
    held = sum(getattr(index, each.name).nbytes for each in fields(index))
    assert held / len(index) < 120
