"""A search in TF32, by its flags, which a CPU sets and reads without heeding them: on in the passes of the search, off in all that judges."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from cases import fake
from standin import StandIn, stood_in
from torch import nn

from robench import evaluate
from robench.attacks import AttackOptions, parse_columns
from robench.evaluation import search_precision
from robench.evaluation.engine import ColumnGroup, Job, compute
from robench.evaluation.linear import linear_case
from robench.evaluation.run_folder import CLEAN, Chunk, attack_folder
from robench.models import quicker
from robench.models.arithmetic import arithmetic
from robench.models.classifier import Classifier
from robench.run.attack import attack
from robench.run.plan import settled_precision
from robench.run.request import AttackRequest
from robench.types import Column, PassOptions, RobenchError, ThreatModel

THREAT, OFF, ON = ThreatModel("Linf", 0.02), (False, False), (True, True)
TF32 = PassOptions(precision="tf32")


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


class Notes(torch.autograd.Function):
    """Passes values and gradients on, and notes the flags at both."""

    @staticmethod
    def forward(ctx, logits, note):
        ctx.note = note
        note("forward")
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.note("backward")
        return gradient, None


class Seeing(nn.Module):
    """A linear model that notes whose pass it is, in which direction, with which flags."""

    seen: list = []  # noqa: RUF012
    first = None

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_forward_pre_hook(lambda module, inputs: None)  # with a hook it is searched as it is, not traced

    def forward(self, images):
        whose = "own" if self is Seeing.first else "twin"
        return Notes.apply(self.model(images), lambda way: Seeing.seen.append((whose, way, flags())))


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Flags are set for a CPU's classifiers too."""
    monkeypatch.setattr(search_precision, "arithmetic", lambda precision, device: arithmetic(precision, "cuda"))
    before = flags()
    with arithmetic("fp32", "cuda"):
        yield
        assert flags() == OFF
    assert flags() == before


def seen_by(column, *, judged=True, **how):
    """What the passes of a column saw, on a chunk of which some samples break, and its verdicts; ``judged``: those of the clean chunk too."""
    model, images, labels, _ = linear_case(THREAT.eps, "Linf", n=24)
    Seeing.first = Seeing(model)
    job, chunk = Job(Classifier(Seeing.first, 10), THREAT, 0, **how), Chunk(0, len(images))
    known = {CLEAN: next(compute(job, ColumnGroup(()), images, labels, chunk, {}))[1]}
    Seeing.seen = []
    return Seeing.seen, [each.verdicts for each in compute(job, ColumnGroup((column,)), images, labels, chunk, known)]


def column_of(fn, options=TF32):
    return Column("mine", (replace(fake("mine", fn), pass_options=options),), is_cascade=False)


def asks(model, images, labels, threat, seed):
    queries = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(queries), labels), queries)
    adv_images = (images + threat.eps * gradient.sign()).clamp(0, 1).detach()
    model.certain(adv_images)
    return adv_images


def test_the_search_is_in_tf32_and_what_judges_is_not(as_on_cuda):
    seen, (verdicts,) = seen_by(column_of(asks))
    assert set(seen) == {("twin", "forward", ON), ("twin", "backward", ON), ("own", "forward", OFF)}
    assert "broken" in verdicts.outcome


@pytest.mark.parametrize("options", [PassOptions(), PassOptions(folded=True), PassOptions(precision="bf16")])
def test_no_other_search_touches_the_flags(as_on_cuda, options):
    seen, _ = seen_by(column_of(asks, options))
    assert {each[2] for each in seen} == {OFF}


def test_what_ends_a_call_early_is_asked_in_float32(as_on_cuda):
    def goes_on(model, images, labels, threat, seed):
        for _ in range(9):
            model(images)
        raise ValueError("nobody ended the call")

    model, images, labels, _ = linear_case(THREAT.eps, "Linf", n=4)
    Seeing.first = Seeing(model)
    job, chunk = Job(Classifier(Seeing.first, 10), THREAT, 0), Chunk(0, 4)
    known = {CLEAN: next(compute(job, ColumnGroup(()), images, labels, chunk, {}))[1]}
    Seeing.seen = []
    column = replace(column_of(goes_on), count_queries=True)
    (made,) = compute(job, ColumnGroup((column,)), images, (labels + 1) % 10, chunk, known)  # broken by the first query
    assert made.verdicts.message == "" and Seeing.seen[:2] == [("twin", "forward", ON), ("own", "forward", OFF)]
    assert {how for whose, _, how in Seeing.seen if whose == "own"} == {OFF}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_flags_are_put_back_whatever_the_attack_raises(as_on_cuda, error):
    def fails(model, images, labels, threat, seed):
        model(images)
        assert flags() == ON
        raise error("stop")

    with pytest.raises(KeyboardInterrupt) if error is KeyboardInterrupt else nullcontext():
        _, (verdicts,) = seen_by(column_of(fails))
        assert "stop" in verdicts.message
    assert flags() == OFF


