"""The one thing that every attack and the engine see: images in [0, 1] in, main-task logits out."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robench.digest import digest_tensors
from robench.models.batches import ANY, BatchRule, find_rule, own_copy
from robench.models.failures import fails_at_random, first_line, is_device_failure, is_out_of_memory, narrowed
from robench.models.output import MAIN_HEAD, describe, likely, remedy_for_outputs
from robench.models.seeded import seeded
from robench.types import RobenchError

if TYPE_CHECKING:
    from robench.types import Images, Logits

VOTES = 100  # draws by which a random model is judged
SEARCHES = 3  # for the sizes of a pass that a module takes
ASKED = 5  # times, to see whether a model is random
VOTE_SEED = 0x766F7465
MASKED = -1e9  # the logit of a class that a model rules out by -inf: no attack can compute with infinity


@dataclass
class Passes:
    """Samples that went through the model: forward, and backward from the logits."""

    forwards: int = 0
    backwards: int = 0


class Classifier(nn.Module):
    """Any module as a frozen classifier of one task.

    Eval mode for good, parameters frozen, normalisation inside, float32 in and out, a fresh tensor of logits at every call
    (AutoAttack's Square writes into the one that it gets). The module gets images that nobody else holds, so that it may write into
    them, and never fewer than it can take: batches are filled up with copies, and what the module says of those is dropped. Counts its
    passes. ``largest_pass``, where set, bounds the samples that go through the module at once, for machines whose memory is too small
    for a chunk. ``takes`` says which batches the module accepts, None as long as none has failed. ``draws`` is 1, or, of a random
    model, the number of forward passes that a verdict is voted by. A logit of -inf counts as ``MASKED``; a row that is -inf for every class
    says none, and is NaN.

    Args:
        module: takes float images (N, C, H, W) in [0, 1], returns logits (N, n_classes).
        n_classes: of the main task.
        mean, std: per channel, applied before the module; none by default.
    """

    def __init__(self, module: nn.Module, n_classes: int, *, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.module = module
        self.n_classes = n_classes
        # Frozen parameters rather than buffers: torchattacks finds the device by asking for a parameter.
        self.mean = nn.Parameter(torch.tensor(list(mean))[None, :, None, None])
        self.std = nn.Parameter(torch.tensor(list(std))[None, :, None, None])
        self._normalises = tuple(mean) != (0.0,) or tuple(std) != (1.0,)
        self._passes = Passes()
        self._watcher: Callable[[Images, Logits], None] | None = None
        self.largest_pass: int | None = None
        self.takes: BatchRule | None = None
        self._fine: Tensor | None = None  # an input that the module has taken, which tells its batches from its images
        self._sizes: set[int] = set()  # numbers of inputs that it has taken
        self._searches = 0  # for the sizes of a pass, while no input is known that it takes
        self._forgives = False
        self.draws = 1
        self._exact: tuple[Classifier, ...] = ()  # in a tuple, so that torch takes it for no part of this module
        self.twins: dict[Hashable, Classifier] = {}
        self.requires_grad_(False).eval()

    def forward(self, images: Images) -> Logits:
        if images.ndim != 4:
            raise RobenchError(f"the classifier was given images of shape {tuple(images.shape)}, expected (N, C, H, W)")
        inputs = images.view_as(images)
        if inputs.requires_grad:  # a channels_last model hands back gradients that torchattacks' PGDL2 cannot view (3.5.1)
            inputs.register_hook(lambda gradient: gradient.contiguous())
        logits = self._answer(self.normalised(inputs))
        self._passes.forwards += len(images)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        if self._watcher is not None:
            self._watcher(images, logits)
        return logits

    def normalised(self, images: Images) -> Tensor:
        """What the module sees of images in [0, 1]."""
        return (images - self.mean) / self.std if self._normalises else images

    def _answer(self, inputs: Tensor) -> Tensor:
        """The module's output; where it is forgiven, NaN for those of the inputs that it raises on, unless these are all. Of no inputs, as an
        attack may ask about those that are left, the module is not asked."""
        if not len(inputs):
            return inputs.flatten(1).sum(1, keepdim=True).expand(0, self.n_classes)
        try:
            return self._logits(inputs)
        except Exception as error:  # somebody else's model may raise anything
            if not self._forgives or len(inputs) < 2 or is_device_failure(error):
                raise
            blank = inputs.new_full((1, self.n_classes), float("nan"))
            logits, raised = narrowed(lambda part: self._logits(inputs[part]), len(inputs), blank, largest_pass=self.largest_pass)
            if len(raised) == len(inputs):
                raise
            return logits

    def _logits(self, inputs: Tensor) -> Tensor:
        """The module's output, in passes of at most ``largest_pass`` samples, and as many as the module takes: what a gradient needs is then
        computed again, part by part, instead of being kept for all parts at once."""
        largest = self.largest_pass or len(inputs)
        takes = self.takes or ANY
        most = takes.exactly or min(largest, takes.largest or largest)
        if len(inputs) <= most:
            return self._part(inputs, again=False)
        again = largest < len(inputs) and torch.is_grad_enabled() and inputs.requires_grad
        parts = inputs.split(most)
        return torch.cat([self._part(part, again=again) for part in parts])

    def _part(self, inputs: Tensor, *, again: bool) -> Tensor:
        """The logits of one pass. A module that fails is asked with other numbers of images: it may not take every one.

        Args:
            inputs: of the pass.
            again: compute it again for the gradient, rather than keep what that needs.
        """
        if self.takes is not None and len(inputs) > (
            self.takes.most or len(inputs)
        ):  # found out by an earlier part of the same batch
            return self._logits(inputs)
        takes = self.takes or ANY  # the same when the pass is computed again, whatever is found out meanwhile
        once = partial(self._pass, takes=takes)
        try:
            logits = checkpoint(once, inputs, use_reentrant=False) if again else once(inputs)
        except Exception as error:  # somebody else's model may raise anything
            if is_out_of_memory(error) or is_device_failure(error) or not self._learns(inputs):
                raise
            return self._logits(inputs)
        if self._fine is None:
            self._fine = inputs[:1].detach().clone()
        self._sizes.add(len(inputs))
        return logits

    def _pass(self, inputs: Tensor, takes: BatchRule) -> Tensor:
        n, size = len(inputs), takes.size(len(inputs))
        dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        logits = _checked(self.module(own_copy(inputs, size)), size, self.n_classes, dtype)
        return logits if size == n else logits[:n]

    def _learns(self, inputs: Tensor) -> bool:
        """Whether their number was the reason why inputs failed, so that ``takes`` was found. Where one is known that never failed, it is
        asked in their place: they may have failed for what they show."""
        fine = None if self._fine is None or self._fine.shape[1:] != inputs.shape[1:] else self._fine.to(inputs)
        if self.takes not in (None, ANY) or (self.takes == ANY and fine is None) or len(inputs) in self._sizes:
            return False
        self.takes = self._find_rule(inputs if fine is None else fine, len(inputs)) or ANY
        return self.takes != ANY

    @torch.no_grad()
    def _find_rule(self, inputs: Tensor, failed: int) -> BatchRule | None:
        """Asks with copies of one image, so that nothing but their number differs: of one that the module is known to take, else of one that it
        takes by itself, where there is one."""

        def complaint(size: int, place: int) -> str:
            try:
                self._pass(inputs[place : place + 1].expand(size, *inputs.shape[1:]), ANY)
            except Exception as error:  # somebody else's model may raise anything
                return str(error) or type(error).__name__
            return ""

        with seeded(VOTE_SEED, inputs.device):
            if len(inputs) == 1 and self._fine is not None:
                if not complaint(failed, 0):
                    self._sizes.add(failed)
                    return None
                return find_rule(partial(complaint, place=0), failed, inputs[0].numel())
            places = sorted({0, len(inputs) // 2, len(inputs) - 1})
            place = next((each for each in places if not complaint(1, each)), None)
            if place is None:
                if self._searches >= SEARCHES:
                    return None
                self._searches += 1
            return find_rule(partial(complaint, place=place or 0), failed, inputs[0].numel())

    def _count_backward(self, gradient: Tensor) -> None:
        self._passes.backwards += len(gradient)

    def train(self, mode: bool = True) -> Classifier:
        """Stays in eval mode whatever is asked: torchattacks brings a frozen BatchNorm back in train mode."""
        return super().train(False)

    @contextmanager
    def counting(self) -> Iterator[Passes]:
        """Counts the passes inside the block."""
        outer, self._passes = self._passes, Passes()
        try:
            yield self._passes
        finally:
            self._passes = outer

    @contextmanager
    def watched_by(self, watcher: Callable[[Images, Logits], None] | None) -> Iterator[None]:
        """Shows every batch of images that is classified inside the block, with its logits, to ``watcher``; None for nobody."""
        outer, self._watcher = self._watcher, watcher
        try:
            yield
        finally:
            self._watcher = outer

    @contextmanager
    def forgiving(self) -> Iterator[None]:
        """Inside the block an image that the module raises on costs only itself its logits, which are NaN, and not the whole batch."""
        outer, self._forgives = self._forgives, True
        try:
            yield
        finally:
            self._forgives = outer

    def heard(self, images: Images) -> tuple[Logits, dict[int, str]]:
        """The logits, whatever the module raises: a row of NaN for every image that it raises on, and what that was by place of the image."""
        blank = images.new_full((1, self.n_classes), float("nan"))
        return narrowed(lambda part: self(images[part]), len(images), blank, largest_pass=self.largest_pass)

    def _heard_whole(self, images: Images) -> tuple[Logits, str]:
        """As ``heard``, and what the module raised on all images together, or ""."""
        try:
            return self(images), ""
        except RobenchError:
            raise
        except Exception as error:  # somebody else's model may raise anything
            if is_out_of_memory(error) or is_device_failure(error):
                raise
            return self.heard(images)[0], f"{type(error).__name__}: {first_line(error)}"

    def twin(self, module: nn.Module, *, double: bool = False) -> Classifier:
        """The same classifier around another module, or in float64; its passes are counted and watched here.

        Args:
            module: in place of the own one; copied where ``double``.
            double: compute in float64.
        """
        other = Classifier(copy.deepcopy(module) if double else module, self.n_classes)
        other.mean, other.std = (nn.Parameter(each.detach().clone(), requires_grad=False) for each in (self.mean, self.std))
        other._normalises, other._passes, other._watcher = self._normalises, self._passes, self._watcher
        other._forgives, other._fine = self._forgives, self._fine
        other.largest_pass, other.takes, other.draws, other._exact = self.largest_pass, self.takes, self.draws, (self.exact,)
        return other.double() if double else other

    @torch.no_grad()
    def certain(self, images: Images) -> Logits:
        """What the classifier that has the last word says, counted and watched as this one's own passes."""
        exact = self.exact
        outer = exact._passes, exact._watcher, exact.largest_pass, exact._forgives
        exact._passes, exact._watcher, exact.largest_pass, exact._forgives = (
            self._passes,
            self._watcher,
            self.largest_pass,
            self._forgives,
        )
        try:
            return exact(images)
        finally:
            exact._passes, exact._watcher, exact.largest_pass, exact._forgives = outer

    @torch.no_grad()
    def votes(self, images: Images) -> Tensor:
        """The share of ``draws`` fresh forward passes that says each class, float32 (N, n_classes); the same at every call.

        A pass whose logits are not finite says no class: the shares of that image sum up to less than 1.
        The generators are seeded with a constant of its own for it, which no attack knows, and put back.
        """
        shares = torch.zeros(len(images), self.n_classes, device=images.device)
        with seeded(VOTE_SEED, images.device), self.counting(), self.watched_by(None):
            for _ in range(self.draws):
                logits = self(images)
                says = logits.isfinite().all(1, keepdim=True).to(shares)
                shares.scatter_add_(1, logits.argmax(1, keepdim=True), says)
        return shares / self.draws

    def settle_draws(self, images: Images) -> None:
        """Asks five times about some images; where answers differ, the model is random and is judged by ``VOTES`` draws from now on."""
        with torch.no_grad(), self.counting(), seeded(VOTE_SEED, images.device):
            self.heard(images[:1])  # tells at once whether the module takes a single image
            answers = [self._heard_whole(images) for _ in range(ASKED)]
        raised = {said for _, said in answers}
        if len(raised) > 1:
            raise RobenchError(fails_at_random(max(raised)))
        first, *others = (logits for logits, _ in answers)
        same = all(torch.allclose(first, again, rtol=1e-4, atol=1e-4, equal_nan=True) for again in others)
        self.draws = 1 if same else VOTES

    @property
    def exact(self) -> Classifier:
        """Who has the last word on an image: the classifier itself, or the one whose twin it is."""
        return self._exact[0] if self._exact else self

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def digest(self) -> str:
        """sha256 over all that a module computes with: parameters, buffers (also those that are not saved), plain attributes such
        as a temperature, and the source of every module class that is not torch's own."""
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        total = hashlib.sha256(digest_tensors(tensors).encode())
        for name, module in self.module.named_modules():
            plain = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
            total.update(f"{name} {type(module).__qualname__} {sorted(_plain(plain).items())}\n".encode())
        kinds = {type(module) for module in self.module.modules()}
        for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)):
            if not kind.__module__.startswith("torch."):
                total.update(_source(kind).encode())
        return total.hexdigest()


