"""What people bring as a model, made into a module that takes float32 images and returns logits (N, n_classes)."""

from __future__ import annotations

import copy
import io
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robench.models.binary import is_probability, other_images, values_of
from robench.models.chosen_outputs import SomeOutputs, check_columns
from robench.models.hidden import digest_of_hidden, register_hidden_modules
from robench.models.module_digest import Contents
from robench.models.output import LOGITS, MAIN_HEAD, Output, describe, has_logits, remedy
from robench.models.programs import Program, refuse_training_mode
from robench.models.trial_passes import ask, first_answer, mode_changed, modes, state_kept
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
        remedy: what to do then.
        hidden: digest of what the module computes with beside its weights, plain attributes and classes; "" where there is nothing.
    """

    module: nn.Module
    n_classes: int | None
    notes: tuple[str, ...] = ()
    returned: str = ""
    remedy: str = ""
    hidden: str = ""


class Function(nn.Module):
    """A plain function as a module. What it refers to stays as it is, and is part of its digest: code, numbers, tensors, arrays, modules.

    Args:
        function: takes images, returns logits as a tensor or an array.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self._function = function  # underscored: its text would change from process to process
        contents = Contents()
        contents.add(function)
        self._training = next(iter(contents.training), "")
        self._opaque = tuple(dict.fromkeys(contents.opaque)) if not hasattr(function, "version") else ()
        self.refers_to = contents.digest + (secrets.token_hex(8) if self._opaque else "")

    def forward(self, images: Tensor) -> Any:
        outputs = self._function(images)
        return torch.from_numpy(outputs).to(images.device) if isinstance(outputs, np.ndarray) else outputs

    def __deepcopy__(self, memo: dict) -> Function:
        return self  # what it refers to cannot be copied


class InTheirDtype(nn.Module):
    """A module whose weights are not float32, as it is: images are cast to its weights' type."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, images: Tensor) -> Any:
        floating = (each.dtype for each in (*self.module.parameters(), *self.module.buffers()) if each.is_floating_point())
        return self.module(images.to(next(floating, self.dtype)))  # those of a copy in float64 are float64


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
    model: Any, images: Images | None, *, device: str = "cpu", head: str = MAIN_HEAD, mean: Sequence[float] = (), std: Sequence[float] = (),
    weights_dtype: str = "float32", expected: int | None = None, columns: Sequence[int] = (),
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
        columns: which of the logits stand for the classes of the data; empty for all.

    Raises:
        RobenchError: it is no model, or cannot classify the images.
    """
    if weights_dtype not in WEIGHTS:
        raise RobenchError(f"`weights_dtype={weights_dtype!r}`: expected one of {', '.join(WEIGHTS)}")
    module, notes = _as_module(model)
    _refuse_meta(module)
    hidden = "" if isinstance(module, Program | Function) else digest_of_hidden(module)
    named = ", ".join(register_hidden_modules(module))
    if named:
        notes.append(
            f"the model keeps modules outside of its parts, as in a plain list ({named}), where eval() does not reach them; it was set to eval mode too"
        )
    if head != MAIN_HEAD:
        module = Output(module, head)
    module, more = _in_dtype(module, weights_dtype)
    if images is None:
        return Adapted(module, None, (*notes, *more), hidden=hidden)
    module = _in_place(module, device)
    images = images.to(device)
    inputs = _normalised(images, mean, std)
    if any(is_lazy(each) for each in [*module.parameters(), *module.buffers()]):
        notes.append("the model had layers without weights; one image gave them their shapes, and they hold random numbers")
        ask(module, inputs[:1])
    before = modes(module)
    rule, outputs = first_answer(module, inputs)
    notes += mode_changed(module, before) or _sets_training(module)
    if has_logits(outputs):
        notes.append(f"the model returned {describe(outputs)}; its logits are taken")
        module = Output(module, LOGITS)
        rule, outputs = first_answer(module, inputs)
    made = partial(Adapted, notes=(*notes, *more, *state_kept(module, inputs, rule)), hidden=hidden)
    if not isinstance(outputs, Tensor):  # of several outputs one must be named: whoever classifies says so
        return made(module, None, returned=describe(outputs), remedy=remedy(outputs))
    if outputs.is_complex() or not outputs.numel():
        raise RobenchError(f"the model returned {describe(outputs)}; expected one row of real logits an image, (N, n_classes)")
    if columns:
        check_columns(columns, outputs.shape[-1])
        return made(SomeOutputs(module, columns).to(device), len(columns))
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return made(module, outputs.shape[1])
    values = values_of(module, torch.cat([inputs, _normalised(other_images(images), mean, std)]), rule)
    if expected not in (None, 2):
        return made(module, 1)
    probabilities = is_probability(values, module, inputs, rule)
    how = (
        "its last step makes probabilities of class 1, and they are read so" if probabilities else "z is read as the logits (0, z)"
    )
    adapted = made(TwoClasses(module, probabilities=probabilities), 2)
    return replace(adapted, notes=(*adapted.notes, f"the model has one output; {how}"))


def as_module(model: Any) -> nn.Module:
    """A module of a module, a function or an exported program; not copied.

    Raises:
        RobenchError: it is none of them.
    """
    if isinstance(model, torch.export.ExportedProgram):
        refuse_training_mode(model, "the model")
        return model.module()
    if isinstance(model, nn.Module):
        return model
    if not callable(model) or isinstance(model, type):
        what = f"the class {model.__name__}; call it first" if isinstance(model, type) else f"a {type(model).__name__}"
        raise RobenchError(
            f"the model is {what}; expected a torch.nn.Module, or a function, that takes [0, 1] images{_remedy(model)}"
        )
    return Function(model)