def test_recordings_are_made_and_replayed_in_tf32(as_on_cuda, monkeypatch):
    made = []

    class Flagged(StandIn):
        def record(self, work):
            made.append(flags())
            return super().record(work)

    monkeypatch.setattr("standin.StandIn", Flagged)

    def many(model, images, labels, threat, seed):
        return [asks(model, images, labels, threat, seed) for _ in range(3)][-1]

    Plain = linear_case(THREAT.eps, "Linf", n=24)
    job, chunk = Job(Classifier(Plain[0], 10), THREAT, 0), Chunk(0, 24)
    known = {CLEAN: next(compute(job, ColumnGroup(()), *Plain[1:3], chunk, {}))[1]}
    with stood_in((8, 32)) as recorders:
        list(compute(job, ColumnGroup((column_of(many),)), *Plain[1:3], chunk, known))
    assert made and set(made) == {ON} and sum(each.replays for each in recorders) > 1


def test_a_copy_of_the_judge_made_inside_a_search_asks_its_own_weights(as_on_cuda):
    def copies(model, images, labels, threat, seed):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.exact.module.model.weight.zero_()  # so that every image has the same logits
        assert not other.certain(images).std(0).any() and model.certain(images).std(0).any()
        return images

    _, (verdicts,) = seen_by(column_of(copies))
    assert verdicts.message == ""


def test_fast_ends_its_search_in_float32(as_on_cuda):
    (column,) = parse_columns("fast", THREAT, 10, AttackOptions(pass_options=TF32))
    assert column.name == "fast(tf32)"
    search, last, *rest = column.stages
    assert (search.name, str(search.pass_options), search.params["budget"]) == ("nearest", "folded, tf32", 0.02)
    assert (last.name, str(last.pass_options), last.params["budget"]) == ("nearest-fp32", "folded", 0.01)
    assert [each.name for each in rest] == ["suspect", "apgd-ce", "apgd-t", "fab-t", "square"]
    seen, verdicts = seen_by(replace(column, stages=(search, last), gate=""))
    assert "broken" in verdicts[0].outcome and "robust" in verdicts[1].outcome and not any(each.message for each in verdicts)
    gradients = [how for whose, way, how in seen if (whose, way) == ("twin", "backward")]
    runs = [how for place, how in enumerate(gradients) if place == 0 or how != gradients[place - 1]]
    assert runs == [OFF, ON, OFF]  # the comparison with the model itself before the search, the search, and its end
    assert {how for whose, _, how in seen if whose == "own"} == {OFF}


def test_other_columns_in_tf32_have_their_own_keys_and_names():
    def keyed(name, options):
        (column,) = parse_columns(name, THREAT, 10, AttackOptions(pass_options=options))
        return column.name, attack_folder(column, column.stages[0])

    for name in ("pgd20", "autoattack", "nearest"):
        own, coarse = keyed(name, PassOptions()), keyed(name, TF32)
        assert coarse[0] == f"{name}(tf32)" and own[1] != coarse[1] != keyed(name, PassOptions(precision="bf16"))[1]


def test_a_cpu_has_no_tf32(tmp_path, few):
    model, images, labels, _ = linear_case(THREAT.eps, "Linf", n=4)
    message = "`precision=tf32` is of NVIDIA GPUs since Ampere; on this CPU use fp32 or bf16"
    with pytest.raises(RobenchError, match=message):
        evaluate(model, images, labels, suite="pgd2", eps=0.02, precision="tf32", device="cpu")
    file = tmp_path / "model.py"
    file.write_text("from cases import Centred\n")
    with pytest.raises(RobenchError, match=message):
        attack(
            AttackRequest("pgd2", precision="tf32"), model=f"{file}:Centred", dataset="digits", device="cpu", show_progress=False,
            out=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("began", ["tf32", "bf16"])
def test_auto_goes_on_with_what_a_run_began_with(began, tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text("{}")
    members = [{"params": {"passes": f"folded, {began}"}}, {"params": {"passes": "folded"}}]
    monkeypatch.setattr("robench.run.plan.read_run", lambda _: {"suites": [{"members": members}]})
    assert settled_precision(AttackRequest(precision="auto"), None, None, tmp_path) == began


@pytest.mark.parametrize(
    ("seconds", "there", "chosen"),
    [({"fp32": 3, "bf16": 2, "tf32": 1}, True, "tf32"), ({"fp32": 3, "bf16": 1, "tf32": 2}, True, "bf16"),
     ({"fp32": 3, "bf16": 2.9, "tf32": 2.8}, True, "fp32"), ({"fp32": 3, "bf16": 2, "tf32": 1}, False, "bf16")],
)  # fmt: skip
def test_auto_is_the_fastest_of_what_the_device_has_where_that_is_worth_it(seconds, there, chosen, monkeypatch):
    monkeypatch.setattr(quicker, "has_tf32", lambda device: there)
    monkeypatch.setattr(quicker, "_fastest_step", lambda classifier, images, precision, record: seconds[precision])
    assert quicker.quicker_precision(Classifier(nn.Flatten(), 10), torch.zeros(1, 1, 2, 5)) == chosen
