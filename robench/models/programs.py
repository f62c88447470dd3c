"""Models that are programs in a file, TorchScript or torch.export: run only with --trust."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from robench.formats import Format, recognise
from robench.models.loaded_model import LoadedModel
from robench.types import Dataset, ExternalModel, RobenchError


class Program(nn.Module):
    """A loaded program: eval mode as it was saved, any number of images whatever number it was exported for.

    Args:
        program: takes images, returns logits.
        batch: the only number of images that it takes, None for any.
    """

    def __init__(self, program: nn.Module, batch: int | None = None) -> None:
        super().__init__()
        self.program, self.batch = program, batch
        for module in program.modules():  # exported ones say that they train, whatever their graph does, and refuse eval()
            module.training = False
        for (
            parameter
        ) in program.parameters():  # a copy of a script's trainable one is no leaf, and cannot be frozen any more (torch 2.14)
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if self.batch is None or len(images) == self.batch:
            return self.program(images)
        parts = [self.program(_filled(part, self.batch))[: len(part)] for part in images.split(self.batch)]
        return torch.cat(parts)

    def train(self, mode: bool = True) -> Program:
        """Stays as it is: exported modules refuse to change their mode."""
        self.training = False
        return self


def _filled(images: Tensor, n: int) -> Tensor:
    """``images`` repeated to ``n``."""
    return images[torch.arange(n, device=images.device) % len(images)]


def load_program(external: ExternalModel, dataset: Dataset) -> LoadedModel:
    """The program in a ``.pt``, ``.ts`` or ``.pt2`` file.

    Raises:
        RobenchError: it is no program (said what, and which option takes it), it may not be run, or it cannot be loaded.
    """
    path = Path(external.reference)
    kind = recognise(path)
    if kind not in Format.PROGRAMS:
        raise RobenchError(f"`model={path}` is {kind}{_instead(kind, path)}")
    if not external.trust:
        raise RobenchError(
            f"`model={path}` is {kind}: using it runs code that came with the file; add `trust` where you trust its source, or rebuild "
            "the model from its weights: `model=torchvision:NAME` `weights=FILE`"
        )
    content = path.read_bytes()
    try:
        program = _torchscript(path) if kind == Format.TORCHSCRIPT else _exported(path, dataset)
    except RobenchError:
        raise
    except Exception as error:  # somebody else's program may raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RobenchError(
            f"`model={path}`: torch {torch.__version__} cannot load this program ({type(error).__name__}: {first[:150]}); save it "
            "again with this version"
        ) from None
    return LoadedModel(program, path.stem, {"program": kind}, code=content)


def _instead(kind: str, path: Path) -> str:
    if kind == Format.CHECKPOINT:
        return f": use `ckpt={path}`"
    if kind in (Format.SAFETENSORS, *Format.PICKLES):
        return (
            f", that is weights, or a whole pickled model; name the architecture: `model=torchvision:NAME` `weights={path}`, "
            f"`model=timm:NAME` `weights={path}`, or `model=FILE.py:FACTORY` `weights={path}`"
        )
    return {
        Format.HTML: ": the download failed and saved the server's answer; download it again",
        Format.LFS: ": fetch the content with `git lfs pull`",
    }.get(kind, "; expected a program of TorchScript or torch.export; `robench list models` shows every way")


def _torchscript(path: Path) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that TorchScript is deprecated is not the attacker's to mend
        return Program(torch.jit.load(str(path), map_location="cpu").eval())


def _exported(path: Path, dataset: Dataset) -> nn.Module:
    exported = torch.export.load(path)
    refuse_training_mode(exported, f"`model={path}`")
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    inputs = [placeholders[name].meta["val"] for name in exported.graph_signature.user_inputs if name in placeholders]
    if len(inputs) != 1 or inputs[0].ndim != 4:
        raise RobenchError(f"`model={path}` takes {len(inputs)} inputs, expected one batch of images (N, C, H, W)")
    size, shape = inputs[0].shape, dataset.image_shape
    if any(isinstance(side, int) and side != expected for side, expected in zip(size[1:], shape, strict=True)):
        raise RobenchError(f"`model={path}` was exported for images of shape {tuple(size[1:])}, {dataset.name} has {shape}")
    return Program(exported.module(), size[0] if isinstance(size[0], int) else None)


def refuse_training_mode(exported: torch.export.ExportedProgram, shown: str) -> None:
    """An exported program cannot change its mode any more: BatchNorm would use each batch's own statistics for ever.

    Raises:
        RobenchError: it was exported so; ``shown`` is what it is called.
    """
    ops = torch.ops.aten
    place = {ops.batch_norm.default: 5, ops.dropout.default: 2, ops._native_batch_norm_legit_functional.default: 5}
    for node in exported.graph.nodes:
        if node.target in place and len(node.args) > place[node.target] and node.args[place[node.target]] is True:
            raise RobenchError(f"{shown} was exported in training mode ({node.target}); call model.eval() first, export again")
