"""The first questions to somebody's module: which batches it takes, what it returns, whether something stays from pass to pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robench.models.batches import ANY, BatchRule, find_rule, own_copy
from robench.models.failures import fails_at_random, first_line
from robench.models.hidden import changeable
from robench.models.module_digest import TRAINED
from robench.models.output import MAIN_HEAD, describe
from robench.models.seeded import seeded
from robench.types import RobenchError

OTHER_FORMS: tuple[tuple[str, str, Callable[[Tensor], Any]], ...] = (
    ("channels last, (N, H, W, C)", "x.permute(0, 2, 3, 1)", lambda x: x.permute(0, 2, 3, 1).contiguous()),
    ("pixels in one row, (N, C * H * W)", "x.flatten(1)", lambda x: x.flatten(1)),
    ("float64", "x.double()", lambda x: x.double()),
    ("uint8 of 0 to 255", "(x * 255).round().to(torch.uint8)", lambda x: (x * 255).round().to(torch.uint8)),
    ("whole numbers of 0 to 255", "(x * 255).round().long()", lambda x: (x * 255).round().long()),
    ("NumPy arrays", "x.numpy()", lambda x: x.numpy()),
    ("rows in NumPy arrays", "x.flatten(1).numpy()", lambda x: x.flatten(1).numpy()),
    ("one channel", "x.mean(1, keepdim=True)", lambda x: x.mean(1, keepdim=True)),
    ("three channels", "x.expand(-1, 3, -1, -1)", lambda x: x.expand(-1, 3, -1, -1)),
    *(
        (
            f"images of {size}x{size}",
            f"torch.nn.functional.interpolate(x, size={size})",
            lambda x, size=size: F.interpolate(x, size=size),
        )
        for size in (32, 28, 64, 224, 299)
    ),
)


class FirstAnswer(NamedTuple):
    """Which batches a module takes, and what it returns for the smallest of them."""

    rule: BatchRule
    outputs: Any


def first_answer(module: nn.Module, inputs: Tensor) -> FirstAnswer:
    """Asks a module for the first time.

    Raises:
        RobenchError: it raises on one image and on any number of them, it raises at random, or what it returns are no outputs of images.
    """
    shapes: dict[int, tuple[int, ...]] = {}
    raised: dict[int, BaseException] = {}

    def complaint(size: int) -> str:
        try:
            outputs = _main(ask(module, own_copy(inputs[:1], size)))
        except RobenchError:
            raise
        except (Exception, SystemExit) as error:  # somebody else's model may raise anything, and leave
            if size in shapes:
                raise RobenchError(fails_at_random(error)) from error
            raised[size] = error
            return f"{type(error).__name__}: {first_line(error)}"
        if size in raised:
            raise RobenchError(fails_at_random(raised[size])) from raised[size]
        if isinstance(outputs, Tensor):
            shapes[size] = tuple(outputs.shape)
        return _no_output(outputs, size)

    with seeded(0, inputs.device):
        alone = complaint(1)
        rule = find_rule(complaint, pixels=inputs[0].numel()) if alone else ANY
        if rule is None or _misread(shapes):
            raise RobenchError(_refusal(module, inputs, shapes, alone))
        try:
            return FirstAnswer(rule, _main(ask(module, own_copy(inputs[:1], rule.size(1)))))
        except Exception as error:  # it answered the same before
            raise RobenchError(fails_at_random(error)) from error


@torch.no_grad()
def ask(module: nn.Module, inputs: Tensor) -> Any:
    """What a module returns for images of its own."""
    return module(inputs.clone())


def state_kept(module: nn.Module, inputs: Tensor, rule: BatchRule) -> tuple[str, ...]:
    """What to say of a module that answers otherwise after other images, though nothing random is drawn; nothing of every other one."""

    def answer(images: Tensor) -> Tensor:
        with seeded(0, inputs.device):
            return torch.as_tensor(_main(ask(module, own_copy(images, rule.size(1)))))

    try:
        before, first, after = changeable(module), answer(inputs[:1]), changeable(module)
        changed = [name for name, value in after.items() if before.get(name) != value]
        if not changed:
            return ()
        answer(1 - inputs[-1:])
        again = answer(inputs[:1])
    except Exception:  # somebody else's model may raise anything; whoever attacks it will hear of it
        return ()
    if torch.allclose(first, again, rtol=1e-4, atol=1e-4, equal_nan=True):
        return ()
    return (
        f"the model keeps something from pass to pass (in {', '.join(changed[:3])}), and answers otherwise afterwards: its verdicts hold for no "
        "pass but the one that they were read from; set it back at the beginning of forward",
    )


class Mode(NamedTuple):
    """Of a part its kind, whether it is in training mode, and the batches that it has taken statistics of, None where it takes none."""

    kind: str
    training: bool
    batches: int | None


def modes(module: nn.Module) -> dict[str, Mode]:
    """The mode of every part of a module, by its name."""
    found = {}
    for name, part in module.named_modules():
        taken = getattr(part, "num_batches_tracked", None) if isinstance(part, TRAINED) else None
        batches = int(taken) if isinstance(taken, Tensor) and taken.numel() == 1 else None
        training = getattr(part, "training", False)  # a frozen TorchScript program has no mode
        found[name] = Mode(type(part).__name__, training, batches)
    return found


def mode_changed(module: nn.Module, before: Mapping[str, Mode]) -> tuple[str, ...]:
    """What to say of a module that a pass has put into training mode, or that computed in it; nothing of every other one.

    Args:
        module: after the pass.
        before: its modes, see ``modes``.
    """
    then = {name: before.get(name, now) for name, now in modes(module).items()}
    changed = {
        name: now
        for name, now in modes(module).items()
        if (now.training and not then[name].training) or now.batches != then[name].batches
    }
    layers = {name for name, part in module.named_modules() if isinstance(part, TRAINED)}
    parts = {name: now for name, now in changed.items() if name in layers} or changed
    if not parts:
        return ()
    named = ", ".join(f"{name} ({kind})" if name else kind for name, (kind, _, _) in list(parts.items())[:3])
    return (
        f"the model puts itself into training mode in forward ({named}{', ...' if len(parts) > 3 else ''}), where BatchNorm goes by the batch and Dropout "
        "by chance: its accuracy may be that of no trained model; take train() out of forward, unless that is meant",
    )


def _main(outputs: Any) -> Any:
    return outputs[MAIN_HEAD] if isinstance(outputs, Mapping) and MAIN_HEAD in outputs else outputs


def _no_output(outputs: Any, n: int) -> str:
    """Why this is no output for so many images, or ""."""
    if not isinstance(outputs, Tensor) or (outputs.ndim in (1, 2) and len(outputs) == n):
        return ""
    return f"it returned {describe(outputs)} for {n} image{'s' * (n > 1)}"


def _misread(shapes: Mapping[int, tuple[int, ...]]) -> bool:
    """Whether a shape that fits by chance is that of something else: outputs (n_classes, N), or the same however many images there are."""
    return _is_transposed(shapes) or any(shape == shapes[1] for n, shape in shapes.items() if n > 1 and 1 in shapes)


def _is_transposed(shapes: Mapping[int, tuple[int, ...]]) -> bool:
    flat = {n: shape for n, shape in shapes.items() if len(shape) == 2}
    return all(shape[1] == n for n, shape in flat.items()) and any(shape[0] != n for n, shape in flat.items())


def _refusal(module: nn.Module, inputs: Tensor, shapes: Mapping[int, tuple[int, ...]], said: str) -> str:
    what = (
        f"the model cannot classify images of shape {tuple(inputs.shape[1:])}: {said or 'it raised nothing and returned nothing'}"
    )
    shape = shapes.get(1) or next(iter(shapes.values()), ())
    if _is_transposed(shapes):
        return f"{what}; that is (n_classes, N): return its transpose, (N, n_classes)"
    if any(each == shapes.get(1) for n, each in shapes.items() if n > 1):
        return f"{what}, and the same shape for {max(shapes)}: expected one row of logits an image, (N, n_classes); is a mean taken over the batch?"
    if len(shape) > 2:
        return f"{what}; scores of every pixel or place? robench judges classifiers, which say one class an image: expected (N, n_classes)"
    if shapes:
        return f"{what}; expected one row of logits an image, (N, n_classes)"
    return what + _other_form(module, inputs[:1])


def _other_form(module: nn.Module, one: Tensor) -> str:
    """A form of the images that the module does take, as a remedy, or ""."""
    for name, code, change in OTHER_FORMS:
        try:
            outputs = _main(ask_as(module, change(one)))
        except (Exception, SystemExit):  # somebody else's model may raise anything, and leave
            continue
        shape = tuple(getattr(outputs, "shape", ()))
        if len(shape) == 2 and shape[0] == 1 and shape[1] > 1:
            return f"; it does take {name}: give a function, such as lambda x: model({code})"
    return ""


@torch.no_grad()
def ask_as(module: nn.Module, given: Any) -> Any:
    """What a module returns for anything."""
    return module(given)
