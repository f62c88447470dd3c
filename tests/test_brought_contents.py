"""A run is continued only by the same model: the digest covers whatever a function or a module computes with, wherever it keeps that."""

import subprocess
import sys
import threading
import warnings
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from torch import nn

import robench
from robench.models.subject import classifier_of_module
from robench.types import RobenchError

CLASSES = 5
SCALE = 1.0
TABLE = {"weights": [torch.zeros(CLASSES)]}


@pytest.fixture
def images():
    return torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05


def net(scale=1.0):
    linear = nn.Linear(48, CLASSES, bias=False)
    linear.weight.data = scale * torch.randn(CLASSES, 48, generator=torch.Generator().manual_seed(1))
    return nn.Sequential(nn.Flatten(), linear).eval()


def scaled(logits):
    return logits * SCALE


class Holder:
    def __init__(self, scale):
        self.inner = {"net": scale if isinstance(scale, nn.Module) else net(scale)}

    def __call__(self, images):
        return self.inner["net"](images)

    def logits(self, images):
        return self(images)


def of_module(scale):
    inner = net(scale)
    return lambda images: inner(images)


def of_tensor(scale):
    weight = net(scale)[1].weight.detach()
    return lambda images: images.flatten(1) @ weight.T


def of_array(scale):
    weight = net(scale)[1].weight.detach().numpy()
    return lambda images: images.flatten(1) @ torch.from_numpy(weight).T


def of_number(scale):
    inner = net()
    return lambda images: scale * inner(images)


def of_list(scale):
    parts = [[net(scale)]]
    return lambda images: parts[0][0](images)


def of_default(scale):
    given = net(scale)
    return lambda images, inner=given: inner(images)


def of_function_of_function(scale):
    def inner(images):
        return of_number(scale)(images)

    return lambda images: inner(images)


def of_cached_function(scale):
    @lru_cache
    def factor():
        return scale

    return lambda images: factor() * net()(images)


def of_bound_method(scale):
    product = (scale * torch.eye(CLASSES)).matmul
    return lambda images: product(net()(images).T).T


def of_sparse_tensor(scale):
    wide = torch.zeros(CLASSES, 5000)
    wide[:, 10:] = 1.0
    wide[:, 2500] = scale
    wide = wide.to_sparse()
    return lambda images: net()(images) * wide.to_dense()[:, 2500]


HIDING = {
    "module": of_module,
    "tensor": of_tensor,
    "array": of_array,
    "number": of_number,
    "list": of_list,
    "default": of_default,
    "function": of_function_of_function,
    "cached": of_cached_function,
    "bound": of_bound_method,
    "sparse": of_sparse_tensor,
    "object": Holder,
    "method": lambda scale: Holder(scale).logits,
    "compiled": lambda scale: torch.compile(of_module(scale), backend="eager"),
    "partial": lambda scale: partial(lambda inner, images: inner(images), net(scale)),
}


class Hides(nn.Module):
    """Keeps a network where torch does not look for it."""

    def __init__(self, place, scale, inner=None):
        super().__init__()
        inner = inner or net(scale)
        held = {
            "_list": [inner], "_dict": {"net": inner}, "_nested": ((inner,),), "_object": Holder(inner), "_tensor": [inner[-1].weight.detach()],
            "arrays": [inner[-1].weight.detach().numpy()], "_scale": scale,
        }  # fmt: skip
        if place == "__dict__":
            self.__dict__["teacher"] = inner
        else:
            setattr(self, place, held[place])
        self.place = place

    def forward(self, images):
        held = self.__dict__["teacher" if self.place == "__dict__" else self.place]
        while not callable(held) and not isinstance(held, torch.Tensor | np.ndarray | float):
            held = held["net"] if isinstance(held, dict) else held[0]
        if isinstance(held, float):
            return held * net()(images)
        return (
            held(images) if callable(held) and not isinstance(held, torch.Tensor) else images.flatten(1) @ torch.as_tensor(held).T
        )


def digest(model, images):
    return classifier_of_module(model, None, "cpu", images=images).digest


@pytest.mark.parametrize("kind", HIDING)
def test_the_digest_of_a_function_covers_what_it_computes_with(kind, images):
    make = HIDING[kind]
    assert digest(make(1.0), images) == digest(make(1.0), images)
    assert digest(make(1.0), images) != digest(make(2.0), images)


def test_the_digest_of_a_function_covers_globals_and_the_functions_that_it_calls(images, monkeypatch):
    inner = net()

    def model(images):
        return scaled(inner(images)) + TABLE["weights"][0]

    first = digest(model, images)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    second = digest(model, images)
    TABLE["weights"][0][0] = 1.0
    assert len({first, second, digest(model, images)}) == 3
    TABLE["weights"][0][0] = 0.0
    assert digest(model, images) == second


def test_two_functions_in_one_line_have_two_digests(images):
    inner = net()
    first, second = (lambda images: inner(images)), (lambda images: -inner(images))
    assert digest(first, images) != digest(second, images)


