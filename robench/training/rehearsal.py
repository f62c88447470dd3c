"""A variant's loss, tried on random outputs before the training: what is spelt wrong, and a head that would learn nothing, show at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields

import torch
from torch import Generator, Tensor

from robench.data import did_you_mean
from robench.models.multihead import MAIN_HEAD
from robench.models.seeded import seeded
from robench.training.loop import drawn, losses_of
from robench.training.objectives import OBJECTIVES, Outputs, Targets, Terms
from robench.training.recipes import RECIPES
from robench.training.spec import TrainSpec
from robench.types import Dataset, RobenchError

SCALES = (1.0, 30.0)  # of the outputs: a loss may leave out what is not certain


class _Named(dict[str, Tensor]):
    """Tensors by name, which say what there is where one is asked for that is not.

    Args:
        tensors: by name.
        message: of the error, with places for the name, for one that is spelt alike, and for all that there are.
    """

    def __init__(self, tensors: Mapping[str, Tensor], message: str) -> None:
        super().__init__(tensors)
        self.message = message

    def __missing__(self, name: str) -> Tensor:
        raise RobenchError(self.message.format(name=name, alike=did_you_mean(str(name), self), known=_listed(self)))


def rehearse(spec: TrainSpec, train_set: Dataset, device: str) -> None:
    """Calls a variant's loss as the first step of the training will, on outputs that no model made; changes no random state.

    Args:
        spec: what is to be trained.
        train_set: whose first batch gives the targets.
        device: where to train.

    Raises:
        RobenchError: there is no main head; the loss asks for a head, a target or a setting that is not there; a term is no tensor of one
            number; or a head is used by no term.
    """
    heads, names = spec.heads(train_set), f"variant {spec.arch!r}"
    if MAIN_HEAD not in heads:
        raise RobenchError(f"{names} has no head {MAIN_HEAD!r}{did_you_mean(MAIN_HEAD, heads)}; its heads: {_listed(heads)}")
    pixels = train_set.pixels(slice(0, spec.batch_size)).to(device)
    labels = {head: each[: spec.batch_size].to(device) for head, each in OBJECTIVES[spec.arch].targets(train_set).items()}
    generator = Generator(device).manual_seed(0)
    unused, losses = list(heads), dict[str, Tensor]()
    with seeded(0, torch.device(device)), torch.enable_grad():
        images, made = drawn(spec, pixels, labels, generator, mirror=train_set.mirror)
        targets = _Named(made, f"the loss of {names} reads the targets of {{name!r}}, which it has not{{alike}}; it has {{known}}")
        for scale in SCALES:
            leaves = {
                head: torch.randn(len(images), entry["width"], device=device, requires_grad=True) for head, entry in heads.items()
            }
            outputs = {head: scale * leaf for head, leaf in leaves.items()}
            read = _Named(
                outputs, f"the loss of {names} reads the head {{name!r}}, which it has not{{alike}}; its heads: {{known}}"
            )
            losses = _losses(spec, read, targets)
            reached = _reached(losses, leaves)
            unused = [head for head in unused if head not in reached]
            if not unused:
                return
    head = unused[0]
    raise RobenchError(
        f"no term of the loss of {names} uses its head {head!r}, which would learn nothing; its terms: {_listed(losses)}; its heads: "
        f"{_listed(heads)}"
    )


def _losses(spec: TrainSpec, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
    """The terms, where each has a weight: one of 0 is the user's choice, and none of the variant's."""
    terms = Terms(1.0, 1.0, spec.temperature, RECIPES[spec.recipe].sum_views)
    try:
        losses = losses_of(spec.arch, outputs, targets, terms)
    except AttributeError as error:
        if error.obj is not terms:
            raise
        name, known = str(error.name), [each.name for each in fields(Terms)]
        raise RobenchError(
            f"the loss of variant {spec.arch!r} reads terms.{name}, which is not there{did_you_mean(name, known)}; there are "
            f"{_listed(known)}"
        ) from None
    for name, term in losses.items():
        if not isinstance(term, Tensor) or term.numel() != 1:
            got = f"a tensor of shape {tuple(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
            raise RobenchError(
                f"the loss of variant {spec.arch!r} returned {got} as its term {name!r}, expected a tensor of one number"
            )
    return dict(losses)


def _reached(losses: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> set[str]:
    """The heads to which some term passes a gradient, were it of zeros."""
    total = torch.stack([term.reshape(()) for term in losses.values()]).sum()
    if not total.requires_grad:
        return set()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {head for head, gradient in zip(leaves, gradients, strict=True) if gradient is not None}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(str, names))
