"""The same function in fewer and cheaper operations: for looking for adversarial images, never for judging them."""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robench.models.backbones import SmallMapConv2d
from robench.models.classifier import Classifier, bound_passes
from robench.types import NO_REWRITE, PassOptions, RobenchError

if TYPE_CHECKING:
    from robench.types import Images

# What is computed here has a version, ``robench.identity.REWRITE_VERSION``: this text is in no key of a column.
LEAST_SPEEDUP = 1.2  # below it, what bf16 gains is spent on checking in float32 what it found
GRADIENT_TOLERANCE = 0.05  # of a gradient's length: a ReLU that switches at a rounding moves it less, a lost hook more
LOGIT_TOLERANCE = 1e-4  # of the largest logit: more than float32 rounding makes of a deep network, far less than any mistake


class FrozenSmallMapConv2d(nn.Module):
    """A ``SmallMapConv2d`` whose weights are frozen: its dense matrix is laid out once for each size of map, not at every pass."""

    def __init__(self, conv: SmallMapConv2d, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__()
        self.conv = conv
        self.weight, self.bias = weight, bias
        self._dense: dict[tuple, tuple[Tensor, Tensor]] = {}

    def forward(self, images: Tensor) -> Tensor:
        size, stride = images.shape[-1], self.conv.stride[0]
        if size > 2 or images.shape[-2] != size:
            return F.conv2d(images, self.weight, self.bias, self.conv.stride, self.conv.padding)
        side = -(-size // stride)
        key = (size, images.dtype, images.device)
        if key not in self._dense:
            self._dense[key] = self.conv.dense(self.weight, size).contiguous(), self.bias.repeat(side * side)
        flat = F.linear(images.permute(0, 2, 3, 1).flatten(1), *self._dense[key])
        return flat.view(len(images), side, side, -1).permute(0, 3, 1, 2)


class UnshuffledConv2d(nn.Module):
    """A convolution of stride 2 on few channels as one of stride 1 on four times as many, half as large; its gradient costs half."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.padding = conv, int(conv.padding[0])
        channels, size = conv.in_channels, conv.kernel_size[0] + 1  # an odd kernel with a row and a column of zeros
        taps = F.pad(conv.weight, (0, 1, 0, 1)).view(-1, channels, size // 2, 2, size // 2, 2)
        self.weight = nn.Parameter(taps.permute(0, 1, 3, 5, 2, 4).flatten(1, 3).detach(), requires_grad=False)

    @staticmethod
    def can_be(conv: nn.Conv2d) -> bool:
        """Whether a convolution is one that this pays for."""
        square = conv.kernel_size[0] == conv.kernel_size[1] and conv.kernel_size[0] % 2 == 1
        plain = conv.stride == (2, 2) and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
        return square and plain and conv.in_channels <= 4 and not isinstance(conv.padding, str) and len(set(conv.padding)) == 1

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] % 2 or images.shape[-2] % 2:
            return self.conv(images)
        return F.conv2d(F.pixel_unshuffle(F.pad(images, (self.padding,) * 4), 2), self.weight, self.conv.bias)


class InPrecision(nn.Module):
    """A module that computes in another dtype; images and logits stay as they are."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images.to(self.dtype)).to(images.dtype)


class _Tracer(fx.Tracer):
    """Looks into a model's modules, but not into a layer, also where somebody has derived a class from it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def cheaper_twin(classifier: Classifier, options: PassOptions, images: Images) -> Classifier:
    """A twin of a classifier whose passes are cheaper; the classifier itself where nothing is asked for, or where it is random.

    Logits differ in their last bits, in bf16 in their third digit: what a twin finds is judged by the classifier. Passes of the twin are
    counted and watched by itself. It is built once.

    Args:
        classifier: stays as it is.
        options: what to change.
        images: a few, to see that the folded function is the same.

    Raises:
        RobenchError: torch cannot compile the model here.
    """
    if options == NO_REWRITE or classifier.draws > 1:
        return classifier
    key = (options, classifier.device)
    if key not in classifier.twins:
        classifier.twins[key] = _rewrite(classifier, options, images[:8])
    twin = classifier.twins[key]
    bound_passes(twin, min((each for each in (twin.largest_pass, classifier.largest_pass) if each), default=None))
    return twin


def _rewrite(classifier: Classifier, options: PassOptions, images: Images) -> Classifier:
    module = _alike(classifier, images) if options.folded else copy.deepcopy(classifier.module)
    if options.precision == "bf16":
        module = InPrecision(module, torch.bfloat16)
    if options.compiled:
        module = cast(nn.Module, torch.compile(module))
    twin = classifier.twin(module)
    twin.requires_grad_(False).eval()
    if options.compiled:
        _try(twin, images)
    return twin


def _alike(classifier: Classifier, images: Images) -> nn.Module:
    """The cheapest of the module's rewritings that computes what it computes, gradient included; in the end a copy of itself."""
    for rewrite in (_folded_channels_last, fold, _channels_last):
        try:
            module = rewrite(copy.deepcopy(classifier.module))
            with redirect_stderr(io.StringIO()):  # where a traced module fails, torch.fx prints its own traceback
                if module is not None and _agree(classifier, classifier.twin(module), images):
                    return module
        except Exception:  # somebody else's code, and what becomes of it, may raise anything
            continue
    return copy.deepcopy(classifier.module)


def _channels_last(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.channels_last)


def _folded_channels_last(module: nn.Module) -> nn.Module | None:
    folded = fold(module)
    return None if folded is None else _channels_last(folded)


def _try(twin: Classifier, images: Images) -> None:
    """One pass forward and back, in which torch compiles."""
    images = images.clone().requires_grad_()
    try:
        with twin.counting(), torch.enable_grad():
            twin(images).sum().backward()
    except Exception as error:  # a compiler, a linker and somebody else's model: anything may be raised
        first = (str(error).strip().splitlines() or [""])[0]
        raise RobenchError(
            f"`compiled`: torch cannot compile this model here ({type(error).__name__}: {first[:150]}); leave it out"
        ) from error


def _agree(classifier: Classifier, twin: Classifier, images: Images) -> bool:
    """Whether two classifiers have the same logits, and the same gradient of every image up to single units that switch."""
    (logits, gradient), (twin_logits, twin_gradient) = (_passes(each, images) for each in (classifier, twin))
    close = (logits - twin_logits).abs().amax() <= LOGIT_TOLERANCE * logits.abs().amax().clamp(min=1)
    return bool(close) and bool((gradient - twin_gradient).norm() <= GRADIENT_TOLERANCE * gradient.norm())


@torch.enable_grad()
def _passes(classifier: Classifier, images: Images) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of their weighted sum, zero where there is none."""
    queries = images.clone().requires_grad_()
    with classifier.counting(), classifier.watched_by(None):
        logits = classifier(queries)
        weighted = (logits * torch.linspace(1, -1, logits.shape[1], device=logits.device)).sum()
        gradient = torch.autograd.grad(weighted, queries, allow_unused=True)[0] if weighted.requires_grad else None
    return logits.detach(), torch.zeros_like(images) if gradient is None else gradient


def fold(module: nn.Module) -> nn.Module | None:
    """A module in eval mode in cheaper operations: every BatchNorm that follows a convolution folded into it, max-pooling before ReLU
    instead of behind it, strided convolutions of images unshuffled; None where its code cannot be followed or it has hooks.

    Args:
        module: its layers are replaced, so hand in a copy.
    """
    if any(getattr(layer, name) for layer in module.modules() for name in HOOKS):
        return None  # a hook may be the point of the model, as a gradient of its own for rounding is
    try:
        graph = _Tracer().trace(module)
    except Exception:  # somebody else's code: what cannot be traced symbolically is left as it is
        return None
    traced = fx.GraphModule(module, graph)
    layers = dict(traced.named_modules())
    read = {
        str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"
    }  # whose weights the code itself uses
    for node in list(graph.nodes):
        norm, before = _layer(node, layers), _only_input(node)
        conv = None if before is None else _layer(before, layers)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
            continue  # no norm, or one that normalises by the batch
        if before is None or str(before.target) in read:
            continue
        if isinstance(conv, nn.Conv2d) and _used_once(graph, before.target, node.target):
            _replace(traced, str(before.target), _folded(conv, norm, norm.running_mean, norm.running_var))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    graph.lint()
    _pool_first(graph, layers)
    for name, conv in list(traced.named_modules()):
        if name not in read and _is_plain(conv) and type(conv) is nn.Conv2d and UnshuffledConv2d.can_be(conv):
            _replace(traced, name, UnshuffledConv2d(conv))
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _pool_first(graph: fx.Graph, layers: dict[str, nn.Module]) -> None:
    """The largest of what ReLU leaves is what ReLU leaves of the largest: it then sees a quarter of the map."""
    for pool in list(graph.nodes):
        layer, relu = _layer(pool, layers), _only_input(pool)
        if relu is None or not isinstance(layer, nn.MaxPool2d) or layer.return_indices or not relu.args:
            continue
        if isinstance(_layer(relu, layers), nn.ReLU):
            pool.args = (relu.args[0],)
            pool.replace_all_uses_with(relu)
            relu.args = (pool,)
            pool.append(relu)


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PLAIN = (nn.Conv2d, SmallMapConv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is what its class says: not derived, not reparametrised."""
    return type(layer) in PLAIN


def _layer(node: fx.Node, layers: dict[str, nn.Module]) -> nn.Module | None:
    """The plain layer that a node calls."""
    layer = layers.get(str(node.target)) if node.op == "call_module" else None
    return layer if layer is not None and _is_plain(layer) else None


def _only_input(node: fx.Node) -> fx.Node | None:
    """What a node takes, where it takes one thing and nobody else does."""
    before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
    return before if isinstance(before, fx.Node) and len(before.users) == 1 else None


def _used_once(graph: fx.Graph, *targets: Any) -> bool:
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    return all(called.count(target) == 1 for target in targets)


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> nn.Module:
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, bn_eps=norm.eps, bn_w=norm.weight, bn_b=norm.bias)
    frozen = nn.Parameter(weight.detach(), requires_grad=False), nn.Parameter(bias.detach(), requires_grad=False)
    if isinstance(conv, SmallMapConv2d):
        return FrozenSmallMapConv2d(conv, *frozen)
    fused = copy.deepcopy(conv)
    for name, parameter in zip(("weight", "bias"), frozen, strict=True):
        fused.register_parameter(name, parameter)
    return fused


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    model.get_submodule(parent).register_module(attribute, layer)
