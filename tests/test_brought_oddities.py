"""Models that answer in another shape, take few images a pass, fail, or come as programs: each works, or gets one message that says what to do."""

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import robench
from robench.models.adapting import adapt
from robench.models.batches import find_rule
from robench.models.classifier import Classifier
from robench.types import RobenchError

N, CLASSES = 24, 5


class Linear(nn.Module):
    def __init__(self, outputs=CLASSES):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 48, generator=torch.Generator().manual_seed(1)))

    def forward(self, images):
        return (images - 0.5).flatten(1) @ self.weight.T


class Named:
    def __init__(self, logits):
        self.logits, self.loss = logits, None


def after(change, outputs=CLASSES):
    """A linear model whose output is changed."""

    class Changed(Linear):
        def forward(self, images):
            return change(super().forward(images))

    return Changed(outputs)


def before(refuses, outputs=CLASSES):
    """A linear model that raises on some images."""

    class Refuses(Linear):
        def forward(self, images):
            if refuses(images):
                raise ValueError("not this batch")
            return super().forward(images)

    return Refuses(outputs)


@pytest.fixture
def images():
    return torch.rand(N, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05


@pytest.fixture
def labels(images):
    return Linear()(images).argmax(1)


def quiet(*args, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return robench.evaluate(*args, **{"suite": "fgsm,pgd7", "eps": "4/255", "device": "cpu", "batch_size": 23, **more})


def same_verdicts(first, second):
    columns = ["attack", "index", "outcome", "adv_pred"]
    return first.verdicts[columns].equals(second.verdicts[columns])


SHAPES = {
    "transposed": (lambda z: z.T, r"\(5, 1\) for 1 image; that is \(n_classes, N\): return its transpose"),
    "mean of the batch": (lambda z: z.mean(0), "the same shape for .*is a mean taken over the batch"),
    "first image": (lambda z: z[0], "the same shape for"),
    "scalar": (lambda z: z.mean(), "the same shape for"),
    "two rows an image": (lambda z: z.repeat(2, 1), r"\(2, 5\) for 1 image; expected one row of logits an image"),
    "map": (lambda z: z[:, :, None, None].expand(-1, -1, 4, 4), "scores of every pixel.*robench judges classifiers"),
    "nothing": (lambda z: z[:, :0], r"float32 \(1, 0\); expected one row"),
    "complex": (lambda z: z + 1j, "complex64 .*real logits"),
    "list": (lambda z: [z], "such as `head=0`"),
    "no return": (lambda z: None, "does its forward lack a return"),
    "array": (lambda z: z.detach().numpy(), "return a tensor, or give a function, which may return arrays"),
    "object": (lambda z: Named(z), "a Named of 1 .logits: float32 .1, 5.*such as `head=logits`"),
    "numbers of classes": (lambda z: z.argmax(1), r"whole numbers \(0, 1, 2, ...\): numbers of classes"),
    "numbers of classes in a column": (lambda z: z.argmax(1, keepdim=True).float(), "numbers of classes"),
    "numbers of two classes": (lambda z: (z[:, 0] > 0).float(), r"whole numbers \(0, 1\): numbers of classes"),
    "not a number": (lambda z: z[:, 0] * float("nan"), "NaN or infinite on every image"),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_outputs_that_are_no_logits_are_refused_with_the_remedy(kind, images, labels):
    change, message = SHAPES[kind]
    with pytest.raises(RobenchError, match=message):
        quiet(after(change), images, labels)


def test_a_squeezed_model_and_one_of_eight_images_are_still_served(images, labels):
    plain = quiet(Linear(), images, labels)
    for model in (after(lambda z: z.squeeze()), before(lambda images: len(images) != 8)):
        assert same_verdicts(quiet(model, images, labels), plain)


@pytest.mark.parametrize(
    "refuses",
    [
        lambda images: len(images) != 1,
        lambda images: len(images) > 4,
        lambda images: len(images) not in (1, 2, 4, 8),
        lambda images: not 2 <= len(images) <= 6,
        lambda images: len(images) % 8,
    ],
    ids=["one", "at most four", "powers of two", "two to six", "multiples of eight"],
)
def test_a_model_that_takes_few_images_a_pass_is_attacked_as_the_plain_one(refuses, images, labels):
    assert same_verdicts(quiet(before(refuses), images, labels), quiet(Linear(), images, labels))


def test_a_binary_model_of_at_most_four_images_is_served(images):
    two = (Linear(1)(images).flatten() > 0).long()
    assert same_verdicts(quiet(before(lambda images: len(images) > 4, 1), images, two), quiet(Linear(1), images, two))


def test_small_passes_lose_no_sample_where_the_rule_is_found_in_one_with_a_gradient(images):
    for refuses in (lambda images: len(images) != 8, lambda images: len(images) < 3, lambda images: len(images) > 4):
        classifier = Classifier(before(refuses), CLASSES)
        classifier.largest_pass = 5 if not refuses(images[:8]) or refuses(images[:5]) else 2
        queries, plain = (images.clone().requires_grad_() for _ in range(2))
        (classifier(queries) ** 2).sum().backward()
        (Linear()(plain) ** 2).sum().backward()
        assert torch.allclose(queries.grad, plain.grad, atol=1e-5)


def test_what_memory_allows_bounds_a_pass_also_of_a_model_that_takes_at_most_so_many(images):
    sizes = []
    classifier = Classifier(before(lambda batch: sizes.append(len(batch)) or len(batch) > 8), CLASSES)
    classifier(images)
    classifier.largest_pass = 2
    for n in (8, 11):
        sizes.clear()
        classifier(images[:n])
        assert max(sizes) == 2 and sum(sizes) == n


def test_a_rule_is_found_although_the_first_image_and_the_first_batch_raise_for_themselves(images):
    images = images.clone()
    images[0, 0, 0, 0] = 1.0
    classifier = Classifier(before(lambda batch: len(batch) > 4 or bool((batch[:, 0, 0, 0] > 0.99).any())), CLASSES)
    with pytest.raises(ValueError, match="not this batch"):
        classifier(images)
    assert torch.allclose(classifier(images[1:]), Linear()(images[1:]), atol=1e-5)


@pytest.mark.parametrize(
    "said", ["expected 3136 features", "at most 1000000", "(1x3136 and 64x5)", "got 900 channels", "size 1,024.5"]
)
def test_no_absurd_number_of_images_is_tried(said):
    tried = []

    def complaint(size):
        tried.append(size)
        return said

    assert find_rule(complaint) is None
    assert max(tried) <= 512 and len(tried) < 25
    tried.clear()
    find_rule(complaint, pixels=3 * 224 * 224)
    assert max(tried) <= 111


def test_a_number_of_images_that_the_message_names_is_tried_at_once():
    tried = []

    def complaint(size):
        tried.append(size)
        return "" if size == 37 else "this engine was built for batches of 37"

    assert find_rule(complaint).exactly == 37 and len(tried) <= 4


def two_classes(images):
    return (Linear(1)(images).flatten() > 0).long()


@pytest.mark.parametrize(
    "change",
    [lambda z: 0.001 * z + 0.5, lambda z: (z.sigmoid() + (2 * z).sigmoid()) / 2, lambda z: 1 - z.sigmoid()],
    ids=["small logit", "mean of sigmoids", "the other class"],
)
def test_one_output_that_may_be_a_probability_or_a_logit_is_refused(change, images):
    with pytest.raises(
        RobenchError, match=r"from 0\.\d+ to 0\.\d+ on \d+ images: small logits, or probabilities\? say which by two columns"
    ):
        quiet(after(change, 1), images, two_classes(images))


def test_a_small_logit_of_a_linear_layer_is_a_logit(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    model[1].weight.data.mul_(1e-3)
    model[1].bias.data.fill_(0.5)
    assert bool(((model(images) > 0) & (model(images) < 1)).all())
    assert torch.allclose(adapt(model, images).module(images)[:, 1], model(images).flatten())


def test_what_is_outside_the_range_on_other_images_alone_is_a_logit(images):
    model = after(lambda z: z + 40 * (z < -10) * z.abs(), 1)
    model = after(lambda z: torch.where(z.abs() > 2.5, 3 * z, 0.5 + 0.1 * z.sigmoid()), 1)
    few = images[Linear(1)(images).flatten().abs() < 2]
    assert bool(((model(few) > 0) & (model(few) < 1)).all())
    assert adapt(model, few).notes[-1].endswith("z is read as the logits (0, z)")


@pytest.mark.parametrize(
    "change", [torch.sigmoid, lambda z: torch.sigmoid(z).squeeze(1), lambda z: torch.cat([-z, z], 1).softmax(1)[:, 1]]
)
def test_a_sigmoid_or_a_softmax_at_the_end_is_a_probability(change, images):
    adapted = adapt(after(change, 1), images)
    assert "probabilities" in adapted.notes[-1]
    assert torch.equal(adapted.module(images).argmax(1), two_classes(images))


def test_a_logarithm_of_a_probability_is_refused(images):
    with pytest.raises(RobenchError, match="a logarithm of a probability"):
        quiet(after(nn.functional.logsigmoid, 1), images, two_classes(images))


def of_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_as_they_are_have_float32_logits_and_gradients(dtype, images):
    net = of_layers().to(dtype)
    subject = Classifier(adapt(net, images, weights_dtype="as-is").module, CLASSES)
    queries = images.clone().requires_grad_()
    logits = subject(queries)
    logits.sum().backward()
    assert logits.dtype == torch.float32 and queries.grad.abs().sum() > 0
    assert torch.equal(logits, net(images.to(dtype)).float())
    twin = subject.twin(subject.module, double=True)
    assert torch.allclose(twin(images.double()), of_layers().to(dtype).double()(images.double()))


def programs(images):
    net = of_layers()
    exported = torch.export.export(net, (images[:1],))
    many = torch.export.export(net, (images[:8],), dynamic_shapes=({0: torch.export.Dim("n")},))
    return {
        "scripted": torch.jit.script(net), "traced": torch.jit.trace(net, images[:2]), "frozen": torch.jit.freeze(torch.jit.script(net)),
        "scripted in training mode": torch.jit.script(copy.deepcopy(net)).train(), "exported": exported, "exported module": exported.module(),
        "exported for many": many.module(), "parallel": nn.DataParallel(net), "symbolic": torch.fx.symbolic_trace(net),
    }  # fmt: skip


@pytest.mark.slow
def test_programs_in_memory_have_the_verdicts_of_the_module(images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = programs(images)
    labels = of_layers()(images).argmax(1)
    plain = quiet(of_layers(), images, labels, eps="64/255")
    assert plain.summary["broken"].max() > 0
    for name, program in kinds.items():
        assert same_verdicts(quiet(program, images, labels, eps="64/255"), plain), name


def test_a_script_of_somebodys_keeps_its_gradients_and_its_mode(images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(of_layers()).train()
        quiet(script, images, of_layers()(images).argmax(1), suite="fgsm")
    assert script.training and all(parameter.requires_grad for parameter in script.parameters())


class Flaky(Linear):
    def __init__(self, period):
        super().__init__()
        self.period, self.calls = period, 0

    def forward(self, images):
        self.calls += 1
        if self.calls % self.period == 0:
            raise ConnectionError("server gone")
        return super().forward(images)


@pytest.mark.parametrize("period", [2, 3, 4, 5])
def test_a_model_that_fails_at_random_is_refused_in_one_message(period, images, labels):
    with pytest.raises(RobenchError, match="ConnectionError: server gone.*it fails at random"):
        quiet(Flaky(period), images, labels)


class Accumulates(Linear):
    def __init__(self):
        super().__init__()
        self.total = 0

    def forward(self, images):
        logits = super().forward(images)
        self.total = self.total + logits.detach().mean(0)
        return logits + self.total


class Counts(Linear):
    def __init__(self):
        super().__init__()
        self.calls, self.last = 0, None

    def forward(self, images):
        self.calls, self.last = self.calls + 1, images.detach()
        return super().forward(images)


def test_what_a_model_keeps_from_pass_to_pass_is_named_where_it_matters(images):
    assert any("keeps something from pass to pass (in total)" in note for note in adapt(Accumulates(), images).notes)
    assert not adapt(Counts(), images).notes


REFUSED = {
    "meta": (lambda: of_layers().to("meta"), r"9 of the model's 9 tensors are on the device meta, without values \(0.weight"),
    "state dict": (lambda: Linear().state_dict(), "it is a state dict; build its architecture"),
    "channels last": (lambda: Last(), r"it does take channels last.*lambda x: model\(x.permute\(0, 2, 3, 1\)\)"),
    "bytes": (lambda: Bytes(), "it does take uint8 of 0 to 255: give a function"),
    "rows": (lambda: nn.Linear(48, 5), r"it does take pixels in one row.*model\(x.flatten\(1\)\)"),
    "leaves": (lambda: Leaves(), "SystemExit: 3"),
    "cannot move": (lambda: Stays(), r"cannot be used: RuntimeError: cannot move \(test_brought_oddities.py"),
    "estimator": (lambda: Estimator(), r"lambda x: model.predict_proba\(x.flatten\(1\).numpy\(\)\)"),
}


class Last(Linear):
    def forward(self, images):
        assert images.shape[-1] == 3
        return super().forward(images.permute(0, 3, 1, 2))


class Bytes(Linear):
    def forward(self, images):
        assert images.dtype == torch.uint8
        return super().forward(images / 255)


class Leaves(Linear):
    def forward(self, images):
        raise SystemExit(3)


class Stays(Linear):
    def to(self, *args, **more):
        raise RuntimeError("cannot move")


class Estimator:
    def predict_proba(self, rows):
        return rows


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_cannot_be_used_gets_one_message_that_says_what_to_do(kind, images, labels):
    make, message = REFUSED[kind]
    with pytest.raises(RobenchError) as raised:
        quiet(make(), images, labels)
    assert re.search(message, str(raised.value)) and "\n" not in str(raised.value)


def test_a_function_may_return_an_array_and_attacks_without_gradient_run(images, labels):
    weight = Linear().weight.detach().numpy()
    result = quiet(
        lambda x: (x.detach().numpy().reshape(len(x), -1) - np.float32(0.5)) @ weight.T, images, labels, suite="square100"
    )
    assert not result.failures and result.summary["robust_accuracy"].iloc[0] == 1.0


def test_norms_are_taken_in_any_case(images, labels):
    for norm, same in (("linf", "Linf"), ("LINF", "Linf"), ("l2", "L2"), (np.inf, "Linf"), (2, "L2")):
        results = [quiet(Linear(), images, labels, norm=each, suite="pgd7") for each in (norm, same)]
        assert same_verdicts(*results)
    with pytest.raises(RobenchError, match="unknown norm 'L0'; expected one of Linf, L2, L1"):
        quiet(Linear(), images, labels, norm="L0")
