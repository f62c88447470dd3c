"""What people bring: models that write into their input, take few batch sizes, answer NaN or in half; each of its kind is attacked as it is."""

import copy
import warnings

import pytest
import torch
from torch import nn

import robench
from robench.evaluation.judge import judge
from robench.models.adapting import adapt
from robench.models.classifier import Classifier
from robench.types import Outcome, RobenchError, ThreatModel

N, CLASSES = 24, 5


class Linear(nn.Module):
    """Logits are linear in the pixels; subclasses change how."""

    def __init__(self, outputs=CLASSES):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(outputs, 48, generator=generator))

    def logits(self, images):
        return images.flatten(1) @ self.weight.T

    def forward(self, images):
        return self.logits(images - 0.5)


class InPlace(Linear):
    def forward(self, images):
        return self.logits(images.sub_(0.5))


class ExactlyEight(Linear):
    def forward(self, images):
        assert len(images) == 8, "exported for batches of 8"
        return super().forward(images)


class Squeezes(Linear):
    def forward(self, images):
        return super().forward(images).squeeze()


class BatchStatistics(Linear):
    def forward(self, images):
        return nn.functional.batch_norm(super().forward(images), None, None, training=True)


class RaisesOnBright(Linear):
    def forward(self, images):
        if (images[:, 0, 0, 0] > 0.99).any():
            raise ValueError("too bright")
        return super().forward(images)


class NotANumberOnBright(Linear):
    def forward(self, images):
        bright = images[:, :1, 0, 0] > 0.99
        return torch.where(bright, float("nan"), super().forward(images))


class RulesOutOne(Linear):
    """The last class is masked, as in an open-set head."""

    def forward(self, images):
        logits = super().forward(images).clone()
        logits[:, -1] = -float("inf")
        return logits


