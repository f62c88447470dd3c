"""No module of robench sets an attribute of an object that is not its own: an object's state is changed by the object."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from cases import BrightnessClassifier

import robench
from robench.models.classifier import Classifier, bound_passes, judge_by_votes

ROOT = Path(robench.__file__).parent
CLASSIFIER = (
    "the text of the class Classifier is part of the digest of a model that is given as one, so that it stays as it is; what sets its fields "
    "is the class itself, and two functions beside it"
)
LAYERS = "torch's own way to put another layer or buffer into a module that is being built"
LIBRARY = "an object of a library, which is set up by its fields"
ALLOWED = {
    ("models/classifier.py", "self._passes"): "its own counter",
    ("models/classifier.py", "other"): CLASSIFIER,
    ("models/classifier.py", "exact"): CLASSIFIER,
    ("models/classifier.py", "classifier"): CLASSIFIER,
    ("models/backbones.py", "backbone"): LAYERS,
    ("models/backbones.py", "faster"): LAYERS,
    ("audit/cheats.py", "part"): LAYERS,
    ("models/programs.py", "module"): "exported programs refuse eval(), and have a mode all the same",
    ("evaluation/guard.py", "module"): "an attack may have set the mode of any layer, also of those without eval()",
    ("models/rewrite.py", "pool"): "a node of torch.fx takes its inputs so",
    ("models/rewrite.py", "relu"): "a node of torch.fx takes its inputs so",
    ("evaluation/device.py", "matmul"): "torch's switches for the whole process, put back afterwards",
    ("evaluation/device.py", "cudnn"): "torch's switches for the whole process, put back afterwards",
    ("models/arithmetic.py", "matmul"): "torch's switches for the whole process, put back afterwards",
    ("models/arithmetic.py", "cudnn"): "torch's switches for the whole process, put back afterwards",
    ("models/recording.py", "ctx"): "torch's own way to hand something from a forward pass to its backward pass",
    ("adapters/autoattack.py", "standard.apgd"): LIBRARY,
    ("adapters/autoattack.py", "standard.apgd_targeted"): LIBRARY,
    ("adapters/autoattack.py", "standard.fab"): LIBRARY,
    ("adapters/autoattack.py", "standard.square"): LIBRARY,
    ("adapters/robustbench.py", "resources"): "a module that stands in for one which is not there",
    ("interchange/bundle.py", "entry"): LIBRARY,
    ("report/html/charts.py", "element"): LIBRARY,
    ("authoring.py", "function"): "the decorator leaves its description on the function that it describes",
}
SETTERS = ("setattr", "delattr", "object.__setattr__", "object.__delattr__", "super().__setattr__")


def assigned(tree):
    """Whatever has an attribute set or deleted in a file, as text; ``self`` and ``cls`` are one's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            yield ast.unparse(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in SETTERS:
            yield ast.unparse(node.args[0])


def foreign(text):
    return {each for each in assigned(ast.parse(text)) if each not in ("self", "cls")}


def test_every_way_to_set_an_attribute_of_another_object_is_found():
    text = """
a.x = 1
b.x, c.y = 1, 2
d.x += 1
e.x: int = 1
del f.x
for g.x in y: pass
with y as h.x: pass
setattr(i, "x", 1)
object.__setattr__(j, "x", 1)
self.x = cls.y = 1
k[0] = 1
l[0].x = 1
"""
    assert foreign(text) == {*"abcdefghij", "l[0]"}


def test_no_module_sets_an_attribute_of_another_object_but_for_a_reason():
    found = {
        (path.relative_to(ROOT).as_posix(), each)
        for path in ROOT.rglob("*.py")
        for each in foreign(path.read_text(encoding="utf-8"))
    }
    assert not found - ALLOWED.keys(), "give the class a method, an argument or a context manager that says what is meant"
    assert not ALLOWED.keys() - found, "these are allowed and not there any more"


def test_a_classifier_is_told_how_many_images_go_through_at_once_and_by_how_many_passes_it_is_judged():
    sizes = []
    model = BrightnessClassifier()
    model.register_forward_hook(lambda layer, inputs, output: sizes.append(len(output)))
    classifier = Classifier(model, 2)
    bound_passes(classifier, 3)
    classifier(torch.rand(8, 3, 4, 4))
    assert sizes == [3, 3, 2]
    bound_passes(classifier, None)
    judge_by_votes(classifier, 5)
    sizes.clear()
    shares = classifier.votes(torch.rand(8, 3, 4, 4))
    assert sizes == [8] * 5 and torch.allclose(shares.sum(1), torch.ones(8))


@pytest.mark.parametrize("changed", [True, False])
def test_the_text_of_the_classifier_counts_where_a_model_is_given_as_one_and_nowhere_else(monkeypatch, changed):
    inner, text = Classifier(BrightnessClassifier(), 2), inspect.getsource
    plain, nested = inner.digest(), Classifier(inner, 2).digest()
    if changed:
        monkeypatch.setattr(inspect, "getsource", lambda kind: text(kind) + ("# changed" if kind is Classifier else ""))
    assert inner.digest() == plain
    assert (Classifier(inner, 2).digest() == nested) is not changed
