"""A training variant is one object: what its registry entry promises, one that is added, and the three that were there before."""

import ast
import random
import re
import runpy
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import robench
from robench.checkpoint import load_checkpoint, read_description
from robench.cli import main
from robench.data.augment import VIEWS
from robench.models.multihead import MAIN_HEAD, MultiHead
from robench.training import TrainSpec, train
from robench.training.adversarial import ADVERSARIAL
from robench.training.loop import Loop
from robench.training.losses import nt_xent
from robench.training.objectives import OBJECTIVES, OPTIONS, mlp
from robench.training.recipes import RECIPES
from robench.training.rehearsal import rehearse
from robench.types import Dataset, RobenchError, parse_eps

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding-a-variant.md"
PAPER = sorted((ROOT / "checkpoints" / "paper").glob("*.safetensors*"))


def spec_of(arch, data, **chosen):
    return TrainSpec.of(arch, data, **({"backbone": "small", "epochs": 1, "batch_size": 32} | chosen))


def trained(spec, data, path):
    return load_checkpoint(train(spec, data, data, out=path, show_progress=False))


def stepped(few, arch, recipe="paper"):
    """A model after one step, its loss terms, and its gradients by parameter."""
    spec = spec_of(arch, few, recipe=recipe)
    torch.manual_seed(0)
    model = MultiHead("small", spec.heads(few))
    loop = Loop(spec, model, torch.optim.SGD(model.parameters(), lr=0.1), few, "cpu")
    losses = loop.step(torch.arange(32), torch.Generator().manual_seed(1))
    return model, losses, {name: parameter.grad for name, parameter in model.named_parameters()}


# What every entry of the registry promises.


@pytest.mark.parametrize("arch", OBJECTIVES)
def test_every_parameter_of_every_head_learns_from_finite_terms(arch, few):
    for recipe in OBJECTIVES[arch].lambdas:
        model, losses, gradients = stepped(few, arch, recipe)
        assert next(iter(model.heads)) == MAIN_HEAD
        assert all(loss.isfinite() for loss in losses.values())
        assert not [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]


@pytest.mark.parametrize("arch", OBJECTIVES)
def test_targets_are_labels_of_heads_that_classify(arch, few):
    objective, heads = OBJECTIVES[arch], spec_of(arch, few).heads(few)
    for head, labels in objective.targets(few).items():
        assert labels.shape == few.labels.shape and labels.max() < heads[head]["classes"]
    assert objective.options <= set(OPTIONS) and set(objective.lambdas) <= set(RECIPES) and objective.views in VIEWS
    assert objective.about and objective.title


@pytest.mark.parametrize("arch", OBJECTIVES)
def test_a_setting_that_a_variant_does_not_name_is_refused_with_the_variants_name(arch, few):
    for name in OPTIONS:
        if name in OBJECTIVES[arch].options:
            assert getattr(spec_of(arch, few, **{name: 0.25}), name) == 0.25
        else:
            with pytest.raises(RobenchError, match=f"no meaning for arch '{arch}'"):
                spec_of(arch, few, **{name: 0.25})


# A variant that is added, as docs/adding-a-variant.md says.


