"""One file per trained model: safetensors, its description as JSON in the header. Loading executes no code.

The file may lie compressed: ``MODEL.safetensors.xz`` is read where it is named, and also where ``MODEL.safetensors`` is named and not there.
"""

from __future__ import annotations

import io
import json
import lzma
import struct
from dataclasses import fields
from operator import index
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from robench.files import write_atomically
from robench.formats import HEADER, Format, recognise
from robench.types import Checkpoint, RobenchError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
_KEY = "robench"  # safetensors metadata maps text to text, so everything of ours is JSON under one key
XZ = ".xz"
MEMORY = 1 << 30  # bytes that unpacking may take; xz -9 needs 65 MiB
FREELY = 1 << 30  # bytes to which a file may unpack, however small it is
TIGHTEST = 50  # times its size, to which a larger one may; float32 weights pack to nine tenths, rounded ones to half or a third
_PIECE = 1 << 16  # bytes read at once
_XZ_END = b"YZ"  # the last two bytes of a whole .xz file, https://tukaani.org/xz/xz-file-format.txt, section 2.1.2.4


def checkpoint_file(path: Path) -> Path:
    """The file that a checkpoint's path means: itself, or where only that is there, the compressed one beside it."""
    path = Path(path)
    packed = path.with_name(path.name + XZ)
    return packed if path.suffix == ".safetensors" and not path.exists() and packed.is_file() else path