# Beside the class and not in it: a model may be given as a Classifier, and then the text of the class is part of its digest.
def bound_passes(classifier: Classifier, most: int | None) -> None:
    """At most so many samples go through the module at once from now on, None for any number."""
    classifier.largest_pass = most


def normalises(classifier: Classifier) -> bool:
    """Whether anything is subtracted from or divides the images before the module sees them."""
    return classifier._normalises


def undone(classifier: Classifier, images: Images) -> Tensor:
    """Images whose normalised form is ``images``: the module sees these as they are."""
    return images * classifier.std + classifier.mean


@contextmanager
def computed_by(classifier: Classifier, passes: Callable[[Tensor, BatchRule], Logits] | None) -> Iterator[None]:
    """Inside the block ``passes`` stands for ``Classifier._pass``, None for the classifier's own: what it is asked, counts and shows to its
    watcher stays as it is."""
    outer = vars(classifier).pop("_pass", None)

    def set_to(chosen: Callable[[Tensor, BatchRule], Logits] | None) -> None:
        vars(classifier).pop("_pass", None)
        if chosen is not None:
            vars(classifier)["_pass"] = chosen

    set_to(passes)
    try:
        yield
    finally:
        set_to(outer)


def judge_by_votes(classifier: Classifier, draws: int) -> None:
    """The verdict is voted by so many forward passes from now on, as a finished run says that it was; see ``settle_draws``."""
    classifier.draws = draws