@pytest.fixture
def rotation(tmp_path, monkeypatch):
    """The page's variant, registered until the test ends, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    Path("rotation.py").write_text(code)
    monkeypatch.setitem(OBJECTIVES, "rotation", None)  # so that it is taken out again
    runpy.run_path("rotation.py", run_name="rotation")
    return OBJECTIVES["rotation"]


def page_commands():
    return [
        shlex.split(line.removeprefix("python rotation.py ").removeprefix("robench "))
        for line in re.findall(r"^    ((?:python rotation\.py|robench) .+)$", PAGE.read_text(), re.MULTILINE)
    ]


@pytest.mark.slow
def test_the_page_trains_a_variant_that_robench_has_not_and_attacks_it(rotation):
    train_it, attack_it = page_commands()
    done = CliRunner().invoke(main, train_it)
    assert done.exit_code == 0 and "clean accuracy: main" in done.output, done.output
    path = Path("checkpoints/digits-rotation-0.safetensors")
    checkpoint = load_checkpoint(path)
    assert checkpoint.arch == "rotation" and checkpoint.heads["rotation"] == {"layers": "mlp", "width": 4, "classes": 4}
    assert set(checkpoint.clean_accuracy) == {"main"}  # no test split says how its images are turned
    assert checkpoint.history[-1]["rotation"] < checkpoint.history[0]["rotation"]
    del OBJECTIVES["rotation"]
    done = CliRunner().invoke(main, attack_it)
    assert done.exit_code == 0 and Path(done.stdout.splitlines()[-1]).is_file(), done.output
    for option, said in (("--head", "digits has labels for main, coarse only"), ("--attack-heads", "no rotation labels")):
        done = CliRunner().invoke(main, [*attack_it, option, "rotation", "--out", "other"])
        assert done.exit_code == 1 and said in done.output


def test_an_added_variant_is_told_by_its_own_name(rotation, few):
    with pytest.raises(RobenchError, match="no meaning for arch 'rotation'"):
        spec_of("rotation", few, temperature=0.1)
    with pytest.raises(RobenchError, match="arch 'rotation' has no weights for the recipe 'authors'; it has them for paper"):
        spec_of("rotation", few, recipe="authors")
    with pytest.raises(RobenchError, match="expected one of single, supervised, contrastive, rotation"):
        spec_of("rotatoin", few)
    assert "rotation" in CliRunner().invoke(main, ["list", "archs"]).output


def test_the_help_says_how_a_variant_of_ones_own_is_named_and_lists_it(rotation):
    said = "".join(CliRunner().invoke(main, ["train", "--help"]).output.split())  # lines are broken at hyphens too
    for part in (
        "python rotation.py train --arch rotation", "docs/adding-a-variant.md", "single, supervised (takes --lambda-aux --lambda-main)",
        "rotation (takes --lambda-aux --lambda-main): what `robench list archs` names",
    ):  # fmt: skip
        assert part.replace(" ", "") in said
    done = CliRunner().invoke(main, ["train", "--arch", "mine/rotation.py:objective", "--dataset", "digits"])
    assert done.exit_code == 1 and "trained by its file: python mine/rotation.py train --arch NAME" in done.stderr


def test_an_added_variant_keeps_the_contract(rotation, few, tmp_path):
    test_every_parameter_of_every_head_learns_from_finite_terms("rotation", few)
    test_targets_are_labels_of_heads_that_classify("rotation", few)
    test_a_setting_that_a_variant_does_not_name_is_refused_with_the_variants_name("rotation", few)
    for adversarial in ("none", "nfgsm"):
        first, again = (
            trained(spec_of("rotation", few, adversarial=adversarial), few, tmp_path / f"{k}{adversarial}") for k in (1, 2)
        )
        assert first.digest == again.digest


def test_targets_made_in_a_batch_are_the_turns_that_were_made(rotation):
    images = torch.rand(12, 3, 5, 5)
    made, targets = rotation.pretext(images, torch.Generator().manual_seed(0))
    assert torch.equal(made[:6], images[:6]) and set(targets["rotation"].tolist()) <= {0, 1, 2, 3}
    for before, after, k in zip(images[6:], made[6:], targets["rotation"].tolist(), strict=True):
        assert torch.equal(after, before.rot90(k, (1, 2)))


NAMES = {*OBJECTIVES, "projection"}
PAPERS = ("reproduce/plan.py", "reproduce/claims.py")  # what the paper says about its own three


def asked_by_name(path):
    """Where a module compares with a variant's name, or looks something up by it."""
    for node in ast.walk(ast.parse(path.read_text())):
        asked = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            asked = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Subscript):
            asked = [node.slice]
        named = [each.value for part in asked for each in ast.walk(part) if isinstance(each, ast.Constant)]
        yield from (f"{path.name}:{node.lineno}: {name}" for name in named if name in NAMES)


def test_nothing_but_the_registry_asks_for_a_variant_by_name():
    package = Path(robench.__file__).parent
    excepted = [package / name for name in ("training/objectives.py", *PAPERS)]
    assert all(list(asked_by_name(path)) for path in excepted)  # there it is found
    assert not [where for path in package.rglob("*.py") if path not in excepted for where in asked_by_name(path)]


# The three that were there before: their code of version 0.1, and what they must still end with.


