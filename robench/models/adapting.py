"""What people bring as a model, made into a module that takes float32 images and returns logits (N, n_classes)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robench.digest import digest_tensors
from robench.models.batches import ANY, BatchRule, find_rule, own_copy
from robench.models.output import MAIN, Output, describe
from robench.models.seeded import seeded
from robench.types import RobenchError

if TYPE_CHECKING:
    from robench.types import Images

TINY = 1e-6  # a probability that is nearer to 0 or 1 counts as this far from it
WEIGHTS = ("float32", "as-is")


@dataclass(frozen=True, eq=False)
class Adapted:
    """A module that fits.

    Attributes:
        module: takes float32 images, returns logits (N, n_classes).
        n_classes: of the logits, None where no image was there to ask with.
        notes: what was changed, in sentences for the user.
        returned: where no output is the logits, what there is.
    """

    module: nn.Module
    n_classes: int | None
    notes: tuple[str, ...] = ()
    returned: str = ""


class Function(nn.Module):
    """A plain function as a module. Modules that it refers to stay as they are; their tensors are part of its digest.

    Args:
        function: takes images, returns logits.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self._function = function  # underscored: its text would change from process to process
        self.source = _source_of(function)
        self.refers_to = [digest_tensors(part.state_dict()) for part in _modules_of(function)]

    def forward(self, images: Tensor) -> Any:
        return self._function(images)

    def __deepcopy__(self, memo: dict) -> Function:
        return self  # what it refers to cannot be copied