def _plain(attributes: dict) -> dict[str, str]:
    """Attributes that are values rather than objects whose text changes from process to process."""
    values: dict[str, str] = {}
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            values[name] = digest_tensors({name: value})
        elif " at 0x" not in repr(value):
            values[name] = repr(value)
    return values


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt, or compiled
        return f"{kind.__module__}.{kind.__qualname__}"


def _checked(logits: Any, n: int, n_classes: int, dtype: torch.dtype) -> Tensor:
    if isinstance(logits, Mapping) and MAIN_HEAD in logits:
        logits = logits[MAIN_HEAD]
    if not isinstance(logits, Tensor):
        raise RobenchError(
            f"the model returned {describe(logits)}, expected one tensor of logits (N, {n_classes}); name the output that holds them with "
            f"`head`, such as `head={likely(logits, (n, n_classes))}`"
        )
    if logits.shape != (n, n_classes):
        more = f" ({remedy_for_outputs(logits.shape[1], n_classes)})" if logits.ndim == 2 and logits.shape[1] > n_classes else ""
        raise RobenchError(
            f"the model returned shape {tuple(logits.shape)} for {n} images, expected {(n, n_classes)}; is it a model of another "
            f"dataset, or is the main head not first?{more}"
        )
    logits = (logits if logits.layout == torch.strided else logits.to_dense()).to(dtype)
    nothing = (logits == float("-inf")).all(1, keepdim=True)  # every class is ruled out, so that none is said
    return torch.nan_to_num(logits, nan=float("nan"), posinf=float("inf"), neginf=MASKED).masked_fill(nothing, float("nan"))