def step_of_0_1(loop, batch, generator):
    """A training step as it was before a variant was one object, with the losses of that time."""
    spec, view = loop.spec, VIEWS[loop.spec.views]
    n_views = 2 if spec.arch == "contrastive" else 1
    data = step_of_0_1.data
    images = torch.cat([view(data.images[batch], generator, mirror=data.mirror) for _ in range(n_views)])
    images = images.contiguous(memory_format=torch.channels_last)
    labels, coarse = (each[batch].repeat(n_views) for each in (data.labels, data.coarse_labels))
    craft = ADVERSARIAL[spec.adversarial].craft
    if craft is not None:
        noise = torch.empty_like(images).uniform_(-1, 1, generator=generator)
        images = craft(lambda x: loop.model(x)["main"], images, labels, parse_eps(spec.train_eps), noise)
    outputs = loop.model(images)
    losses = losses_of_0_1(spec, RECIPES[spec.recipe].sum_views, outputs, labels, coarse)
    loop.optimizer.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    loop.optimizer.step()
    return losses


def losses_of_0_1(spec, sum_views, outputs, labels, coarse):
    if spec.arch == "single":
        return {"main": F.cross_entropy(outputs["main"], labels)}
    if spec.arch == "supervised":
        fine = spec.lambda_main * F.cross_entropy(outputs["main"], labels)
        return {"main": fine, "coarse": spec.lambda_aux * F.cross_entropy(outputs["coarse"], coarse)}
    n_views = 2 if sum_views else 1
    views = nt_xent(*outputs["projection"].chunk(2), spec.temperature)
    return {
        "main": spec.lambda_main * n_views * F.cross_entropy(outputs["main"], labels),
        "contrastive": spec.lambda_aux * views,
    }


def mlp_of(width, classes):
    return {"layers": "mlp", "width": width, "classes": classes}


