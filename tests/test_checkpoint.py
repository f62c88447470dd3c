import json
import lzma
import os
import pickle
import struct
import zlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from robench.checkpoint import checkpoint_name, load_checkpoint, read_description, save_checkpoint
from robench.digest import digest_tensors
from robench.files import write_atomically
from robench.models.multihead import MultiHead, rebuild
from robench.types import Checkpoint, RobenchError


@pytest.fixture
def checkpoint():
    heads = {"main": {"layers": "linear", "width": 10, "classes": 10}}
    torch.manual_seed(0)
    return Checkpoint(
        arch="single", backbone="small", dataset="digits", classes=tuple("0123456789"), image_shape=(3, 32, 32), heads=heads,
        preprocessing={}, recipe={"lr": 0.1}, seed=1, epochs=2, clean_accuracy={"main": 0.5}, history=({"main": 1.0},),
        versions={"torch": "x"}, weights=MultiHead("small", heads).state_dict(),
    )  # fmt: skip


@pytest.fixture
def saved(checkpoint, tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, checkpoint)
    return path


def test_round_trip_keeps_weights_and_description(checkpoint, saved):
    loaded = load_checkpoint(saved)
    assert loaded.digest == checkpoint.digest
    for name in ("arch", "backbone", "classes", "image_shape", "heads", "recipe", "history", "clean_accuracy"):
        assert getattr(loaded, name) == getattr(checkpoint, name)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(rebuild(loaded)(images)["main"], rebuild(checkpoint)(images)["main"])


@pytest.mark.parametrize("low_byte", [0x80, 0x50])
def test_a_header_length_that_looks_like_a_pickle_is_none(checkpoint, tmp_path, low_byte):
    path, padding = tmp_path / "model.safetensors", 0
    while True:
        save_checkpoint(path, replace(checkpoint, dataset="d" * (1 + padding)))
        (length,) = struct.unpack("<Q", path.read_bytes()[:8])
        if length % 256 == low_byte:
            break
        padding += 1
    assert load_checkpoint(path).digest == checkpoint.digest


def test_digest_sees_names_shapes_dtypes_and_bytes_but_not_order():
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    reference = digest_tensors(tensors)
    assert digest_tensors(dict(reversed(tensors.items()))) == reference
    for changed in (
        {"a": torch.zeros(3, 2), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3), "c": torch.ones(2)},
        {"a": torch.zeros(2, 3).double(), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3), "b": torch.tensor([1.0, 1.0000001])},
    ):
        assert digest_tensors(changed) != reference


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 1000, -1])
def test_a_truncated_file_is_called_that(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[:keep])
    with pytest.raises(RobenchError, match="empty|truncated|header is not readable"):
        load_checkpoint(saved)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_refused_and_not_executed(writer, tmp_path):
    path, crater = tmp_path / "model.safetensors", tmp_path / "crater"
    writer({"weight": Bomb(crater)}, path)
    with pytest.raises(RobenchError, match="pickled file.*can execute code.*`model=FILE.py:FACTORY`"):
        load_checkpoint(path)
    assert not crater.exists()


def test_a_foreign_safetensors_file_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(RobenchError, match="not a robench checkpoint.*`model=torchvision:NAME`"):
        load_checkpoint(path)


def test_a_changed_weight_is_caught_by_the_digest(saved):
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(bytes(content))
    with pytest.raises(RobenchError, match="was changed after it was saved"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b'{"a": 1}',
        b"[1, 2]",
        b"not json",
        b'{"__metadata__": {"robench": "{}"}}',
        b'{"__metadata__": {"robench": "[]"}}',
        b'{"a": {"data_offsets": [0, "x"]}}',
        b'{"a": {"data_offsets": [0, 4.5]}}',
        b'{"a": {"data_offsets": [0, Infinity]}}',
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_senseless_header_gives_one_message(tmp_path, header, packed):
    path = tmp_path / ("model.safetensors" + ".xz" * packed)
    content = struct.pack("<Q", len(header)) + header
    path.write_bytes(lzma.compress(content) if packed else content)
    with pytest.raises(RobenchError, match="model.safetensors"):
        load_checkpoint(path)


def test_absent_file_and_folder_are_told_apart(tmp_path):
    with pytest.raises(RobenchError, match="no checkpoint at"):
        read_description(tmp_path / "absent.safetensors")
    with pytest.raises(RobenchError, match="is not a file"):
        read_description(tmp_path)


def test_weights_that_do_not_fit_the_backbone_are_refused(checkpoint, tmp_path):
    with pytest.raises(RobenchError, match="weights do not fit its resnet18"):
        rebuild(replace(checkpoint, backbone="resnet18"))


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RobenchError, match="cannot write .*No space left on device.*kept"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_compressed_checkpoint_is_the_same_and_found_where_the_plain_one_is_named(checkpoint, tmp_path):
    plain, packed = tmp_path / "single-0.safetensors", tmp_path / "single-0.safetensors.xz"
    save_checkpoint(packed, checkpoint)
    assert packed.stat().st_size < sum(tensor.numel() * tensor.element_size() for tensor in checkpoint.weights.values())
    for named in (packed, plain):
        assert load_checkpoint(named).digest == checkpoint.digest
        assert read_description(named)["classes"] == list("0123456789")
        assert checkpoint_name(named) == "single-0"
    save_checkpoint(plain, replace(checkpoint, dataset="other"))
    assert read_description(plain)["dataset"] == "other"  # the file that is named comes before the one beside it


@pytest.mark.parametrize("keep", [0, 5, 40, 3000, -40, -1])
def test_a_truncated_compressed_file_is_called_that(checkpoint, tmp_path, keep):
    path = tmp_path / "model.safetensors.xz"
    save_checkpoint(path, checkpoint)
    path.write_bytes(path.read_bytes()[:keep])
    for read in (read_description, load_checkpoint):
        with pytest.raises(RobenchError, match="empty|truncated|damaged"):
            read(path)


def test_a_changed_byte_of_a_compressed_file_is_caught(checkpoint, tmp_path):
    path = tmp_path / "model.safetensors.xz"
    save_checkpoint(path, checkpoint)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RobenchError, match="copy it again"):
        load_checkpoint(path)