@pytest.fixture
def images():
    return torch.rand(N, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05


@pytest.fixture
def labels(images):
    return Linear()(images)[:, : CLASSES - 1].argmax(1)


def quiet(*args, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return robench.evaluate(*args, **{"suite": "fgsm,pgd7", "eps": "4/255", "device": "cpu", "batch_size": 23, **more})


def outcomes(result, attack="pgd7"):
    rows = result.verdicts[result.verdicts["attack"] == attack]
    return rows["outcome"].tolist()


def same_verdicts(first, second):
    columns = ["attack", "index", "outcome", "adv_pred"]
    return first.verdicts[columns].equals(second.verdicts[columns])


@pytest.mark.parametrize("model", [InPlace, ExactlyEight, Squeezes])
def test_a_model_is_attacked_as_the_plain_one_that_it_computes(model, images, labels):
    assert same_verdicts(quiet(model(), images, labels), quiet(Linear(), images, labels))


@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
def test_a_model_that_writes_into_its_input_never_gets_anybodys_images(pixels, images, labels):
    given = (images * 255).to(torch.uint8) if pixels == torch.uint8 else images
    before = given.clone()
    quiet(InPlace(), given, labels, suite="fgsm,fast")
    assert torch.equal(given, before)


def test_judging_leaves_both_images_as_they_are(images, labels):
    classifier, adv_images = Classifier(InPlace(), CLASSES), images + 0.01
    before = images.clone(), adv_images.clone()
    judge(classifier, images, labels, adv_images, ThreatModel("Linf", 0.02))
    assert torch.equal(images, before[0]) and torch.equal(adv_images, before[1])


def test_no_call_of_a_classifier_hands_its_images_to_the_module(images):
    classifier, before = Classifier(InPlace(), CLASSES), images.clone()
    classifier.settle_draws(images)
    classifier.draws = 3
    for call in (
        classifier,
        classifier.votes,
        classifier.certain,
        classifier.twin(InPlace()),
        classifier.twin(InPlace(), double=True).certain,
    ):
        call(images)
        assert torch.equal(images, before)


def test_small_passes_of_a_model_that_writes_into_its_input_have_the_same_gradient(images):
    whole, parts = Classifier(Linear(), CLASSES), Classifier(InPlace(), CLASSES)
    parts.largest_pass = 5
    gradients = []
    for classifier in (whole, parts):
        queries = images.clone().requires_grad_()
        (classifier(queries) ** 2).sum().backward()
        gradients.append(queries.grad)
    assert torch.allclose(*gradients, atol=1e-5)


def test_an_attack_on_a_padded_batch_has_the_gradient_of_each_image_alone(images):
    few = images[:3].clone().requires_grad_()
    (Classifier(ExactlyEight(), CLASSES)(few) ** 2).sum().backward()
    alone = images[:3].clone().requires_grad_()
    (Linear()(alone) ** 2).sum().backward()
    assert torch.allclose(few.grad, alone.grad, atol=1e-5)


def test_one_survivor_of_a_model_with_batch_statistics_is_judged(images):
    classifier = Classifier(BatchStatistics(), CLASSES)
    judged = judge(classifier, images[:1], torch.zeros(1, dtype=torch.int64), images[:1], ThreatModel("Linf", 0.1))
    assert judged.outcomes[0] in (Outcome.ROBUST, Outcome.BROKEN)
    assert classifier.takes.smallest == 2


def test_batch_sizes_are_searched_for_once():
    class Broken(nn.Module):
        calls = 0

        def forward(self, images):
            Broken.calls += 1
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    classifier = Classifier(Broken(), 2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="mat1"):
            classifier(torch.zeros(4, 3, 4, 4))
    assert Broken.calls < 30


@pytest.mark.parametrize(("model", "said"), [(RaisesOnBright, "too bright"), (NotANumberOnBright, "not finite")])
def test_clean_images_that_a_model_cannot_classify_are_errors_and_the_rest_is_judged(model, said, images, labels):
    plain = quiet(Linear(), images, labels)
    images = images.clone()
    images[[4, 17], 0, 0, 0] = 1.0
    result = quiet(model(), images, labels)
    assert [place for place, each in enumerate(outcomes(result)) if each == Outcome.ERROR] == [4, 17]
    assert any(said in line and "(4, 17)" in line for line in result.failures)
    untouched = [place for place in range(23) if place not in (4, 17)]
    assert [outcomes(result, "clean")[place] for place in untouched] == [outcomes(plain, "clean")[place] for place in untouched]
    row = result.summary.set_index("attack").loc["pgd7"]
    assert row["undecided"] == 2 and row["robust_high"] - row["robust_low"] == pytest.approx(2 / N)


def test_an_adversarial_image_on_which_the_model_raises_is_an_error_of_that_sample_alone(images, labels):
    adv_images = images.clone()
    adv_images[3, 0, 0, 0] = 1.0
    judged = judge(Classifier(RaisesOnBright(), CLASSES), images, labels, adv_images, ThreatModel("Linf", 1.0))
    assert judged.outcomes.count(Outcome.ERROR) == 1 and judged.outcomes[3] == Outcome.ERROR
    assert "raised on 1 of 24 images: ValueError: too bright" in judged.complaint


def test_a_class_ruled_out_by_minus_infinity_is_allowed(images, labels):
    result = quiet(RulesOutOne(), images, labels, suite="fgsm,pgd7,fast")
    assert not result.failures
    assert set(outcomes(result, "clean")) == {Outcome.ROBUST}
    assert Outcome.BROKEN in outcomes(result, "fast")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_are_computed_in_float32_and_said_so(dtype, images, labels):
    model = Linear().to(dtype)
    with pytest.warns(UserWarning, match="computed in float32"):
        result = robench.evaluate(model, images, labels, suite="fgsm", eps="4/255", device="cpu")
    assert same_verdicts(result, quiet(copy.deepcopy(model).float(), images, labels, suite="fgsm", batch_size=250))
    assert model.weight.dtype == dtype


def test_weights_in_bfloat16_may_stay_as_they_are(images):
    adapted = adapt(Linear().bfloat16(), images, weights_dtype="as-is")
    assert adapted.module(images).dtype == torch.bfloat16
    assert "computes in them" in adapted.notes[0]
    with pytest.raises(RobenchError, match="expected one of float32, as-is"):
        adapt(Linear(), images, weights_dtype="fp8")


@pytest.mark.parametrize("flat", [False, True])
def test_one_output_is_a_binary_classifier(flat, images):
    class One(Linear):
        def forward(self, images):
            output = super().forward(images)
            return output.squeeze(1) if flat else output

    two = (One(1)(images).flatten() > 0).long()
    with pytest.warns(UserWarning, match="one output"):
        result = robench.evaluate(One(1), images, two, suite="pgd7", eps="4/255", device="cpu")
    assert outcomes(result, "clean") == [Outcome.ROBUST] * N
    assert Outcome.BROKEN in outcomes(result)


def test_a_sigmoid_output_is_read_as_a_probability(images):
    class Probability(Linear):
        def forward(self, images):
            return super().forward(images).sigmoid()

    adapted = adapt(Probability(1), images)
    assert torch.allclose(adapted.module(images)[:, 1], Linear(1)(images).flatten(), atol=1e-3)
    assert "probabilities" in adapted.notes[0]


def test_a_plain_function_is_a_model_and_its_weights_are_in_the_digest(images, labels):
    from robench.models.subject import classifier_of_module

    digests = []
    for scale in (1.0, 2.0):
        net = Linear()
        net.weight.data.mul_(scale)
        digests.append(classifier_of_module(lambda x: net(x), None, "cpu", images=images).digest)  # noqa: B023
    assert digests[0] != digests[1]
    assert same_verdicts(quiet(Linear().forward, images, labels), quiet(Linear(), images, labels))


def test_what_is_no_model_is_refused_with_what_is_expected(images, labels):
    with pytest.raises(RobenchError, match="a str; expected a torch.nn.Module, or a function"):
        quiet("resnet18", images, labels)
    with pytest.raises(RobenchError, match="the class Linear; call it first"):
        quiet(Linear, images, labels)


def test_a_lazy_module_gets_its_shapes_from_one_image(images, labels):
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))
    with pytest.warns(UserWarning, match="random numbers"):
        robench.evaluate(model, images, labels, suite="fgsm", eps="4/255", device="cpu")


