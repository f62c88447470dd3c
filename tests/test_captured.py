"""The captured training step, on a CPU: what records is a stand-in that keeps the function, calls it again, and holds it to a CUDA graph's rules."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from test_states import in_the_third_epoch
from test_training import quick
from test_waits import Waits
from torch.utils._python_dispatch import TorchDispatchMode

from robench.checkpoint import load_checkpoint
from robench.models.multihead import MultiHead
from robench.training import loop as loop_module
from robench.training import precision, train, trainer
from robench.training.captured import IN_ONE_GRAPH, _snapshot, captured, graph_for, set_rate
from robench.training.loop import Loop, adam
from robench.training.objectives import OBJECTIVES

pytestmark = pytest.mark.slow  # a minute together; `make test-all` and CI run them


class Launches(TorchDispatchMode):
    """The operations of a function with all that a graph would keep of them: numbers, and the addresses of tensors made elsewhere."""

    def __init__(self):
        super().__init__()
        self.seen, self.own = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        own = {each.untyped_storage().data_ptr() for each in self.own}
        flat = [
            each for value in [*args, *(kwargs or {}).values()] for each in (value if isinstance(value, list | tuple) else [value])
        ]
        self.seen.append((str(func), [self._kept(each, own) for each in flat if not isinstance(each, torch.Generator)]))
        made = func(*args, **(kwargs or {}))
        self.own += [each for each in (made if isinstance(made, list | tuple) else [made]) if isinstance(each, torch.Tensor)]
        return made

    def _kept(self, value, own):
        if not isinstance(value, torch.Tensor):
            return str(value)
        return "made inside" if value.untyped_storage().data_ptr() in own else value.data_ptr()


class StandIn:
    """Records by keeping the function, and replays by calling it."""

    def record(self, work):
        work()  # as a warm-up does: whatever it changes must be put back
        self.work, self.launches = work, self._called(work)[1]
        self.made = {name: each.clone() for name, each in work().items()}
        return self.made

    def _called(self, work):
        with Launches() as launches, Waits() as waits:
            made = work()
        if waits.count:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return made, launches.seen

    def replay(self):
        made, launches = self._called(self.work)
        assert launches == self.launches, "a graph would have used what it recorded"
        for name, each in made.items():
            self.made[name].copy_(each)


@pytest.fixture
def stand_in(monkeypatch):
    """This CPU has graphs."""
    for module in (loop_module, trainer, precision):
        for name, value in (("is_capturable", lambda device: True), ("graph_for", lambda device: StandIn())):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # so it compares bit for bit


def trained(spec, few, path, captured=True):
    return load_checkpoint(train(spec, few, few, out=path, show_progress=False, captured=captured))


CASES = [*((arch, "none", "fp32") for arch in OBJECTIVES), ("single", "nfgsm", "fp32"), ("contrastive", "nfgsm", "bf16")]


@pytest.mark.parametrize(("arch", "adversarial", "precision"), CASES)
def test_a_captured_training_ends_with_the_weights_of_one_that_is_not(
    arch, adversarial, precision, few, tmp_path, stand_in, capsys
):
    spec = quick(arch, few, adversarial=adversarial, precision=precision)
    one, other = (trained(spec, few, tmp_path / f"{captured}.safetensors", captured) for captured in (True, False))
    assert one.digest == other.digest and capsys.readouterr().err == ""
    assert one.versions["step"] == IN_ONE_GRAPH and "step" not in other.versions
    means = [
        [{name: value for name, value in epoch.items() if "second" not in name} for epoch in each.history] for each in (one, other)
    ]
    assert means[0] == means[1]


def test_a_term_of_weight_zero_is_like_itself(few, tmp_path, monkeypatch, stand_in):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    spec = quick("supervised", few, epochs=1, lambda_aux=0.0)
    assert trained(spec, few, tmp_path / "model.safetensors").versions["step"] == IN_ONE_GRAPH


def test_an_interrupted_captured_training_goes_on_to_the_same_weights(few, tmp_path, monkeypatch, stand_in):
    spec, path = quick("contrastive", few, epochs=4), tmp_path / "model.safetensors"
    with monkeypatch.context() as patched:
        in_the_third_epoch(patched, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            trained(spec, few, path)
    assert trained(spec, few, path).digest == trained(spec, few, tmp_path / "undisturbed.safetensors").digest


@pytest.mark.parametrize("first", ["without graphs", "with graphs"])
def test_a_training_goes_on_where_there_are_graphs_and_where_there_are_none(first, few, tmp_path, monkeypatch, request):
    spec, path = quick("single", few, epochs=4), tmp_path / "model.safetensors"
    if first == "with graphs":
        request.getfixturevalue("stand_in")
    with monkeypatch.context() as patched:
        in_the_third_epoch(patched, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            trained(spec, few, path)
    if first == "with graphs":
        monkeypatch.undo()
    else:
        request.getfixturevalue("stand_in")
    resumed, alone = trained(spec, few, path), trained(spec, few, tmp_path / "alone.safetensors")
    assert ("step" in resumed.versions) == (first == "without graphs")
    for name, tensor in alone.weights.items():  # a rate in float32 is another than one in float64
        assert torch.allclose(resumed.weights[name].float(), tensor.float(), atol=1e-3), name


class Refuses(StandIn):
    def record(self, work):
        work()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might be ...")


class Baked(StandIn):
    """A graph that keeps the values of what it recorded, in place of reading them again."""

    def __init__(self, read):
        self.read = read  # from the function's closure to the tensors that are kept

    def record(self, work):
        made = super().record(work)
        self.tensors = self.read(work)
        self.values = [each.clone() for each in self.tensors]
        return made

    def replay(self):
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)
        super().replay()


def step_of(work):
    return next(cell.cell_contents for cell in work.__closure__ if hasattr(cell.cell_contents, "images"))


def rate_of(work):
    update = next(cell.cell_contents for cell in work.__closure__ if not hasattr(cell.cell_contents, "images"))
    return [update.__self__.optimizer.param_groups[0]["lr"]]


WRONG = {
    "refused": (Refuses, "CUDA error: operation not permitted when stream is capturing"),
    "images": (lambda: Baked(lambda work: [step_of(work).images]), "a captured step differs from another: losses by"),
    "targets": (
        lambda: Baked(lambda work: list(step_of(work).targets.values())),
        "a captured step differs from another: losses by",
    ),
    "rate": (lambda: Baked(rate_of), "weights by 1.0e+00 of their step"),
}


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_captured_or_ends_otherwise_is_not_captured_and_told_in_one_line(
    what, deterministic, few, tmp_path, monkeypatch, stand_in, capsys
):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    spec, (graph, said) = quick("supervised", few, epochs=1), WRONG[what]
    expected = trained(spec, few, tmp_path / "expected.safetensors", captured=False)
    monkeypatch.setattr(trainer, "graph_for", lambda device: graph())
    got = trained(spec, few, tmp_path / "got.safetensors")
    assert got.digest == expected.digest and "step" not in got.versions
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("robench: the training step is not captured in a CUDA graph: ") and said in line


def test_a_loss_that_asks_for_a_value_is_not_captured(few, tmp_path, monkeypatch, stand_in, capsys):
    single = OBJECTIVES["single"]

    def asks(outputs, targets, terms):
        losses = single.loss(outputs, targets, terms)
        return losses if losses["main"].item() > 0 else {}

    monkeypatch.setitem(OBJECTIVES, "single", replace(single, loss=asks))
    assert "step" not in trained(quick("single", few, epochs=1), few, tmp_path / "model.safetensors").versions
    assert capsys.readouterr().err.endswith("operation not permitted when stream is capturing\n")


def looped(few, steps=0):
    spec = quick("contrastive", few)
    torch.manual_seed(0)
    model = MultiHead("small", spec.heads(few))
    loop = Loop(spec, model, adam(model, spec, "cpu"), few, "cpu")
    for _ in range(steps):
        loop.step(torch.arange(32), torch.Generator().manual_seed(1))
    return loop


@pytest.mark.parametrize("graph", [StandIn, Refuses])
@pytest.mark.parametrize("steps", [0, 2])
def test_the_comparison_leaves_weights_statistics_moments_and_rate_as_they_were(steps, graph, few, stand_in):
    loop, untouched = looped(few, steps), looped(few, steps)
    inputs = loop._inputs(torch.arange(32), torch.Generator().manual_seed(2))
    rate = loop.optimizer.param_groups[0]["lr"]
    set_rate(loop.optimizer, 0.25)
    captured(loop._update, graph(), loop.model, loop.optimizer, *inputs)
    assert loop.optimizer.param_groups[0]["lr"] is rate and rate == 0.25
    before, after = _snapshot(untouched.model, untouched.optimizer), _snapshot(loop.model, loop.optimizer)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=False))
    assert not any(each.any() for each in after[len(before) :]) and bool(steps) == (len(after) == len(before))


def test_a_rate_that_is_a_tensor_stays_where_it_is(few, stand_in):
    optimizer = looped(few).optimizer
    address = optimizer.param_groups[0]["lr"].data_ptr()
    set_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"].data_ptr() == address and float(optimizer.param_groups[0]["lr"]) == 0.5


def test_a_cpu_has_no_graphs_and_its_optimiser_is_as_before(few):
    (group,) = looped(few).optimizer.param_groups
    assert graph_for("cpu") is None and (group["lr"], group["fused"], group["capturable"]) == (3e-4, True, False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("arch", ["single", "contrastive"])
def test_on_a_gpu_a_captured_training_ends_as_one_that_is_not_and_goes_on_after_a_signal(arch, few, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    spec, path = quick(arch, few, epochs=4), tmp_path / "interrupted.safetensors"

    def on_gpu(path, captured=True):
        return load_checkpoint(train(spec, few, few, out=path, device="cuda", show_progress=False, captured=captured))

    one, other = (on_gpu(tmp_path / f"{captured}.safetensors", captured) for captured in (True, False))
    assert one.versions["step"] == IN_ONE_GRAPH and one.digest == other.digest
    with monkeypatch.context() as patched:
        in_the_third_epoch(patched, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            on_gpu(path)
    assert on_gpu(path).digest == one.digest