def test_a_compressed_file_unpacks_to_no_more_than_its_header_promises(checkpoint, tmp_path):
    path = tmp_path / "model.safetensors.xz"
    save_checkpoint(path, checkpoint)
    path.write_bytes(lzma.compress(lzma.decompress(path.read_bytes()) + bytes(50_000_000)))
    with pytest.raises(RobenchError, match="unpacks to other than"):
        load_checkpoint(path)


def test_what_is_no_compressed_file_or_no_checkpoint_inside_one_is_refused(tmp_path):
    path = tmp_path / "model.safetensors.xz"
    for content, said in ((b"text of some length", "no .xz file"), (lzma.compress(b"text of some length"), "no safetensors file")):
        path.write_bytes(content)
        with pytest.raises(RobenchError, match=said):
            read_description(path)


def promising(size, dictionary=1 << 20):
    """A packed file whose header promises so many bytes of weights, and has few."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": dictionary}]
    return lzma.compress(struct.pack("<Q", len(header)) + header + bytes(1000), filters=filters)


@pytest.mark.parametrize("end", [-1, -200])
@pytest.mark.parametrize("pack", [lzma.compress, bytes])
def test_a_file_whose_tensors_end_before_they_begin_is_refused(tmp_path, pack, end):
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, end]}}).encode()
    path = tmp_path / ("model.safetensors.xz" if pack is lzma.compress else "model.safetensors")
    path.write_bytes(pack(struct.pack("<Q", len(header)) + header + bytes(1000)))
    for read in (read_description, load_checkpoint):
        with pytest.raises(RobenchError, match="no safetensors file: its header is not readable"):
            read(path)


@pytest.mark.parametrize("read", [read_description, load_checkpoint])
def test_a_packed_file_that_promises_more_than_weights_do_is_refused(tmp_path, read):
    path = tmp_path / "model.safetensors.xz"
    path.write_bytes(promising(1 << 40))
    with pytest.raises(
        RobenchError, match=r"has \d+ bytes and promises to unpack to 1,099,511,\d+,\d+, more than weights do; .*`xz -d`"
    ):
        read(path)


@pytest.mark.parametrize("read", [read_description, load_checkpoint])
def test_a_packed_file_that_asks_for_much_memory_is_refused(tmp_path, read):
    path = tmp_path / "model.safetensors.xz"
    content = bytearray(promising(1000))
    # The dictionary's size is one byte of the block's header, behind 12 of the stream's; 36 is 1 GiB, 37 is 1.5 GiB (section 5.3.1).
    (size,) = struct.unpack("<B", content[12:13])
    content[16] = 37
    end = 12 + 4 * size
    content[end : end + 4] = struct.pack("<I", zlib.crc32(content[12:end]))
    path.write_bytes(content)
    with pytest.raises(RobenchError, match="asks for more than 1 GiB of memory to be unpacked; .*`xz -d`"):
        read(path)


def test_a_packed_file_may_hold_several_streams(saved, checkpoint, tmp_path):
    content, path = saved.read_bytes(), tmp_path / "packed.safetensors.xz"
    path.write_bytes(lzma.compress(content[:5]) + bytes(4) + lzma.compress(content[5:5000]) + lzma.compress(content[5000:]))
    assert load_checkpoint(path).digest == checkpoint.digest
