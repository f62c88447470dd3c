"""How often an attack's or a training's loop waits for the device: counted on a CPU, by the operations whose result a GPU's host has to know.

Source: https://docs.pytorch.org/docs/stable/generated/torch.cuda.set_sync_debug_mode.html names them.
"""

import pytest
import torch
from cases import BrightnessClassifier, brightness_data, linear_case
from test_training import quick
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from robench.attacks import parse_columns
from robench.attacks.descent import descend
from robench.attacks.nearest import nearest
from robench.data import augment
from robench.evaluation import crafting
from robench.evaluation.early_stop import AllDecided, Referee
from robench.evaluation.engine import ColumnGroup, Job, compute
from robench.evaluation.guard import same_on_device
from robench.evaluation.run_folder import CLEAN, Chunk
from robench.models.classifier import Classifier
from robench.models.multihead import MultiHead
from robench.models.seeded import seeded
from robench.training.loop import Loop
from robench.types import ReturnPolicy, ThreatModel

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


class Asked:
    """A referee of four gray images, three of which break one after the other, and what it waited for at each query."""

    def __init__(self, every, offsets=(0.02, 0.05, 0.08, 0.3), cut=ReturnPolicy.ANY):
        images, labels = brightness_data(offsets)
        classifier = Classifier(BrightnessClassifier(), 2)
        self.referee = Referee(images, labels, ThreatModel("Linf", 0.1), classify=BrightnessClassifier(), cut=cut, every=every)
        self.counts, self.ended = [], False
        for step in (0.0, 0.06, 0.09, 0.09, 0.0, 0.0, 0.0, 0.0, 0.0):
            try:
                with classifier.watched_by(self.referee), Waits() as waits:
                    classifier(images - step)
            except AllDecided:
                self.ended = True
                break
            finally:
                self.counts.append(waits.count)


def test_the_referee_of_a_call_that_it_may_not_end_waits_once_a_query_on_a_cpu_and_never_on_a_device():
    cpu, device = (Asked(every, cut=ReturnPolicy.LAST) for every in (1, 4))
    assert cpu.counts == 9 * [1] and device.counts == 9 * [0]
    assert cpu.referee.broken.tolist() == device.referee.broken.tolist() == [True, True, True, False]


def test_on_a_device_the_host_looks_at_the_first_queries_and_then_at_every_so_manieth():
    assert Asked(4).counts == [1, 1, 1, 1, 0, 0, 0, 1, 0]
    assert Asked(1).counts == [1, 2, 2, 2, 1, 1, 1, 1, 1]


def test_a_call_that_may_end_ends_at_the_next_look():
    assert [len(Asked(every, (0.02, 0.05, 0.08)).counts) for every in (1, 4)] == [3, 3]  # both look at the third query
    late = Asked(2, (0.02, 0.05, 0.08))
    assert late.ended and len(late.counts) == 4  # the third query decided it


@pytest.mark.parametrize("threat", [ThreatModel("Linf", 0.05), ThreatModel("L2", 1.0), ThreatModel("L1", 20.0)], ids=str)
@pytest.mark.parametrize("cut", [ReturnPolicy.LAST, ReturnPolicy.ANY, ReturnPolicy.FORWARD])
def test_a_referee_knows_the_same_however_rarely_the_host_looks(threat, cut):
    generator = torch.Generator().manual_seed(0)
    images = 0.3 + 0.4 * torch.rand(30, 3, 8, 8, generator=generator)
    weight = torch.randn(192, 10, generator=generator)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), 10)
    classifier.module[1].weight.data.copy_(weight.T / 10)
    labels = (classifier(images).argmax(1) + (torch.arange(30) < 10)) % 10  # ten of them break at once
    referees = [Referee(images, labels, threat, classify=classifier, cut=cut, every=every, taps=(13,)) for every in (1, 8)]
    for query in range(40):
        n = 30 if query % 3 else int(torch.randint(1, 30, (1,), generator=generator))
        rows = torch.arange(30) if n == 30 else torch.randint(0, 30, (n,), generator=generator)  # some of them twice
        noise = 2 * torch.rand(n, 3, 8, 8, generator=generator) - 1
        queries = images[rows] + noise * threat.eps / threat.distance(noise, torch.zeros_like(noise))[:, None, None, None]
        queries[0] = queries[0] if query % 5 else float("nan")
        for referee in referees:
            with torch.set_grad_enabled(bool(query % 2)), classifier.watched_by(referee):
                classifier(queries.clone().requires_grad_(bool(query % 2)))
    assert 0 < int(referees[0].broken.sum()) < 30
    one, other = referees
    compared = [(vars(one), vars(other), "_margin"), (vars(one), vars(other), "_decided")]
    for name in ("best", "broken", "broken_at"):
        compared += [(vars(one), vars(other), name), (vars(one.snapshots[13]), vars(other.snapshots[13]), name)]
    for mine, its, name in compared:
        assert torch.equal(mine[name].float().nan_to_num(), its[name].float().nan_to_num()), name


def test_weights_are_compared_without_waiting_as_they_are_with_it():
    weights = torch.tensor([1.0, float("nan"), float("inf")])
    for other, same in ((weights.clone(), True), (weights.nan_to_num(), False), (weights[:1], False), (torch.arange(3.0), False)):
        with Waits() as waits:
            found = same_on_device(weights, other)
        assert waits.count == 0 and bool(found) == same
    assert bool(same_on_device(torch.tensor([1, 2]), torch.tensor([1, 2])))


def watching_costs(name, every):
    """How many more waits an attack has under watch, and for how many queries."""
    classifier, images, labels = survivors()
    (suite,) = parse_columns(name, THREAT, 10)
    job, chunk = Job(classifier, THREAT, 0), Chunk(0, len(images))
    known = {CLEAN: next(compute(job, ColumnGroup(()), images, labels, chunk, {}))[1]}
    with pytest.MonkeyPatch.context() as patch, Waits() as watched:
        patch.setattr(crafting, "queries_between_looks", lambda device: every)
        ((_, verdicts, _),) = compute(job, ColumnGroup((suite,)), images, labels, chunk, known)
    with seeded(0, images.device), Waits() as alone, classifier.counting():
        suite.stages[0].fn(classifier, images, labels, THREAT, 0)
    return watched.count - alone.count, verdicts.forwards / len(images)


def test_on_a_device_watching_pgd_makes_it_wait_for_the_verdict_alone():
    (more, queries), (on_cpu, _) = watching_costs("pgd20", every=8), watching_costs("pgd20", every=1)
    assert queries == 20 and more == 6 and on_cpu == more + 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "every", "a_query"),
    [("pgd50-margin", 1, 1), ("pgd50-margin", 8, 1 / 8), ("apgd-ce", 1, 1), ("apgd-ce", 8, 1 / 8), ("square200", 8, 1 / 8), ("fab-t", 1, 2), ("fab-t", 8, 1 / 8)],
)  # fmt: skip
def test_watching_an_attack_makes_it_wait_so_often_a_query(name, every, a_query):
    more, queries = watching_costs(name, every)
    assert more <= a_query * queries + 24  # the first eight looks, and the verdict, once a call


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