def test_a_model_that_cannot_be_copied_is_refused_in_one_line(images, labels):
    class Stubborn(Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    with pytest.raises(RobenchError, match="cannot be copied .RuntimeError: no copies.; give a model that was just built"):
        quiet(Stubborn(), images, labels)


FORMS = {
    "NumPy": lambda images, labels: (images.numpy(), labels.numpy()),
    "NHWC array": lambda images, labels: (images.permute(0, 2, 3, 1).numpy(), labels.numpy()),
    "NHWC tensor": lambda images, labels: (images.permute(0, 2, 3, 1), labels),
    "list of tensors": lambda images, labels: (list(images), labels.tolist()),
    "labels (N, 1)": lambda images, labels: (images, labels[:, None]),
    "one-hot": lambda images, labels: (images, nn.functional.one_hot(labels, CLASSES)),
    "float labels": lambda images, labels: (images, labels.float()),
    "int32 labels": lambda images, labels: (images, labels.int()),
    "other memory": lambda images, labels: (images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), labels),
    "float64": lambda images, labels: (images.double(), labels),
    "torch Dataset": lambda images, labels: (torch.utils.data.TensorDataset(images, labels), None),
    "DataLoader": lambda images, labels: (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 7), None),
    "rows with names": lambda images, labels: (
        [{"image": each, "label": int(label)} for each, label in zip(images, labels, strict=True)],
        None,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_have_the_same_verdicts_in_every_form(form, images, labels):
    given, said = FORMS[form](images, labels)
    assert same_verdicts(quiet(Linear(), given, said), quiet(Linear(), images, labels))


def test_pil_images_are_read(images, labels):
    from PIL import Image

    bytes_ = (images * 255).round().to(torch.uint8)
    pictures = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in bytes_]
    assert same_verdicts(quiet(Linear(), pictures, labels), quiet(Linear(), bytes_, labels))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda x: torch.rand(4, 3, 8, 3), "could both be the channels"),
        (lambda x: x.numpy().astype(object), "images are object"),
        (lambda x: [x[0], x[1, :, :2]], "differ in size"),
        (lambda x: x.where(x > 0.1, float("nan")), r"NaN in \d+ pixels? of \d+ images?, the first is image \d+"),
        (lambda x: x * 255, "divide by 255"),
        (lambda x: (x - 0.5) / 0.25, "normalis"),
        (lambda x: x[:0], "no images"),
        (lambda x: 3, "are a int; expected a tensor"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_read_are_refused_with_the_remedy(given, said, images, labels):
    with pytest.raises(RobenchError, match=said):
        quiet(Linear(), given(images), labels)


def test_missing_labels_are_asked_for(images):
    with pytest.raises(RobenchError, match="labels are missing.*give `labels`"):
        quiet(Linear(), images)


def warned(*args, **more):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        robench.evaluate(*args, **{"suite": "fgsm", "eps": "4/255", "device": "cpu", **more})
    return " ".join(str(each.message) for each in seen)


def test_labels_that_start_at_one_are_named_before_any_attack(images, labels):
    model = Linear()
    model.weight.data[-1] = 0  # the highest class is never the largest
    right = model(images).argmax(1).clamp(max=CLASSES - 2)
    assert "labels less 1" in warned(model, images, right + 1)


def test_swapped_channels_are_named(images):
    right = Linear()(images).argmax(1)
    assert "channels in the order BGR" in warned(Linear(), images.flip(1), right)


def test_another_scale_is_named(images):
    class Of255(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Linear()

        def forward(self, images):
            return self.inner(images / 255)

    right = Linear()(images).argmax(1)
    assert "0 to 255" in warned(Of255(), images, right)


def test_a_missing_normalisation_is_named(images):
    class Normalised(Linear):
        def forward(self, images):
            return self.logits(images)

    right = Normalised()((images - 0.5) / 0.5).argmax(1)
    assert "give `mean=(0.5,0.5,0.5)` `std=(0.5,0.5,0.5)`" in warned(Normalised(), images, right)


def test_a_result_draws_itself_in_a_notebook(images, labels):
    result = quiet(Linear(), images, labels)
    assert "<table" in result._repr_html_() and "pgd7" in result._repr_html_()
    assert result.to_frame()["attack"].tolist() == ["clean", "fgsm", "pgd7", "union"]
    assert [text.get_text() for text in result.plot().axes[0].get_yticklabels()] == ["union", "PGD-7", "FGSM", "natural"]
