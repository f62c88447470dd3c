"""How often an attack's or a training's loop waits for the device: counted on a CPU, by the operations whose result a GPU's host has to know.

Source: https://docs.pytorch.org/docs/stable/generated/torch.cuda.set_sync_debug_mode.html names them.
"""

import pytest
import torch
from cases import BrightnessClassifier, brightness_data, linear_case
from test_training import quick
from torch.utils._python_dispatch import TorchDispatchMode

from robench.attacks import parse_columns
from robench.attacks.descent import descend
from robench.attacks.nearest import nearest
from robench.data import augment
from robench.evaluation.early_stop import Referee
from robench.evaluation.engine import ColumnGroup, Job, compute
from robench.evaluation.run_folder import CLEAN, Chunk
from robench.models.classifier import Classifier
from robench.models.multihead import MultiHead
from robench.models.seeded import seeded
from robench.training.loop import Loop
from robench.types import ThreatModel

THREAT = ThreatModel("Linf", 0.02)
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::is_nonzero", "aten::_unique2",
    "aten::_linalg_check_errors",
}  # fmt: skip
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


def devices(values):
    """Of all tensors among an operation's arguments."""
    flat = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
    return [each.device for each in flat if isinstance(each, torch.Tensor)]


class Waits(TorchDispatchMode):
    """Counts the operations that a host waits for, those that index by a mask and copies from one device to another among them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        by_mask = name in INDEXING and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        made = func(*args, **(kwargs or {}))
        copied = name in ("aten::_to_copy", "aten::copy_") and len(set(devices([*args, made]))) > 1
        self.count += name in WAITING or by_mask or copied
        return made


def survivors(n=12):
    model, images, labels, robust = linear_case(THREAT.eps, "Linf", n=4 * n)
    few = robust.nonzero().flatten()[:n]
    assert len(few) == n
    return Classifier(model, 10), images[few], labels[few]


def test_what_a_host_waits_for_is_counted():
    x = torch.arange(4.0)
    with Waits() as waits:
        x[x > 1]
        x[x > 1] = 0
        (x > 1).nonzero()
        float(x.sum())
        x[torch.tensor([0, 1])] = x[torch.tensor([1, 0])]
        torch.where(x > 1, x, x + 1)
        x.double()
        torch.linalg.inv(torch.eye(2))
        x.to("meta")
    assert waits.count == 6


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "rescaled"])
def test_our_gradient_steps_wait_once_each(loss):
    classifier, images, labels = survivors()
    counts = []
    for steps in (10, 30):
        with seeded(0, images.device), Waits() as waits:
            descend(classifier, images, labels, THREAT, 0, loss=loss, steps=steps, step_size=0.005)
        counts.append(waits.count)
    assert counts[1] - counts[0] == 20  # who is left


def test_the_fast_search_waits_once_a_step_and_a_few_times_a_descent():
    classifier, images, labels = survivors()
    with seeded(0, images.device), classifier.counting() as passes, Waits() as waits:
        nearest(classifier, images, labels, THREAT, 0, budget=0.02, steps=10)
    steps = passes.forwards / len(images)  # all of them are left, and attacked at a time
    assert waits.count <= steps + 8 * (steps / 11 + 3)


def test_a_query_that_breaks_something_makes_the_referee_wait_twice_more():
    images, labels = brightness_data([0.02, 0.05, 0.08, 0.3])
    classifier = Classifier(BrightnessClassifier(), 2)
    referee = Referee(images, labels, ThreatModel("Linf", 0.1), classify=BrightnessClassifier())
    counts = []
    for step in (0.0, 0.06, 0.09):
        with classifier.watched_by(referee), Waits() as waits:
            classifier(images - step)
        counts.append(waits.count)
    assert referee.broken.tolist() == [True, True, True, False] and counts == [1, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [("pgd20", 1), ("apgd-ce", 1), ("square200", 1), ("fab-t", 2)])  # FAB leaves the ball
def test_watching_an_attack_makes_it_wait_once_a_query_more(name, more):
    classifier, images, labels = survivors()
    (suite,) = parse_columns(name, THREAT, 10)
    job, chunk = Job(classifier, THREAT, 0), Chunk(0, len(images))
    known = {CLEAN: next(compute(job, ColumnGroup(()), images, labels, chunk, {}))[1]}
    with Waits() as watched:
        ((_, verdicts, _),) = compute(job, ColumnGroup((suite,)), images, labels, chunk, known)
    with seeded(0, images.device), Waits() as alone, classifier.counting():
        suite.stages[0].fn(classifier, images, labels, THREAT, 0)
    queries = verdicts.forwards / len(images)
    assert watched.count - alone.count <= more * queries + 40  # 40: the verdict, once a call


# Trainings.


@pytest.mark.parametrize("adversarial", ["none", "nfgsm"])
@pytest.mark.parametrize("arch", ["single", "supervised", "contrastive"])
def test_a_training_step_never_waits_for_the_device(arch, adversarial, few, monkeypatch):
    """On torch's meta device, whose tensors have no values: whoever asks for one gets an error."""
    monkeypatch.setattr(augment, "_order", lambda generator: (2, 3, 0, 1))  # of a GPU's generator: see test_augment.py
    spec = quick(arch, few, adversarial=adversarial)
    with torch.device("meta"):
        model = MultiHead("small", spec.heads(few))
    loop = Loop(spec, model, torch.optim.SGD(model.parameters(), lr=0.1), few, "meta")
    batch, generator = torch.arange(32, device="meta"), torch.Generator()
    loop.step(batch, generator)  # copies what is copied once
    with Waits() as waits:
        losses = loop.step(batch, generator)
    assert waits.count == 0
    with pytest.raises(RuntimeError, match="meta"):
        float(losses["main"].detach())


@pytest.mark.parametrize(("arch", "terms"), [("single", 1), ("contrastive", 2)])
def test_an_epoch_waits_once_a_term_at_its_end_and_once_more_for_its_line(arch, terms, few, capsys):
    augment._yiq(torch.device("cpu"))  # once in a process
    for batch_size in (8, 32):
        spec = quick(arch, few, batch_size=batch_size)
        model = MultiHead("small", spec.heads(few))
        loop = Loop(spec, model, torch.optim.Adam(model.parameters(), fused=True), few, "cpu")
        with Waits() as waits:
            loop.run_epoch(0, show_progress=False)
        with Waits() as told:
            loop.run_epoch(1, show_progress=True)
        assert (waits.count, told.count) == (terms, terms + 1)
