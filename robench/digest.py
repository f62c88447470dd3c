"""Names that follow from content alone, the same in every process and on every device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, CodeType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names; the same on every device."""
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in _with_values(tensor):
            total.update(part.cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _with_values(tensor: Tensor) -> list[Tensor]:
    """What holds the numbers of a tensor: itself, of a sparse one its indices and values, and nothing of one without values, or of a kind
    that is none of these."""
    import torch

    if tensor.is_meta:
        return []
    if tensor.is_quantized:
        return [tensor.dequantize()]
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor.coalesce().indices(), tensor.coalesce().values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []


def owner_of(function: BuiltinFunctionType) -> Any:
    """The object that a built-in method was taken of, as of ``table.get``; None of a plain function, and of a random generator's."""
    owner = getattr(function, "__self__", None)
    is_generator = type(owner).__module__.partition(".")[0] in ("random", "numpy") and hasattr(type(owner), "seed")
    return None if isinstance(owner, ModuleType | type) or is_generator else owner


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of every function inside it, each before those inside."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from codes_of(each)