HEADS_OF_0_1 = {
    ("single", "paper"): {"main": {"layers": "linear", "width": 10, "classes": 10}},
    ("single", "authors"): {"main": {"layers": "linear", "width": 1000, "classes": 10}},
    ("supervised", "paper"): {"main": mlp_of(10, 10), "coarse": mlp_of(3, 3)},
    ("supervised", "authors"): {"main": mlp_of(10, 10), "coarse": mlp_of(3, 3)},
    ("contrastive", "paper"): {"main": mlp_of(10, 10), "projection": mlp_of(128, None)},
    ("contrastive", "authors"): {"main": mlp_of(10, 10), "projection": mlp_of(128, None)},
}
LAMBDAS_OF_0_1 = {
    ("single", "paper"): (1.0, 0.0), ("supervised", "paper"): (0.5, 0.5), ("contrastive", "paper"): (0.5, 0.5),
    ("single", "authors"): (1.0, 0.0), ("supervised", "authors"): (0.5, 0.5), ("contrastive", "authors"): (0.5, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("adversarial", ["none", "nfgsm"])
@pytest.mark.parametrize(("arch", "recipe"), HEADS_OF_0_1)
def test_the_papers_variants_end_with_the_weights_of_version_0_1_bit_for_bit(arch, recipe, adversarial, few, tmp_path, monkeypatch):
    spec = spec_of(arch, few, recipe=recipe, adversarial=adversarial)
    assert (spec.lambda_main, spec.lambda_aux) == LAMBDAS_OF_0_1[arch, recipe]
    now = trained(spec, few, tmp_path / "now")
    assert now.heads == HEADS_OF_0_1[arch, recipe]
    monkeypatch.setattr(step_of_0_1, "data", few, raising=False)
    monkeypatch.setattr(Loop, "step", step_of_0_1)
    then = trained(spec, few, tmp_path / "then")
    assert then.digest == now.digest
    assert [now.history[0][name] for name in now.history[0] if "second" not in name] == [
        then.history[0][name] for name in then.history[0] if "second" not in name
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_checkpoints_still_answer_to_their_command(path):
    described = read_description(path)
    recipe, classes = dict(described["recipe"]), tuple(described["classes"])
    images, labels = torch.zeros(256, 3, 32, 32, dtype=torch.uint8), torch.zeros(256, dtype=torch.int64)
    coarse = {"coarse_labels": labels, "coarse_classes": tuple(map(str, range(20)))} if len(classes) == 100 else {}
    data = Dataset(described["dataset"], "train", images, labels, classes, **coarse)
    given = {name: recipe[name] for name in ("seed", "epochs", "views", "precision")}
    spec = TrainSpec.of(described["arch"], data, recipe=recipe["recipe"], adversarial=recipe["adversarial"], **given)
    del recipe["train_set"]
    assert asdict(spec) == recipe  # or `robench train` would refuse a path that is finished
    assert spec.heads(data) == described["heads"]
    assert load_checkpoint(path).digest == described["digest"]


def test_a_loss_that_is_no_dictionary_of_terms_is_refused_in_one_message(few, monkeypatch):
    single = replace(OBJECTIVES["single"], loss=lambda outputs, targets, terms: outputs[MAIN_HEAD].sum())
    monkeypatch.setitem(OBJECTIVES, "single", single)
    with pytest.raises(RobenchError, match="variant 'single' returned Tensor, expected a dictionary of terms"):
        stepped(few, "single")


def cross_entropy(head, outputs, targets):
    return F.cross_entropy(outputs[head], targets[head])


def forgets_a_head(outputs, targets, terms):
    return {"main": cross_entropy("main", outputs, targets), "coarse": terms.lambda_aux * torch.ones(())}


MISSPELT = {
    "a head": (
        {
            "loss": lambda outputs, targets, terms: {
                "main": cross_entropy("main", outputs, targets),
                "coarse": outputs["caorse"].mean(),
            }
        },
        r"the loss of variant 'supervised' reads the head 'caorse', which it has not \(did you mean 'coarse'\?\); its heads: main, coarse$",
    ),
    "a target": (
        {"loss": lambda outputs, targets, terms: {"main": F.cross_entropy(outputs["main"], targets["mian"])}},
        r"reads the targets of 'mian', which it has not \(did you mean 'main'\?\); it has main, coarse$",
    ),
    "a weight": (
        {"loss": lambda outputs, targets, terms: {"main": terms.lambda_axu * cross_entropy("main", outputs, targets)}},
        r"reads terms\.lambda_axu, which is not there \(did you mean 'lambda_aux'\?\); there are lambda_main, lambda_aux, temperature, sum_views$",
    ),
    "a head without a term": (
        {"loss": forgets_a_head},
        r"no term of the loss of variant 'supervised' uses its head 'coarse', which would learn nothing; its terms: main, coarse; its heads: main, coarse$",
    ),
    "no main head": (
        {"heads": lambda data, recipe: {"mian": mlp(10, 10), "coarse": mlp(3, 3)}},
        r"variant 'supervised' has no head 'main' \(did you mean 'mian'\?\); its heads: mian, coarse$",
    ),
    "no tensor": (
        {"loss": lambda outputs, targets, terms: {"main": cross_entropy("main", outputs, targets), "coarse": 0.5}},
        r"the loss of variant 'supervised' returned a float as its term 'coarse', expected a tensor of one number$",
    ),
    "no single number": (
        {"loss": lambda outputs, targets, terms: {"main": outputs["main"].mean(1), "coarse": outputs["coarse"].mean(1)}},
        r"returned a tensor of shape \(32,\) as its term 'main', expected a tensor of one number$",
    ),
}


@pytest.mark.parametrize("what", MISSPELT)
def test_a_variant_that_does_not_fit_itself_is_refused_before_anything_is_written(what, few, tmp_path, monkeypatch):
    changed, said = MISSPELT[what]
    monkeypatch.setitem(OBJECTIVES, "supervised", replace(OBJECTIVES["supervised"], **changed))
    with pytest.raises(RobenchError, match=said):
        trained(spec_of("supervised", few), few, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_option_that_a_variant_spells_wrong_is_refused_with_the_right_one(few, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "supervised", replace(OBJECTIVES["supervised"], options=frozenset({"lambda_axu"})))
    with pytest.raises(
        RobenchError, match=r"names the option 'lambda_axu', which is none \(did you mean 'lambda_aux'\?\); options are lambda_main"
    ):
        spec_of("supervised", few, lambda_aux=0.5)


def test_a_weight_of_zero_or_a_term_for_certain_outputs_only_is_a_term_nevertheless(few, monkeypatch):
    def certain(outputs, targets, terms):
        sure = outputs["coarse"].softmax(1).amax(1) > 0.95
        losses = {"main": cross_entropy("main", outputs, targets)}
        if terms.lambda_aux and sure.float().mean() > 0.5:
            losses["coarse"] = terms.lambda_aux * F.cross_entropy(outputs["coarse"][sure], targets["coarse"][sure])
        return losses

    monkeypatch.setitem(OBJECTIVES, "supervised", replace(OBJECTIVES["supervised"], loss=certain))
    rehearse(spec_of("supervised", few, lambda_aux=0.0), few, "cpu")


@pytest.mark.parametrize("arch", OBJECTIVES)
def test_the_rehearsal_draws_from_no_generator_of_others(arch, few):
    states = torch.get_rng_state(), random.getstate()
    for recipe in OBJECTIVES[arch].lambdas:
        rehearse(spec_of(arch, few, recipe=recipe), few, "cpu")
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