def checkpoint_name(path: Path) -> str:
    """What a model is called after its file: ``cifar10-single-0`` of ``checkpoints/cifar10-single-0.safetensors.xz``."""
    path = Path(path)
    return Path(path.stem).stem if path.suffix == XZ else path.stem


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, atomically; compressed where the path ends in .xz."""
    from safetensors.torch import save

    described = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint) if f.name != "weights"}
    described |= {"format": FORMAT, "digest": checkpoint.digest}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    content = save(weights, metadata={_KEY: json.dumps(described, sort_keys=True)})
    write_atomically(path, lzma.compress(content) if Path(path).suffix == XZ else content)


def read_description(path: Path) -> dict[str, Any]:
    """What a checkpoint says about itself, without reading its weights or importing torch.

    Raises:
        RobenchError: the file is missing, no safetensors file, truncated, not written by robench, or packed tighter than weights are.
    """
    path = checkpoint_file(path)
    if not path.exists():
        raise RobenchError(f"no checkpoint at {path}; train one with `robench train`, or check the path")
    if not path.is_file():
        raise RobenchError(f"{path} is not a file; `ckpt` takes one .safetensors file")
    return _check_description(path, _read_header(path).description)


class Header(NamedTuple):
    """The description as text, None where there is none, and the bytes that the whole file has, uncompressed."""

    description: str | None
    size: int


def _read_header(path: Path) -> Header:
    """What the header says, of a file that is whole."""
    size, packed = path.stat().st_size, path.suffix == XZ
    try:
        with _opened(path) as file:
            start = file.read(9)
            # A safetensors file begins with the length of its JSON header, whose first byte may well look like a pickle's.
            if start[8:] != b"{" and (start[:4] == b"PK\x03\x04" or start[:1] == b"\x80"):
                raise RobenchError(f"{path} {_not_ours(path)}")
            if len(start) < 9:
                what = "empty" if size == 0 else f"no checkpoint, or the beginning of one ({size} bytes)"
                raise RobenchError(f"{path} is {what}; copy it again, or check the path")
            (length,) = struct.unpack("<Q", start[:8])
            if length > min(HEADER if packed else size, HEADER):
                raise RobenchError(f"{path} is no safetensors file, or truncated ({size} bytes); copy it again")
            header = json.loads((start[8:] + file.read(max(length, 1) - 1))[:length])
            end = max((index(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"), default=0)
            if end < 0:
                raise ValueError
            text = header.get("__metadata__", {}).get(_KEY)
    except (lzma.LZMAError, EOFError) as error:
        _refuse_greedy(path, error)
        raise RobenchError(f"{path} is no .xz file, or truncated or damaged ({error}); copy it again") from None
    except OSError as error:
        raise RobenchError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise RobenchError(f"{path} is no safetensors file: its header is not readable") from None
    if packed and not _ends_whole(path):
        raise RobenchError(f"{path} is truncated or damaged: {size} bytes, and not the end of a .xz file; copy it again")
    if packed and 8 + length + end > max(FREELY, TIGHTEST * size):
        raise RobenchError(
            f"{path} has {size:,} bytes and promises to unpack to {8 + length + end:,}, more than weights do; if you trust it, unpack it with `xz -d` and "
            "name the .safetensors file"
        )
    if not packed and 8 + length + end != size:
        raise RobenchError(f"{path} is truncated or damaged: {size} bytes, expected {8 + length + end}; copy it again")
    return Header(text, 8 + length + end)


def _opened(path: Path) -> IO[bytes]:
    return io.BufferedReader(_Unpacked(path)) if path.suffix == XZ else open(path, "rb")


class _Unpacked(io.RawIOBase):
    """What an .xz file holds, in as much memory as ``MEMORY``, which ``lzma.open`` does not bound."""

    def __init__(self, path: Path) -> None:
        self._file = io.FileIO(path)
        self._stream = lzma.LZMADecompressor(memlimit=MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part: bytes | None = b""
        while part == b"":
            part = self._next(len(buffer))
        part = part or b""
        buffer[: len(part)] = part
        return len(part)

    def _next(self, most: int) -> bytes | None:
        """Up to so many bytes, perhaps none yet, or None at the end. A file may hold several streams, with zeros between them."""
        if self._stream.eof:
            piece = self._stream.unused_data.lstrip(b"\0")
            while not piece:
                read = self._file.read(_PIECE)
                if not read:
                    return None
                piece = read.lstrip(b"\0")
            self._stream = lzma.LZMADecompressor(memlimit=MEMORY)
            return self._stream.decompress(piece, most)
        piece = self._file.read(_PIECE) if self._stream.needs_input else b""
        if self._stream.needs_input and not piece:
            raise EOFError("it ends before its last block does")
        return self._stream.decompress(piece, most)

    def close(self) -> None:
        self._file.close()
        super().close()


def _refuse_greedy(path: Path, error: Exception) -> None:
    """Names the reason where unpacking needs too much memory."""
    if isinstance(error, lzma.LZMAError) and "memory" in str(error).lower():
        raise RobenchError(
            f"{path} asks for more than {MEMORY >> 30} GiB of memory to be unpacked; if you trust it, unpack it with `xz -d` and name the .safetensors file"
        ) from None


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-len(_XZ_END), 2)
        return file.read() == _XZ_END


def _not_ours(path: Path) -> str:
    """What a zip or pickled file is, and the option that takes it."""
    kind = recognise(path)
    if kind in Format.PROGRAMS:
        return f"is {kind}, not a checkpoint of robench; where you trust its source: `model={path}` and `trust`"
    return (
        "is a pickled file (torch.save); loading one can execute code, so `ckpt` does not. Where it is a state dict, name its "
        f"architecture: `model=torchvision:NAME` `weights={path}` (or timm:NAME; robench reads plain tensors only); else build the model "
        "in a Python file: `model=FILE.py:FACTORY`"
    )


def _check_description(path: Path, text: str | None) -> dict[str, Any]:
    if text is None:
        raise RobenchError(
            f"{path} is a safetensors file, but not a robench checkpoint (no description in its header); to attack a model that "
            f"robench did not train, name its architecture: `model=torchvision:NAME` `weights={path}` (or timm:NAME, FILE.py:FACTORY)"
        )
    try:
        described = json.loads(text)
        if not isinstance(described, dict):
            raise TypeError
        missing = {f.name for f in fields(Checkpoint)} - {"weights"} - set(described)
    except (ValueError, TypeError):
        raise RobenchError(f"the description in the header of {path} is damaged; copy the file again") from None
    if described.get("format") != FORMAT:
        raise RobenchError(f"{path} has checkpoint format {described.get('format')!r}, this robench reads {FORMAT}; update robench")
    if missing:
        raise RobenchError(f"{path}: its description lacks {', '.join(sorted(missing))}; it was not written by robench")
    return described


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint and checks that its weights are the ones that were saved.

    Raises:
        RobenchError: see ``read_description``; or the weights do not match the digest in the header.
    """
    from safetensors import SafetensorError

    path = checkpoint_file(path)
    described = read_description(path)
    try:
        weights = _read_weights(path)
    except (SafetensorError, OSError, KeyError, lzma.LZMAError, EOFError) as error:
        _refuse_greedy(path, error)
        raise RobenchError(f"{path} is no readable safetensors file: {error}; copy it again") from None
    digest = described.pop("digest", None)
    described.pop("format")
    for name in ("classes", "image_shape", "history"):
        described[name] = tuple(described[name])
    checkpoint = Checkpoint(**{f.name: described[f.name] for f in fields(Checkpoint) if f.name != "weights"}, weights=weights)
    if checkpoint.digest != digest:
        raise RobenchError(
            f"{path} was changed after it was saved: its weights have digest {checkpoint.digest[:12]}, its header says "
            f"{str(digest)[:12]}; get the original file"
        )
    return checkpoint


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load, load_file

    if path.suffix != XZ:
        return load_file(path)
    size = _read_header(path).size
    with _opened(path) as file:
        content = file.read(size + 1)  # no more than the header promises, whatever a hostile file unpacks to
    if len(content) != size:
        raise RobenchError(
            f"{path} is truncated or damaged: it unpacks to other than the {size} bytes that its header promises; copy it again"
        )
    return load(content)
