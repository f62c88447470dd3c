"""Recorded passes, by a stand-in for CUDA graphs: equal to the model's own, or not made at all."""

import copy
import gc
import pickle
import random
import re
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CLASSES, Centred, NoGradient, fake, linear_case
from standin import StandIn, settled, stood_in
from torch import nn
from torch.utils.checkpoint import checkpoint

from robench.attacks import AttackOptions, parse_columns
from robench.attacks.descent import descend
from robench.evaluation import crafting
from robench.evaluation.engine import ColumnGroup, Job, compute
from robench.evaluation.run_folder import CLEAN, Chunk
from robench.models import graphed as module
from robench.models.classifier import Classifier
from robench.models.graphed import graphed
from robench.models.recording import Recording
from robench.models.subject import classifier_of_module
from robench.run.execute import Place, execute
from robench.run.plan import plan
from robench.run.request import AttackRequest
from robench.types import Column, Dataset, PassOptions, ThreatModel

LADDER = (4, 8)
THREAT = ThreatModel("Linf", 0.02)


class Small(nn.Module):
    """Convolution, BatchNorm, ReLU, pooling, linear: images (N, 3, 4, 4) into ``CLASSES``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(32, CLASSES)

    def forward(self, images):
        return self.head(self.body(images))


def images_of(n, seed=0):
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def gradient_of(classifier, images, **how):
    queries = images.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(classifier(queries), torch.zeros(len(images)).long()), queries, **how)[0]


@pytest.fixture
def recorded():
    """A classifier with its passes of 4 and 8 images recorded, the recorded passes, and its twin that computes."""
    classifier, own = Classifier(Small(), CLASSES), Classifier(Small(), CLASSES)
    with stood_in(LADDER), graphed(classifier) as passes:
        for n in LADDER:
            settled(classifier, passes, images_of(n))
        assert len(passes.recorded) == 4 and not passes.refused
        yield classifier, passes, own


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8])
def test_a_batch_that_is_filled_up_has_the_logits_and_the_gradient_of_its_own(recorded, n):
    classifier, passes, own = recorded
    before, images = passes.replays, images_of(n, seed=n)
    with torch.no_grad():
        assert torch.allclose(classifier(images), own(images), atol=1e-6)
    assert torch.allclose(gradient_of(classifier, images), gradient_of(own, images), atol=1e-7)
    assert passes.replays == before + 2 and passes.memory.recomputed == 0
    used = passes.recorded[module.Kind(4 if n <= 4 else 8, (3, 4, 4), True)]
    assert used._gradient[:n].any() and not used._gradient[n:].any()  # what fills the batch up has no gradient


def test_a_recording_computes_what_the_filled_batch_does_bit_for_bit(recorded):
    classifier, _passes, own = recorded
    images = images_of(8, seed=3)
    assert torch.equal(classifier(images), own(images))
    assert torch.equal(gradient_of(classifier, images), gradient_of(own, images))


def test_logits_are_the_callers_own(recorded):
    classifier, _, own = recorded
    with torch.no_grad():
        first = classifier(images_of(3))
        kept = first.clone()
        classifier(images_of(3, seed=1))
        assert torch.equal(first, kept)
        first.zero_()
        assert torch.allclose(classifier(images_of(3)), own(images_of(3)), atol=1e-6)


def two_forwards_then_two_backwards(classifier):
    first, second = (images_of(n, seed=n).requires_grad_() for n in (3, 7))
    losses = [classifier(each).square().sum() for each in (first, second)]
    return [torch.autograd.grad(loss, each)[0] for loss, each in zip(losses, (first, second), strict=True)]


def one_graph_twice(classifier):
    queries = images_of(4).requires_grad_()
    logits = classifier(queries)
    return [torch.autograd.grad(logits[:, k].sum(), queries, retain_graph=True)[0] for k in range(CLASSES)]


def one_loss_over_several_passes(classifier):
    queries = images_of(4).requires_grad_()
    loss = sum(classifier(queries * scale).logsumexp(1).sum() for scale in (1.0, 0.5, 0.25))
    return [torch.autograd.grad(loss, queries)[0]]


def images_overwritten_before_the_backward(classifier):
    queries = images_of(4).requires_grad_()
    logits = classifier(queries)
    with torch.no_grad():
        queries.zero_()
    classifier(images_of(4, seed=9))  # so that the forward pass has to be replayed
    return [torch.autograd.grad(logits.square().sum(), queries)[0]]


def with_checkpoint(classifier):
    queries = images_of(4).requires_grad_()
    logits = checkpoint(classifier, queries, use_reentrant=False)
    classifier(images_of(8))
    return [logits, torch.autograd.grad(logits.square().sum(), queries)[0]]


@pytest.mark.parametrize(
    ("order", "recomputed"),
    [(two_forwards_then_two_backwards, 2), (one_graph_twice, CLASSES - 1), (one_loss_over_several_passes, 2),
     (images_overwritten_before_the_backward, 1), (with_checkpoint, 0)],
)  # fmt: skip
def test_any_order_of_calls_has_the_same_gradients(recorded, order, recomputed):
    classifier, passes, own = recorded
    with classifier.counting() as counted, own.counting() as expected_counts:
        for got, expected in zip(order(classifier), order(own), strict=True):
            assert torch.allclose(got, expected, atol=1e-6)
    assert passes.memory.recomputed == recomputed
    assert counted == expected_counts  # neither filling nor what is computed again


def test_a_stand_in_notices_a_backward_pass_whose_forward_pass_was_not_the_last(recorded, monkeypatch):
    """The rule that the tests above lean on."""
    classifier, passes, _ = recorded
    monkeypatch.setattr(
        type(passes.memory), "__setattr__", lambda self, name, value: name == "version" or object.__setattr__(self, name, value)
    )
    with pytest.raises((RuntimeError, AssertionError)):
        two_forwards_then_two_backwards(classifier)


def curvature(classifier):
    queries = images_of(3).requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(queries).softmax(1)[:, 0].sum(), queries, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), queries)[0]


def jacobian(classifier):
    queries = images_of(3).requires_grad_()
    logits = classifier(queries)
    return torch.autograd.grad(logits, queries, torch.eye(CLASSES)[:, None].expand(CLASSES, 3, CLASSES), is_grads_batched=True)[0]


@pytest.mark.parametrize("asked", [curvature, jacobian])
def test_derivatives_that_no_recording_has_are_computed(recorded, asked):
    classifier, _, own = recorded
    assert torch.allclose(asked(classifier), asked(own), atol=1e-6)


def in_float64(classifier):
    return classifier.double()(images_of(4).double())


def within(context):
    def ask(classifier):
        with context():
            return classifier(images_of(4))

    return ask


def with_hooks(classifier):
    handle = classifier.module.head.register_forward_hook(lambda part, inputs, output: 2 * output)
    try:
        return classifier(images_of(4))
    finally:
        handle.remove()


def of_parameters(classifier):
    classifier.module.head.weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(classifier(images_of(4)).square().sum(), classifier.module.head.weight)
    classifier.requires_grad_(False)
    return gradient


def vectorised(classifier):
    return torch.func.vmap(lambda image: classifier(image[None])[0])(images_of(4))


def forward_derivative(classifier):
    return torch.func.jvp(classifier, (images_of(4),), (images_of(4, seed=1),))[1]


@pytest.mark.parametrize(
    "asked",
    [in_float64, within(torch.inference_mode), within(lambda: torch.autocast("cpu")), with_hooks, of_parameters, vectorised, forward_derivative,
     lambda classifier: classifier(images_of(9)), lambda classifier: classifier(images_of(0))],
)  # fmt: skip
def test_what_a_recording_cannot_serve_is_computed(recorded, asked):
    classifier, passes, own = recorded
    before = passes.replays
    assert torch.allclose(asked(classifier).float(), asked(own).float(), atol=1e-6)
    assert passes.replays == before and not passes.refused


def swapped_layer(model):
    model.head = nn.Linear(32, CLASSES).requires_grad_(False).eval()


def swapped_tensor(model):
    model.head.weight.data = torch.ones(CLASSES, 32)


def changed_in_place(model):
    model.head.weight.mul_(3)


def attribute(model):
    model.body[3].output_size = (2, 2)


@pytest.mark.parametrize(
    ("change", "anew"), [(swapped_layer, True), (swapped_tensor, True), (changed_in_place, False), (attribute, True)]
)
def test_what_an_attack_does_to_the_model_is_seen_by_the_next_pass(recorded, change, anew):
    classifier, passes, own = recorded
    kind = module.Kind(4, (3, 4, 4), False)
    before = passes.recorded[kind]
    for each in (classifier, own):
        torch.manual_seed(1)
        with torch.no_grad():
            change(each.module)
    for _ in range(4):
        assert torch.allclose(classifier(images_of(4)), own(images_of(4)), atol=1e-6)
    assert not passes.refused and (passes.recorded[kind] is not before) == anew  # a graph would know the old one alone


class Branches(Centred):
    def forward(self, images):
        return super().forward(images) * (2 if images.sum() > 0 else 1)


class Reads(Centred):
    def forward(self, images):
        return super().forward(images) * images[0].sum().item()


class Selects(Centred):
    def forward(self, images):
        logits = super().forward(images)
        return logits.masked_scatter(logits < 0, logits[logits < 0] * 2)


class DropsOut(Centred):
    def forward(self, images):
        return F.dropout(super().forward(images), 0.5, training=True)


class Noisy(Centred):
    def forward(self, images):
        return super().forward(images) + 1e-3 * torch.randn(CLASSES)


class NumpyNoise(Centred):
    def forward(self, images):
        return super().forward(images) * (1 + 1e-3 * np.random.rand())


class PythonNoise(Centred):
    def forward(self, images):
        return super().forward(images) * (1 + 1e-3 * random.random())


class Counts(Centred):
    calls = 0

    def forward(self, images):
        self.calls += 1
        return super().forward(images)


class Keeps(Centred):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(len(images))
        return super().forward(images)


class BatchMean(Centred):
    def forward(self, images):
        return super().forward(images - 0.1 * images.mean(0))


class ByTheBatch(Centred):
    def forward(self, images):
        return super().forward(images) / len(images)


class Neighbours(Centred):
    """The first rows are told the last one, by their gradient alone."""

    def forward(self, images):
        logits = super().forward(images)
        return logits + (logits[-1:] - logits[-1:].detach())


def in_train_mode():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    norm.train = lambda mode=True: norm  # stays as it is, whatever it is told
    return nn.Sequential(norm, nn.Flatten(), nn.Linear(48, CLASSES))


def on_batch_statistics():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(48, CLASSES))


def a_program():
    return torch.jit.trace(Centred().requires_grad_(False), images_of(4))


REFUSED = {
    "branches": (Branches, "looks at values on the host"),
    "item": (Reads, "looks at values on the host"),
    "mask": (Selects, "looks at values on the host"),
    "dropout": (DropsOut, "draws at random"),
    "noise": (Noisy, "draws at random"),
    "numpy": (NumpyNoise, "draws at random"),
    "python": (PythonNoise, "draws at random"),
    "counts": (Counts, "parts of the model change from call to call"),
    "keeps": (Keeps, "keeps something from pass to pass .in seen"),
    "batch mean": (BatchMean, "depends on the others of its batch"),
    "batch size": (ByTheBatch, "depends on the others of its batch"),
    "neighbours": (Neighbours, "depends on the others of its batch"),
    "batch statistics": (on_batch_statistics, "depends on the others of its batch"),
    "no gradient": (NoGradient, "does not require grad"),
    "program": (a_program, "TorchScript"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_recorded_computes_as_ever_and_one_line_says_why(name, capsys):
    make, why = REFUSED[name]
    classifier, own = (Classifier(make() if name != "program" else Centred(), CLASSES) for _ in range(2))
    if name == "program":
        classifier = Classifier(make(), CLASSES)
    with stood_in(LADDER) as made, graphed(classifier) as passes:
        for step in range(6):
            images = images_of(3, seed=step).requires_grad_(step % 2 == 0 or name == "no gradient")
            for each in (classifier, own):
                each.seeded = (torch.manual_seed(step), random.seed(step), np.random.seed(step))
                each.said = each(images)
            assert torch.equal(classifier.said, own.said)
    assert passes.refused and not passes.recorded and passes.replays == 0 and made[0].replays == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("robench: passes are not recorded as CUDA graphs") and re.search(why, line)


def test_a_model_in_train_mode_is_not_recorded_and_is_left_as_it_is():
    classifier, own = Classifier(in_train_mode(), CLASSES), Classifier(in_train_mode(), CLASSES)
    with stood_in(LADDER), graphed(classifier) as passes:
        for step in range(4):
            assert torch.equal(classifier(images_of(3, seed=step)), own(images_of(3, seed=step)))
    assert passes.replays == 0 and classifier.module[0].num_batches_tracked == own.module[0].num_batches_tracked == 4


class Wrong(StandIn):
    """Replays something else."""

    def record(self, work):
        recording = super().record(work)
        return Recording(lambda: (recording.replay(), recording.result.mul_(1.01)), recording.result)


class Fails(StandIn):
    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


class Full(StandIn):
    def rehearse(self, work):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("recorder", "why"), [(Wrong, "differ from the model's own"), (Fails, "not permitted"), (Full, "memory ran out")]
)
def test_a_recording_that_fails_or_differs_is_not_used(recorder, why, capsys, monkeypatch):
    classifier, own = Classifier(Small(), CLASSES), Classifier(Small(), CLASSES)
    monkeypatch.setattr(module, "recorder_for", recorder)
    with graphed(classifier) as passes:
        for step in range(4):
            assert torch.equal(gradient_of(classifier, images_of(3, seed=step)), gradient_of(own, images_of(3, seed=step)))
    assert why in passes.refused and passes.replays == 0 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_lost_device_is_no_reason_to_go_on(monkeypatch):
    class Lost(StandIn):
        def rehearse(self, work):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    classifier = Classifier(Small(), CLASSES)
    monkeypatch.setattr(module, "recorder_for", Lost)
    with graphed(classifier), pytest.raises(RuntimeError, match="illegal memory access"):
        for _ in range(2):
            classifier(images_of(3))


def test_where_memory_runs_out_recordings_are_given_back_and_the_pass_is_tried_again(recorded, monkeypatch):
    classifier, passes, own = recorded
    tries = []

    def forward(self, images):
        tries.append(len(images))
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return nn.Module.__call__(own.module, images)

    monkeypatch.setattr(Small, "forward", forward)
    monkeypatch.setattr(own, "module", copy.deepcopy(own.module))
    own.module.forward = lambda images: own.module.head(own.module.body(images))
    assert classifier(images_of(9)).shape == (9, CLASSES) and tries == [9, 9]
    assert not passes.recorded and passes.refused == "memory ran out"


def test_a_size_is_recorded_when_it_is_asked_for_again_and_served_by_the_next_larger_one_until_then():
    classifier = Classifier(Small(), CLASSES)
    with stood_in((4, 8, 16, 64)), graphed(classifier) as passes, torch.no_grad():
        sizes = lambda: sorted(kind.size for kind in passes.recorded)
        classifier(images_of(7))
        assert sizes() == [] and passes.replays == 0
        classifier(images_of(6))
        assert sizes() == [8] and passes.replays == 1
        classifier(images_of(3))
        assert sizes() == [8] and passes.replays == 2  # one of 8
        classifier(images_of(2))
        assert sizes() == [4, 8] and passes.replays == 3
        classifier(images_of(16))
        classifier(images_of(40))
        assert sizes() == [4, 8] and passes.replays == 3
    with graphed(classifier) as again:  # on this device nothing is
        assert again is None


def test_the_number_of_recordings_is_bounded():
    classifier, own = Classifier(Small(), CLASSES), Classifier(Small(), CLASSES)
    with stood_in((2, 4, 6, 8, 10), MOST=3) as made, graphed(classifier) as passes:
        for _ in range(3):
            for n in range(1, 11):
                assert torch.allclose(gradient_of(classifier, images_of(n)), gradient_of(own, images_of(n)), atol=1e-6)
    assert len(passes.recorded) == 3 and made[0].made == 6  # forward and backward
    assert passes.replays > 12


def test_recordings_stay_for_the_next_call_and_go_with_the_classifier():
    classifier = Classifier(Small(), CLASSES)
    with stood_in(LADDER):
        with graphed(classifier) as passes:
            settled(classifier, passes, images_of(4))
        with graphed(classifier) as again:
            assert again is passes and len(again.recorded) == 2
        gone = weakref.ref(classifier), weakref.ref(passes)
        del classifier, passes, again
        gc.collect()
        assert [each() for each in gone] == [None, None]


def test_a_copy_of_a_recorded_classifier_computes_by_itself(recorded):
    classifier, passes, own = recorded
    for twin in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        before = passes.replays
        twin.module.head.weight.data.mul_(2)
        twin.module.head.bias.data.mul_(2)
        assert torch.allclose(twin(images_of(4)), 2 * own(images_of(4)), atol=1e-6) and passes.replays == before
        assert torch.allclose(twin.double()(images_of(4).double()).float(), 2 * own(images_of(4)), atol=1e-5)


def test_random_models_and_short_memory_are_left_alone():
    classifier = Classifier(Small(), CLASSES)
    with stood_in(LADDER):
        for name, value in (("draws", 100), ("largest_pass", 4)):
            setattr(classifier, name, value)
            with graphed(classifier) as passes:
                assert passes is None
            setattr(classifier, name, {"draws": 1, "largest_pass": None}[name])
        classifier.takes = module.BatchRule(smallest=2)
        with graphed(classifier) as passes:
            settled(classifier, passes, images_of(4))
            assert passes.replays == 0


def test_the_checks_draw_nothing_and_count_nothing():
    classifier = Classifier(Small(), CLASSES)
    torch.manual_seed(0)
    state = torch.get_rng_state(), random.getstate()
    with stood_in(LADDER), graphed(classifier) as passes, classifier.counting() as counted:
        for _ in range(3):
            gradient_of(classifier, images_of(3))
    assert passes.replays == 2 and (counted.forwards, counted.backwards) == (9, 9)
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]


class Rowwise(nn.Module):
    """A network whose rows are added up alike in a batch of any size: two layers of products and sums."""

    def __init__(self, shape=(3, 6, 6), classes=10):
        super().__init__()
        generator, pixels = torch.Generator().manual_seed(0), shape[0] * shape[1] * shape[2]
        self.first = nn.Parameter(torch.randn(16, pixels, generator=generator) / pixels**0.5)
        self.second = nn.Parameter(torch.randn(classes, 16, generator=generator))

    def forward(self, images):
        hidden = ((images.flatten(1) - 0.5)[:, None] * self.first).sum(2).relu()
        return (hidden[:, None] * self.second).sum(2)


def chunk_of(name, stand_in, *, n=24, options=None, column=None, **how):
    """Verdicts and images of one column on a chunk, with what was recorded, by the model's own passes or by the stand-in's."""
    classifier = Classifier(Rowwise(), 10)
    images = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    labels = classifier(images).argmax(1)
    suite = column or parse_columns(name, THREAT, 10, options or AttackOptions())[0]
    job, chunk = Job(classifier, THREAT, 0, save=True, **how), Chunk(0, n)
    known = {CLEAN: next(compute(job, ColumnGroup(()), images, labels, chunk, {}))[1]}
    if not stand_in:
        return list(compute(job, ColumnGroup((suite,)), images, labels, chunk, known)), []
    with stood_in((4, 8, 16, 24, 32)) as made:
        return list(compute(job, ColumnGroup((suite,)), images, labels, chunk, known)), made


def same(one, other):
    for mine, its in zip(one, other, strict=True):
        for name in ("outcome", "best", "adv_pred", "distance", "margin", "broken_at", "forwards", "backwards", "adv_digest"):
            assert np.array_equal(
                getattr(mine.verdicts, name), getattr(its.verdicts, name), equal_nan=name in ("distance", "margin", "broken_at")
            ) or (getattr(mine.verdicts, name) == getattr(its.verdicts, name)), name


@pytest.mark.parametrize("name", ["pgd20", "pgd50-margin", "nearest", "apgd-ce", pytest.param("fab-t", marks=pytest.mark.slow)])
def test_an_attack_gives_the_same_images_verdicts_and_counts_sample_by_sample(name):
    options = AttackOptions(budget=0.01) if name == "nearest" else None
    own, _ = chunk_of(name, False, options=options)
    replayed, made = chunk_of(name, True, options=options)
    same(own, replayed)
    assert sum(each.replays for each in made) > 10
    outcomes = set(own[-1].verdicts.outcome.tolist())
    assert outcomes == {"broken", "robust"}


@pytest.mark.slow
def test_the_fast_suite_gives_the_same_verdicts_sample_by_sample():
    own, _ = chunk_of("fast", False)
    replayed, made = chunk_of("fast", True)
    same(own, replayed)
    assert len(made) == 2  # the folded twin, and the model itself for the gate


def asks(model, images, labels, threat, seed):
    for _ in range(3):
        model(images)
    return images


@pytest.mark.parametrize("how", [{}, {"graphed": False}], ids=str)
def test_graphs_can_be_left_out(how):
    _, made = chunk_of("", True, column=Column("asks", (fake("asks", asks),), is_cascade=False), **how)
    assert [each.replays > 0 for each in made] == ([] if how else [True])


@pytest.mark.parametrize("wanted", [True, False])
def test_the_option_reaches_whoever_computes(tmp_path, wanted):
    class Seen(Exception):
        pass

    def evaluate(*given, graphed, **how):
        assert graphed == wanted
        raise Seen

    subject = classifier_of_module(Small(), CLASSES, "cpu")
    data = Dataset("images", "test", images_of(4), torch.zeros(4).long(), tuple("abcde"))
    run = plan(AttackRequest("pgd2", eps="0.02", graphed=wanted), subject, data, tmp_path / "run", device="cpu")
    with pytest.raises(Seen):
        execute(run, Place("cpu", "cpu", evaluate=evaluate), show_progress=False)


def test_a_backward_pass_may_come_after_its_recording_was_given_up(recorded):
    classifier, passes, own = recorded
    queries, theirs = images_of(4).requires_grad_(), images_of(4).requires_grad_()
    logits, expected = classifier(queries), own(theirs)
    passes.forget()
    settled(classifier, passes, images_of(4, seed=5))  # other recordings, which share their memory
    (got,), (wanted,) = (torch.autograd.grad(each.square().sum(), x) for each, x in ((logits, queries), (expected, theirs)))
    assert torch.allclose(got, wanted, atol=1e-6) and passes.memory.recomputed == 1


def test_compiled_passes_are_not_recorded(monkeypatch):
    monkeypatch.setattr(crafting, "cheaper_twin", lambda classifier, options, images: classifier)
    attack = replace(fake("asks", asks), pass_options=PassOptions(compiled=True))
    assert chunk_of("", True, column=Column("asks", (attack,), is_cascade=False))[1] == []


def test_what_has_the_last_word_inside_a_call_is_computed():
    """The referee asks again, before it ends a call, by the model's own pass."""
    classifier, replays = Classifier(Small(), CLASSES), []
    with stood_in(LADDER), graphed(classifier) as passes:
        settled(classifier, passes, images_of(4))
        for ask in (classifier, lambda images: crafting.unwatched(classifier, images), classifier):
            before = passes.replays
            ask(images_of(4))
            replays.append(passes.replays - before)
    assert replays == [1, 0, 1]


@pytest.mark.parametrize("settings", [{"through": True}, {"double": True}])
def test_descents_that_look_into_the_model_are_not_served_by_recordings(settings):
    model, images, labels, _ = linear_case(THREAT.eps, "Linf", n=12)
    results = []
    for stand_in in (False, True):
        classifier = Classifier(model, 10)
        torch.manual_seed(0)
        if not stand_in:
            results.append(descend(classifier, images, labels, THREAT, 0, loss="ce", steps=5, step_size=0.005, **settings))
            continue
        with stood_in((4, 8, 16)), graphed(classifier) as passes:
            results.append(descend(classifier, images, labels, THREAT, 0, loss="ce", steps=5, step_size=0.005, **settings))
            assert passes.replays == 0
    assert torch.equal(*results)