@pytest.mark.parametrize("place", ["_list", "_dict", "_nested", "_object", "_tensor", "arrays", "_scale", "__dict__"])
def test_the_digest_of_a_module_covers_what_it_hides(place, images):
    assert digest(Hides(place, 1.0), images) == digest(Hides(place, 1.0), images)
    assert digest(Hides(place, 1.0), images) != digest(Hides(place, 2.0), images)


@pytest.mark.parametrize("place", ["_list", "_dict", "_nested", "_object", "__dict__"])
def test_modules_in_underscored_places_are_set_to_eval_mode(place, images):
    model = Hides(place, 1.0, nn.Sequential(nn.Dropout(0.5), *net()).train())
    classifier = classifier_of_module(model, None, "cpu", images=images).classifier
    assert torch.allclose(classifier(images), net()(images))


def test_a_module_that_names_a_global_has_it_in_its_digest(images, monkeypatch):
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, images):
            return scaled(self.inner(images))

    first = digest(Scales(), images)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert digest(Scales(), images) != first


def test_a_replaced_forward_and_a_hook_are_in_the_digest(images):
    changed, hooked = net(), net()
    changed.forward = lambda images: 2 * nn.Sequential.forward(changed, images)
    hooked.register_forward_hook(lambda module, given, outputs: outputs + 1)
    assert len({digest(each, images) for each in (net(), hooked)}) == 2
    assert digest(changed, images) != digest(net(), images)


def test_nothing_is_added_to_the_digest_of_a_module_that_hides_nothing(images):
    subject = classifier_of_module(net(), None, "cpu", images=images)
    assert subject.digest == subject.classifier.digest()


def test_scripts_with_the_same_weights_and_other_code_have_other_digests(images):
    class Changed(nn.Module):
        def __init__(self, sign: float):
            super().__init__()
            self.inner = net()
            self.sign = sign

        def forward(self, images):
            return self.inner(images) * self.sign

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = (torch.jit.trace(Changed(sign), images[:2]) for sign in (1.0, -1.0))
        assert digest(first, images) != digest(second, images)


def evaluated(model, images, out):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return robench.evaluate(model, images, net()(images).argmax(1), suite="fgsm", eps="4/255", device="cpu", out=out)


@pytest.mark.slow
def test_a_run_of_a_function_is_not_continued_after_what_it_refers_to_has_changed(images, tmp_path):
    evaluated(of_tensor(1.0), images, tmp_path / "run")
    evaluated(of_tensor(1.0), images, tmp_path / "run")
    with pytest.raises(RobenchError, match="model"):
        evaluated(of_tensor(2.0), images, tmp_path / "run")


class Opaque:
    """Stands for an engine of a compiled library, into which nobody can see."""

    def __init__(self):
        self.net = net()

    def __reduce_ex__(self, protocol):
        raise TypeError("cannot pickle 'Engine' object")


@pytest.mark.slow
def test_a_run_of_a_function_of_something_opaque_is_not_continued_unless_its_version_is_given(images, tmp_path):
    engine = Opaque()

    def model(images):
        return engine.net(images)

    with pytest.warns(UserWarning, match=r"cannot look into \(Opaque\).*attribute `version`"):
        robench.evaluate(model, images, net()(images).argmax(1), suite="fgsm", eps="4/255", device="cpu", out=tmp_path / "run")
    with pytest.raises(RobenchError):
        evaluated(model, images, tmp_path / "run")
    model.version = "1"
    evaluated(model, images, tmp_path / "other")
    evaluated(model, images, tmp_path / "other")
    model.version = "2"
    with pytest.raises(RobenchError):
        evaluated(model, images, tmp_path / "other")


def test_generators_locks_and_loggers_that_a_function_names_do_not_change_its_digest(images):
    inner, lock, random = net(), threading.Lock(), np.random.default_rng()

    def model(images):
        with lock:
            random.normal()
            return inner(images)

    assert digest(model, images) == digest(model, images)


def test_a_function_that_refers_to_a_layer_in_training_mode_is_told_so(images):
    inner = nn.Sequential(*net(), nn.Dropout(0.5)).train()
    assert any(
        "Dropout in training mode; call eval()" in note
        for note in classifier_of_module(lambda x: inner(x), None, "cpu", images=images).notes
    )


@pytest.mark.slow
def test_the_digest_of_a_function_is_the_same_in_another_process(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\nNAMES = {'a', 'b', 'c'}\nW = [torch.arange(240.).view(5, 48)]\n"
        "class Held:\n    def __init__(self): self.w = W\n    def __call__(self, x): return x.flatten(1) @ self.w[0].T if 'a' in NAMES else x\n"
        "from robench.models.adapting import Function\nheld = Held()\nprint(Function(lambda x: held(x)).refers_to)\n"
    )
    said = {
        subprocess.run([sys.executable, tmp_path / "mine.py"], capture_output=True, text=True, check=True).stdout for _ in range(2)
    }
    assert len(said) == 1 and len(said.pop().strip()) == 64