def _remedy(model: Any) -> str:
    if isinstance(model, Mapping) and model and all(isinstance(value, Tensor) for value in model.values()):
        return ": it is a state dict; build its architecture, and give that after load_state_dict"
    method = next(
        (name for name in ("predict_proba", "decision_function", "predict") if callable(getattr(model, name, None))), None
    )
    return f": such as lambda x: model.{method}(x.flatten(1).numpy())" if method and not isinstance(model, type) else ""


class Noted(NamedTuple):
    """A module, and what was changed or is to be known of it, in sentences for the user."""

    module: nn.Module
    notes: list[str]


def uncompiled(model: Any) -> Any:
    """A module that torch.compile wrapped, without the wrapper; anything else as it is."""
    return model._orig_mod if _is_compiled(model) else model


def _is_compiled(model: Any) -> bool:
    # By name: the class is torch's own, and importing it takes a second (torch 2.14).
    return isinstance(model, nn.Module) and type(model).__name__ == "OptimizedModule" and isinstance(model._orig_mod, nn.Module)


def _as_module(model: Any) -> Noted:
    module = as_module(uncompiled(model))
    if not isinstance(module, Function):
        module = _copied(module)
        compiled = [name for name, part in module.named_modules() if _is_compiled(part)]
        for name in compiled:
            module.set_submodule(name, uncompiled(module.get_submodule(name)))
        named = f" (of {', '.join(compiled[:3])})" if compiled else ""
        notes = (
            [f"torch.compile's wrapper{named} was taken off: the module inside is attacked"]
            if compiled or _is_compiled(model)
            else []
        )
        return Noted(module, notes)
    notes = (
        []
        if module is model
        else ["the model is a plain function: it is used as it is, and what it refers to is neither copied nor moved"]
    )
    if module._training:
        notes.append(f"the function refers to a {module._training} in training mode; call eval() on it first, unless that is meant")
    if module._opaque:
        notes.append(
            f"the function refers to what robench cannot look into ({', '.join(module._opaque[:3])}), so that a run of it is never continued; give "
            "it an attribute `version`, a text that you change whenever its model changes, to have runs continued"
        )
    return Noted(module, notes)


def _sets_training(module: nn.Module) -> list[str]:
    """What to say of a function that has put a module which it refers to into training mode."""
    if not isinstance(module, Function) or module._training:
        return []
    contents = Contents()
    contents.add(module._function)
    return [
        f"the function puts a {kind} into training mode, where it goes by the batch or by chance; take train() out of it, unless that is meant"
        for kind in contents.training[:1]
    ]


def _copied(module: nn.Module) -> nn.Module:
    if isinstance(module, torch.jit.ScriptModule):
        return _copied_script(module)
    try:
        return copy.deepcopy(module)
    except Exception as error:  # somebody else's model may raise anything
        computed = _computed_attributes(module)
        why = f"its attribute {computed[0]} is computed from other tensors" if computed else f"{type(error).__name__}: {error}"
        remedy = f"set it to {computed[0]}.detach(), or make it a buffer" if computed else "give a model that was just built"
        raise RobenchError(f"the model cannot be copied ({why}); {remedy}, or give a function that returns its logits") from error


def _copied_script(module: torch.jit.ScriptModule) -> nn.Module:
    """By way of a file in memory: what deepcopy makes of a script's trainable weights cannot be frozen (torch 2.14)."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that TorchScript is deprecated is not the attacker's to mend
        torch.jit.save(module, file)
        file.seek(0)
        copied = torch.jit.load(file)
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    return copied.eval()


def _computed_attributes(module: nn.Module) -> list[str]:
    """Tensors that are no leaves of a graph, which torch does not copy."""
    return [
        f"{name}.{key}" if name else key
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, Tensor) and value.grad_fn is not None
    ]


def _refuse_meta(module: nn.Module) -> None:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    without = [name for name, tensor in tensors.items() if tensor.is_meta and not is_lazy(tensor)]
    if without:
        raise RobenchError(
            f"{len(without)} of the model's {len(tensors)} tensors are on the device meta, without values ({', '.join(without[:3])}): build it on a "
            "real device, or load its weights with load_state_dict(..., assign=True), first"
        )


def _in_place(module: nn.Module, device: str) -> nn.Module:
    """On the device and in eval mode; exported programs refuse to change their mode, whatever their graph does."""
    module = module.to(device)
    try:
        return module.eval()
    except NotImplementedError:
        return Program(module)


def _in_dtype(module: nn.Module, weights_dtype: str) -> Noted:
    floating = [each.dtype for each in [*module.parameters(), *module.buffers()] if each.is_floating_point()]
    others = [dtype for dtype in dict.fromkeys(floating) if dtype != torch.float32]
    if not others:
        return Noted(module, [])
    named = ", ".join(str(dtype).removeprefix("torch.") for dtype in others)
    if weights_dtype == "as-is":
        first = next(iter(floating))
        return Noted(InTheirDtype(module, first), [f"weights are {named}, and the model computes in them"])
    return Noted(module.float(), [f"weights are {named}; the model is computed in float32"])


def _normalised(images: Images, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    if not mean:
        return images
    shift, scale = (torch.tensor(list(each), device=images.device)[None, :, None, None] for each in (mean, std))
    return (images - shift) / scale