class InTheirDtype(nn.Module):
    """A module whose weights are not float32, as it is: images are cast to its weights' type."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, images: Tensor) -> Any:
        return self.module(images.to(self.dtype))


class TwoClasses(nn.Module):
    """One output z of a binary classifier as the logits (0, z) of two classes.

    Args:
        module: returns (N, 1) or (N,).
        probabilities: its outputs are probabilities of class 1, of which the log-odds are taken.
    """

    def __init__(self, module: nn.Module, *, probabilities: bool) -> None:
        super().__init__()
        self.module, self.probabilities = module, probabilities

    def forward(self, images: Tensor) -> Tensor:
        output = self.module(images).reshape(len(images))
        odds = torch.logit(output.float(), eps=TINY) if self.probabilities else output
        return torch.stack([torch.zeros_like(odds), odds], 1)


def adapt(
    model: Any, images: Images | None, *, device: str = "cpu", head: str = MAIN, mean: Sequence[float] = (), std: Sequence[float] = (),
    weights_dtype: str = "float32", expected: int | None = None,
) -> Adapted:  # fmt: skip
    """A copy of anybody's model that fits; the original keeps its mode, its gradients and its place.

    Args:
        model: a module, or a function of images.
        images: a few, float in [0, 1], to ask it with; None to take it as it is.
        device: where it is asked.
        head: which of its outputs holds the logits, where it returns several.
        mean, std: of the normalisation in front of it.
        weights_dtype: "float32" computes in it whatever the weights are; "as-is" leaves them.
        expected: classes of the data; None for as many as the model has.

    Raises:
        RobenchError: it is no model, or cannot classify the images.
    """
    if weights_dtype not in WEIGHTS:
        raise RobenchError(f"weights dtype {weights_dtype!r}: expected one of {', '.join(WEIGHTS)}")
    module, notes = _as_module(model)
    notes += _with_listed_parts(module)
    if head != MAIN:
        module = Output(module, head)
    module, more = _in_dtype(module, weights_dtype)
    notes += more
    if images is None:
        return Adapted(module, None, tuple(notes))
    module = module.to(device).eval()
    inputs = _normalised(images.to(device), mean, std)
    if any(is_lazy(each) for each in [*module.parameters(), *module.buffers()]):
        notes.append("the model had layers without weights; one image gave them their shapes, and they hold random numbers")
        _ask(module, inputs[:1])
    rule, outputs = _first_answer(module, inputs)
    if not isinstance(outputs, Tensor):  # of several outputs one must be named: whoever classifies says so
        return Adapted(module, None, tuple(notes), describe(outputs))
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return Adapted(module, outputs.shape[1], tuple(notes))
    if expected not in (None, 2):
        return Adapted(module, 1, tuple(notes))
    outputs = _ask(module, own_copy(inputs, rule.size(len(inputs))))
    probabilities = bool(((outputs >= 0) & (outputs <= 1)).all())
    how = (
        "its outputs lie in [0, 1] and are read as probabilities of class 1" if probabilities else "z is read as the logits (0, z)"
    )
    notes.append(f"the model has one output; {how}")
    return Adapted(TwoClasses(module, probabilities=probabilities), 2, tuple(notes))


def _as_module(model: Any) -> tuple[nn.Module, list[str]]:
    if isinstance(model, nn.Module):
        return _copied(model), []
    if not callable(model) or isinstance(model, type):
        what = f"the class {model.__name__}; call it first" if isinstance(model, type) else f"a {type(model).__name__}"
        raise RobenchError(f"the model is {what}; expected a torch.nn.Module, or a function, that takes [0, 1] images")
    return Function(model), [
        "the model is a plain function: it is used as it is, and what it refers to is neither copied nor moved"
    ]


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:  # somebody else's model may raise anything
        computed = _computed_attributes(module)
        why = f"its attribute {computed[0]} is computed from other tensors" if computed else f"{type(error).__name__}: {error}"
        remedy = f"set it to {computed[0]}.detach(), or make it a buffer" if computed else "give a model that was just built"
        raise RobenchError(f"the model cannot be copied ({why}); {remedy}, or give a function that returns its logits") from error


def _computed_attributes(module: nn.Module) -> list[str]:
    """Tensors that are no leaves of a graph, which torch does not copy."""
    return [
        f"{name}.{key}" if name else key
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, Tensor) and value.grad_fn is not None
    ]


def _with_listed_parts(module: nn.Module) -> list[str]:
    """Registers modules that a module keeps in plain lists or dictionaries: eval mode, device and digest do not reach them otherwise."""
    known = set(module.modules())
    added: list[str] = []
    for name, part in list(module.named_modules()):
        for key, value in list(vars(part).items()):
            values = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else ()
            hidden = [each for each in values if isinstance(each, nn.Module) and each not in known]
            if key.startswith("_") or not hidden:
                continue
            part.add_module(f"listed_{key}", nn.ModuleList(hidden))
            known |= {inner for each in hidden for inner in each.modules()}
            added.append(f"{name}.{key}" if name else key)
    named = ", ".join(added)
    return (
        [f"the model keeps modules in a plain list ({named}), where eval() does not reach them; it was set to eval mode too"]
        if added
        else []
    )


def _in_dtype(module: nn.Module, weights_dtype: str) -> tuple[nn.Module, list[str]]:
    floating = [each.dtype for each in [*module.parameters(), *module.buffers()] if each.is_floating_point()]
    others = [dtype for dtype in dict.fromkeys(floating) if dtype != torch.float32]
    if not others:
        return module, []
    named = ", ".join(str(dtype).removeprefix("torch.") for dtype in others)
    if weights_dtype == "as-is":
        first = next(iter(floating))
        return InTheirDtype(module, first), [f"weights are {named}, and the model computes in them"]
    return module.float(), [f"weights are {named}; the model is computed in float32"]


def _normalised(images: Images, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    if not mean:
        return images
    shift, scale = (torch.tensor(list(each), device=images.device)[None, :, None, None] for each in (mean, std))
    return (images - shift) / scale


def _first_answer(module: nn.Module, inputs: Tensor) -> tuple[BatchRule, Any]:
    """Which batches a module takes, and what it returns for the smallest of them."""
    said = ""

    def complaint(size: int) -> str:
        nonlocal said
        try:
            outputs = _main(_ask(module, own_copy(inputs[:1], size)))
            complaint_now = "" if _is_output(outputs, size) else f"it returned {describe(outputs)} for {size} images"
        except RobenchError:
            raise
        except Exception as error:  # somebody else's model may raise anything
            complaint_now = f"{type(error).__name__}: {error}"
        said = said or complaint_now
        return complaint_now

    with seeded(0, inputs.device):
        rule = ANY if not complaint(1) else find_rule(complaint)
        if rule is None:
            shape = tuple(inputs.shape[1:])
            raise RobenchError(f"the model cannot classify images of shape {shape}: {said}")
        return rule, _main(_ask(module, own_copy(inputs[:1], rule.size(1))))


@torch.no_grad()
def _ask(module: nn.Module, inputs: Tensor) -> Any:
    return module(inputs.clone())


def _main(outputs: Any) -> Any:
    return outputs[MAIN] if isinstance(outputs, Mapping) and MAIN in outputs else outputs


def _is_output(outputs: Any, n: int) -> bool:
    return not isinstance(outputs, Tensor) or (outputs.ndim in (1, 2) and len(outputs) == n)


def _source_of(function: Callable) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return code.co_code.hex() if code else f"{type(function).__module__}.{type(function).__qualname__}"


def _modules_of(function: Callable) -> list[nn.Module]:
    """Modules that a function's text, its closure or its object names."""
    named: list[Any] = [getattr(function, "__self__", None), *getattr(function, "args", ())]
    named += list(vars(function).values()) if hasattr(function, "__dict__") else []
    if inspect.isfunction(function):
        found = inspect.getclosurevars(function)
        named += [*found.nonlocals.values(), *found.globals.values()]
    return [each for each in named if isinstance(each, nn.Module)]
