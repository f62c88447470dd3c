"""Attacks that robench does not bring: functions, files and installed packages are columns like any other, keyed by their code."""

import functools
import importlib
import inspect
import json
import os
import random
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cases import BrightnessClassifier, brightness_data, darken
from click.testing import CliRunner

import robench
from robench import code_digest
from robench.attacks import attack_of_file, check_suite, parse_columns
from robench.authoring import description_of
from robench.cli import main
from robench.code_digest import digest_function
from robench.evaluation.run_folder import attack_folder
from robench.types import Attack, ReturnPolicy, RobenchError, ThreatModel

LINF = ThreatModel("Linf", 0.1)
OFFSETS = [0.03, 0.06, 0.2, -0.1, 0.09, 0.4]  # darken by 0.1 breaks the first two and the fifth
MODEL = """
import torch
from torch import nn


class Brightness(nn.Module):
    def forward(self, images):
        mean = images.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def make():
    return Brightness()
"""
# The whole of an attack outside the package.
SHIFT = '''
"""Attacks of somebody's own."""

import torch

from robench import attack

SIGNS = (-1, 1)


@attack(norms=("Linf",), source="an afternoon")
def shift(model, images, labels, threat, seed, *, steps=2):
    """Moves all pixels up and down, and keeps what fools the model."""
    best = images.clone()
    for step in range(1, steps + 1):
        for sign in SIGNS:
            moved = (images + sign * threat.eps * step / steps).clamp(0, 1)
            with torch.no_grad():
                fooled = model(moved).argmax(1) != labels
            best[fooled] = moved[fooled]
    return best
'''

ATTACK_GRAY = (
    "attack", "--model", "net.py:make", "--dataset", "data.npz", "--eps", "0.1", "--device", "cpu", "--threads", "1"
)  # fmt: skip


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write(path, text):
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model, data and an attack."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "net.py", MODEL)
    write(tmp_path / "mine.py", SHIFT)
    images, labels = brightness_data(OFFSETS)
    np.savez(
        tmp_path / "data.npz", images=images.numpy().repeat(4, 2).repeat(4, 3), labels=labels.numpy(), classes=["dark", "light"]
    )
    return tmp_path


def run(*more, out="run"):
    return call(*ATTACK_GRAY, "--out", out, *more)


def one_message(result, *texts):
    assert result.exit_code == 1 and "Traceback" not in result.output and isinstance(result.exception, SystemExit)
    said = [line for line in result.stderr.splitlines() if not line.startswith(("robench: warning", "robench: data.npz"))]
    assert len(said) == 1, result.stderr
    assert all(text in said[0] for text in texts), said[0]


def columns(out="run"):
    return [suite["name"] for suite in json.loads(Path(out, "run.json").read_text())["suites"]]


def robust(out="run"):
    table = pd.read_csv(f"{out}/summary.csv").set_index("attack")["robust_accuracy"]
    return {name: round(value * len(OFFSETS)) for name, value in table.items()}


# --- values ---


def lift(model, images, labels, threat, seed, *, size=1.0, again=None):
    return (images + size * threat.eps).clamp(0, 1)


def test_functions_values_and_names_are_mixed_in_one_suite():
    images, labels = brightness_data(OFFSETS)
    half = Attack.of(darken, name="half")
    found = robench.evaluate(
        BrightnessClassifier(), images, labels, suite=[darken, "pgd5", half, Attack.of(lift, size=0.5)], eps=0.1
    )
    assert found.summary["attack"].tolist() == ["clean", "darken", "pgd5", "half", "lift(size=0.5)", "union"]
    left = found.summary.set_index("attack")["robust_accuracy"] * len(OFFSETS)
    assert left["darken"] == pytest.approx(2) and left["half"] == pytest.approx(2) and left["lift(size=0.5)"] == pytest.approx(5)
    assert not found.failures


def asks_about_nobody(model, images, labels, threat, seed):
    nobody = images[:0].clone().requires_grad_()
    logits = model(nobody)
    logits.sum().backward()
    assert logits.shape == (0, 2) and logits.dtype == torch.float32 and nobody.grad.shape == nobody.shape
    return darken(model, images, labels, threat, seed)


def test_an_attack_may_ask_about_no_image_at_all():
    images, labels = brightness_data(OFFSETS)
    tables = [
        robench.evaluate(BrightnessClassifier(), images, labels, suite=[each], eps=0.1, device="cpu").verdicts
        for each in (darken, asks_about_nobody)
    ]
    first, second = (each.loc[each["attack"] != "clean", "outcome"].tolist() for each in tables)
    assert first == second and "error" not in second


def test_the_recorded_call_names_functions_without_addresses(tmp_path):
    images, labels = brightness_data(OFFSETS)
    robench.evaluate(
        BrightnessClassifier(), images, labels, suite=[darken, "pgd1", Attack.of(lift, size=0.5)], eps=0.1, out=tmp_path / "run"
    )
    (said,) = json.loads((tmp_path / "run" / "run.json").read_text())["commands"]
    assert "suite=[darken, 'pgd1', lift(size=0.5)]" in said and " at 0x" not in said


def test_the_decorator_describes_a_function_and_leaves_it_what_it_is():
    def fn(model, images, labels, threat, seed, *, steps=3):
        return images

    before = inspect.signature(fn)
    same = robench.attack(name="mine", norms="L2", returns=ReturnPolicy.ANY, source="a paper")(fn)
    assert same is fn and inspect.signature(fn) == before and fn(0, 1, 2, 3, 4) == 1
    made = Attack.of(fn)
    assert (made.name, made.norms, made.returns, made.source, made.params, made.fn) == (
        "mine",
        ("L2",),
        "any",
        "a paper",
        {"steps": 3},
        fn,
    )
    assert robench.attack(darken) is darken and description_of(darken).name == ""
    del darken.robench_attack


def test_a_changed_parameter_changes_name_key_and_what_is_called():
    seen = []

    def noted(model, images, labels, threat, seed, *, steps=3):
        seen.append(steps)
        return images

    usual, more = Attack.of(noted), Attack.of(noted, steps=20)
    assert (more.name, more.params, usual.name, usual.params) == ("noted(steps=20)", {"steps": 20}, "noted", {"steps": 3})
    more.fn(None, None, None, LINF, 0)
    assert seen == [20] and usual.family == more.family
    assert Attack.of(noted, steps=3).name == "noted" and Attack.of(noted, steps=20, name="long").name == "long"
    assert attack_folder(*_column(usual)) != attack_folder(*_column(replace(more, name="noted")))


def test_a_partial_is_called_by_the_parameters_that_it_changes():
    def noted(model, images, labels, threat, seed, *, size=1, steps=3):
        return images

    def needs(model, images, labels, threat, seed, *, steps):
        return images

    few, many = functools.partial(noted, steps=5), functools.partial(noted, steps=20)
    named = [Attack.of(each).name for each in (few, many, functools.partial(few, size=2), functools.partial(noted, steps=3))]
    assert named == ["noted(steps=5)", "noted(steps=20)", "noted(steps=5, size=2)", "noted"]
    assert Attack.of(few, steps=3).name == "noted" and Attack.of(few, size=2).name == "noted(steps=5, size=2)"
    assert Attack.of(functools.partial(needs, steps=2)).name == "needs(steps=2)" and Attack.of(few, name="few").name == "few"
    assert Attack.of(few).family == Attack.of(noted).family and Attack.of(few).params == {"size": 1, "steps": 5}
    assert [each.name for each in parse_columns([few, many], LINF, 10)] == named[:2]


def _column(attack):
    (suite,) = parse_columns([attack], LINF, 10)
    return suite, suite.stages[0]


def wrong_order(images, labels, model, threat, seed):
    return images


def too_few(model, images, labels):
    return images


def other_meaning(model, images, labels, eps=0.1, steps=10):
    return images


def reserved(model, images, labels, threat, seed, *, passes=3):
    return images


def needs(model, images, labels, threat, seed, *, steps):
    return images


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Attack.of(wrong_order),
            r"takes \(images, labels, model, threat, seed\), expected \(model, images, labels, threat, seed\)",
        ),
        (lambda: Attack.of(too_few), r"'too_few' takes \(model, images, labels\), expected"),
        (lambda: Attack.of(other_meaning), "takes .*eps=0.1, steps=10.*, expected"),
        (lambda: Attack.of(reserved), "parameter called 'passes', which means something else"),
        (lambda: Attack.of(needs), r"needs a steps: .*Attack.of\(needs, steps=...\)"),
        (lambda: Attack.of(lift, sizes=2), "has no parameter 'sizes'; it has size, again"),
        (lambda: Attack.of(lift, again=torch.zeros(2)), "again is of type Tensor, which cannot be recorded"),
        (lambda: Attack.of(BrightnessClassifier), "is a class; expected a function"),
        (lambda: check_suite([3]), "is of type int; expected a function"),
        (lambda: Attack.of(lift, norms=("L3",)), "for the norms L3; expected some of Linf, L2, L1"),
        (lambda: Attack.of(lift, returns="best"), "returns 'best'; expected one of last, any"),
        (lambda: Attack.of(lift, name="a,b"), "called 'a,b'; expected letters"),
        (lambda: check_suite([Attack.of(lift, name="pgd20")]), "called 'pgd20', which is a name of robench's"),
        (lambda: check_suite([Attack.of(lift, name="clean")]), "called 'clean', which is a name of robench's"),
        (lambda: parse_columns([Attack.of(lift, norms="L2")], LINF, 10), "'lift' is defined for L2 only, not for Linf"),
        (lambda: parse_columns([], LINF, 10), "the suite is empty"),
    ],
)
def test_what_is_no_attack_is_refused_in_a_sentence(make, message):
    with pytest.raises(RobenchError, match=message):
        make()


def test_two_functions_of_one_name_in_one_call_are_refused_and_one_given_twice_is_one_column():
    def first(model, images, labels, threat, seed):
        return images + 1

    def second(model, images, labels, threat, seed):
        return images - 1

    second.__name__ = "first"
    with pytest.raises(RobenchError, match="two attacks would be called 'first'; give one another name"):
        parse_columns([first, second], LINF, 10)
    by_hand = [Attack("one", fn, ("Linf",), False, {}, "by hand", "", "one") for fn in (first, second)]
    with pytest.raises(RobenchError, match="two attacks would be called 'one'"):
        parse_columns(by_hand, LINF, 10)
    assert [suite.name for suite in parse_columns([first, first, "pgd20", "pgd20"], LINF, 10)] == ["first", "pgd20"]


# --- keys ---

FILE = """
import math
import beside
from beside import helped

SIZE = 0.5
TABLE = {"a": [1, 2]}


def step(x):
    return x * SIZE


class Walker:
    rate = 2

    def go(self, x):
        return step(x)


def fn(model, images, labels, threat, seed):
    return Walker().go(images) + helped(images) + TABLE["a"][0] + math.pi


def other(model, images, labels, threat, seed):
    return images
"""
BESIDE = """
def helped(x):
    return x + 1
"""


def keys(folder, names=("fn", "other")):
    """Digests as another process finds them."""
    code = f"""
import sys
from robench.attacks import attack_of_file
print(*[attack_of_file("m.py:" + name).library for name in {names!r}], sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "random"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split("\n")[: len(names)]


def test_a_file_s_key_is_the_same_in_every_process_and_follows_its_text_and_what_lies_beside_it(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.py").write_text(FILE)
        (tmp_path / name / "beside.py").write_text(BESIDE)
    first, second = keys(tmp_path / "one"), keys(tmp_path / "two")
    assert first == second and first[0] != first[1] and first[0].startswith("m.py, code ")
    (tmp_path / "one" / "beside.py").write_text(BESIDE.replace("+ 1", "+ 2"))
    (tmp_path / "two" / "m.py").write_text(FILE.replace("x * SIZE", "x / SIZE"))
    assert keys(tmp_path / "one")[0] != first[0] and keys(tmp_path / "two")[0] != first[0]


def of_source(text, name="fn", **globals_):
    """A function that has no file."""
    namespace = dict(globals_)
    exec(text, namespace)
    return namespace[name]


TYPED = "def fn(model, images, labels, threat, seed):\n    return step(images) * SIZE\ndef step(x):\n    return x + 1\nSIZE = 3\n"


@pytest.mark.parametrize(
    "changed", [TYPED.replace("+ 1", "+ 2"), TYPED.replace("SIZE = 3", "SIZE = 4"), TYPED.replace(") * SIZE", ") / SIZE")]
)
def test_a_function_without_a_file_is_keyed_by_its_code_and_by_what_it_names(changed):
    assert digest_function(of_source(TYPED)) == digest_function(of_source("# a remark\n\n" + TYPED))
    assert digest_function(of_source(TYPED)) != digest_function(of_source(changed))
    assert Attack.of(of_source(TYPED)).library.startswith("typed in, code ")


def test_closures_networks_and_tensors_are_part_of_the_key():
    def made(value):
        def fn(model, images, labels, threat, seed):
            return images + value

        return fn

    torch.manual_seed(0)
    network, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    values = [
        1,
        2,
        "a",
        torch.zeros(2),
        torch.ones(2),
        network,
        other,
        np.arange(3),
        {"a": {1, 2}},
        (1, [2]),
        torch.float64,
        made(3),
    ]
    digests = [digest_function(made(value)) for value in values]
    assert len(set(digests)) == len(values)
    network(torch.zeros(1, 2))  # being used is no change
    assert digests == [digest_function(made(value)) for value in values]


def strided(stride):
    layer = torch.nn.Conv2d(1, 1, 3, stride=stride, bias=False)
    layer.weight.data.fill_(1.0)
    return layer


def remembering(value):
    layer = torch.nn.Identity()
    layer.register_buffer("shift", torch.tensor(value), persistent=False)
    return layer


@pytest.mark.parametrize(
    "make",
    [
        strided,
        remembering,
        lambda value: {0: value}.get,
        lambda value: torch.tensor([float(value)]).mul,
        lambda value: type("Settings", (), {"steps": [value]}),
        lambda value: type("Settings", (), {"start": torch.tensor(value)}),
        lambda value: torch.tensor([float(value), 0.0]).to_sparse(),
        lambda value: torch.empty(value, device="meta"),
    ],
    ids=["stride", "buffer", "bound", "bound to a tensor", "class of lists", "class of tensors", "sparse", "meta"],
)
def test_what_differs_in_a_number_alone_has_another_key(make):
    def made(value):
        def fn(model, images, labels, threat, seed):
            return images, value

        return fn

    assert digest_function(made(make(1))) == digest_function(made(make(1)))
    assert digest_function(made(make(1))) != digest_function(made(make(2)))


def test_a_key_does_not_depend_on_what_was_imported_before(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "lazyhelp.py", "SIZE = 1\n")
    (tmp_path / "lazypack").mkdir()
    write(tmp_path / "lazypack" / "__init__.py", "")
    write(tmp_path / "lazypack" / "inner.py", "SIZE = 1\n")
    text = "def fn(model, images, labels, threat, seed):\n    import lazyhelp, lazypack.inner, colorsys, this_is_nowhere\n"
    path = write(tmp_path / "lazy.py", text)
    fn = attack_of_file(f"{path}:fn").fn
    before = digest_function(fn)
    for name in ("lazyhelp", "lazypack.inner", "colorsys"):
        importlib.import_module(name)
    try:
        assert digest_function(fn) == before
        write(tmp_path / "lazypack" / "inner.py", "SIZE = 2\n")
        assert digest_function(fn) != before
    finally:
        for name in ("lazyhelp", "lazypack.inner", "lazypack"):
            sys.modules.pop(name, None)


def test_a_package_that_a_function_imports_later_counts_by_its_version_at_once(site, monkeypatch):
    monkeypatch.setattr(code_digest, "INSTALLED", (str(site),))
    install(site, "lazydist", {}, "SIZE = 1")
    fn = of_source("def fn(model, images, labels, threat, seed):\n    import lazydist\n")
    before = digest_function(fn)
    importlib.import_module("lazydist")
    try:
        assert digest_function(fn) == before
    finally:
        sys.modules.pop("lazydist", None)


@pytest.mark.parametrize("draw", [random.gauss, random.random, random.Random(0).gauss, np.random.default_rng(0).normal])
def test_what_a_generator_has_drawn_is_no_part_of_a_key(draw):
    fn = of_source("def fn(model, images, labels, threat, seed):\n    return draw(0, 1)\n", draw=draw)
    before = digest_function(fn)
    draw() if draw is random.random else draw(0, 1)
    assert digest_function(fn) == before


def test_code_that_lies_beside_robench_is_not_taken_for_robench_s(monkeypatch, tmp_path):
    (tmp_path / "robench_extras").mkdir()
    write(tmp_path / "robench_extras" / "beside.py", "def step(x):\n    return x + 1\n")
    monkeypatch.setattr(code_digest, "INSTALLED", (str(tmp_path / "robench"),))
    monkeypatch.syspath_prepend(str(tmp_path / "robench_extras"))
    step = importlib.import_module("beside").step
    try:
        fn = of_source("def fn(model, images, labels, threat, seed):\n    return step(images)\n", step=step)
        assert [module.__name__ for module in code_digest.modules_of(fn)] == ["beside"]
    finally:
        sys.modules.pop("beside", None)


def test_what_refers_to_itself_has_a_key():
    loop = []
    loop.append(loop)

    def fn(model, images, labels, threat, seed):
        return fn, loop

    assert digest_function(fn) == digest_function(fn)


def test_a_file_that_changed_after_its_import_is_not_taken_for_what_it_says_now(tmp_path):
    path = write(tmp_path / "late.py", "def fn(model, images, labels, threat, seed):\n    return images + 1\n")
    imported = attack_of_file(f"{path}:fn").fn
    write(path, "def fn(model, images, labels, threat, seed):\n    return images + 2\n")
    assert digest_function(imported) != digest_function(attack_of_file(f"{path}:fn").fn)


def test_a_file_that_changed_within_the_second_is_read_again(tmp_path):
    path = write(tmp_path / "quick.py", "def fn(model, images, labels, threat, seed):\n    return images + 1\n")
    first = attack_of_file(f"{path}:fn").fn(None, 1, None, None, 0)
    changed = path.stat().st_mtime_ns
    write(path, "def fn(model, images, labels, threat, seed):\n    return images + 2\n")
    os.utime(path, ns=(changed, changed))
    assert (first, attack_of_file(f"{path}:fn").fn(None, 1, None, None, 0)) == (2, 3)


def test_a_file_called_like_a_library_does_not_stand_in_for_it(tmp_path):
    write(tmp_path / "torch.py", "def fn(model, images, labels, threat, seed):\n    return images\n")
    assert attack_of_file(f"{tmp_path / 'torch.py'}:fn").name == "fn" and sys.modules["torch"] is torch


# --- the command ---


def test_twenty_lines_outside_the_package_are_found_by_the_command_the_report_and_the_contract(here):
    assert len((here / "mine.py").read_text().strip().splitlines()) <= 22
    result = run("--attack", "mine.py:shift", "--suite", "pgd3")
    assert result.exit_code == 0, result.output
    assert columns() == ["pgd3", "shift"] and robust()["shift"] == 2
    page = (here / "run" / "report.html").read_text()
    assert "shift" in page and "mine.py, code " in page and "an afternoon" in page
    assert "shift" in call("report", "run").output
    checked = call("check-attack", "mine.py:shift")
    assert checked.exit_code == 0 and "claims hold" in checked.output and "FAIL" not in checked.output


def test_an_attack_lies_at_most_seven_calls_below_the_command(here):
    write(
        here / "mine.py",
        "import traceback\nfrom pathlib import Path\n\n\ndef shift(model, images, labels, threat, seed):\n"
        "    Path('stack').write_text('\\n'.join(f'{each.filename} {each.name}' for each in traceback.extract_stack()))\n"
        "    return images\n",
    )
    assert run("--attack", "mine.py:shift").exit_code == 0
    package = str(Path(robench.__file__).parent)
    calls = [line.removeprefix(f"{package}/") for line in (here / "stack").read_text().splitlines() if line.startswith(package)]
    below = calls[calls.index("cli/attack.py attack") + 1 :]
    assert below == [
        "run/attack.py attack", "run/execute.py execute", "evaluation/engine.py evaluate_columns", "evaluation/engine.py compute",
        "evaluation/attack_chunk.py attack_chunk", "evaluation/crafting.py craft",
    ]  # fmt: skip
    assert len(below) + 1 <= 7  # the last of the calls is that of the attack


@pytest.mark.slow
def test_the_same_command_continues_and_a_changed_attack_is_computed_again(here):
    assert run("--attack", "mine.py:shift").exit_code == 0
    assert columns() == ["shift"]
    (chunk,) = (here / "run" / "chunks").glob("shift-*/*.npz")
    then = chunk.stat().st_mtime_ns
    result = run("--attack", "mine.py:shift")
    assert chunk.stat().st_mtime_ns == then and "computed again" not in result.stderr
    write(here / "mine.py", SHIFT.replace("step / steps", "step / steps / 100"))
    result = run("--attack", "mine.py:shift")
    assert "computed again, since other code" in result.stderr and robust()["shift"] == 5
    assert len(list((here / "run" / "chunks").glob("shift-*/*.npz"))) == 2


@pytest.mark.slow
def test_two_ranks_end_with_the_table_of_one_process(here):
    assert run("--attack", "mine.py:shift", "--batch-size", 2, out="alone").exit_code == 0
    for rank in (1, 0):
        ranks = {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
        }
        result = CliRunner(env=ranks).invoke(
            main, [*ATTACK_GRAY, "--batch-size", "2", "--out", "ranks", "--attack", "mine.py:shift"]
        )
        assert result.exit_code == 0, result.output
    assert Path("ranks/verdicts.csv").read_text() == Path("alone/verdicts.csv").read_text()


@pytest.mark.slow
def test_ray_s_workers_get_an_attack_of_a_file_and_what_lies_beside_it(here):
    pytest.importorskip("ray", reason="needs Ray: pip install 'robench[ray]'")
    write(here / "beside.py", "SIGNS = (-1, 1)\n\n\ndef signs():\n    return SIGNS\n")
    write(here / "mine.py", SHIFT.replace("SIGNS = (-1, 1)", "from beside import signs").replace("in SIGNS", "in signs()"))
    assert run("--attack", "mine.py:shift", "--batch-size", 2, out="alone").exit_code == 0
    command = "attack --model net.py:make --dataset data.npz --eps 0.1 --batch-size 2 --out ray --attack mine.py:shift --ray"
    done = subprocess.run(
        [sys.executable, "-m", "robench", *command.split()],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path("ray/verdicts.csv").read_text() == Path("alone/verdicts.csv").read_text()


@pytest.mark.parametrize(
    ("text", "where", "messages"),
    [
        (SHIFT, "absent.py:shift", ["no file 'absent.py'; expected FILE.py:FUNCTION"]),
        (SHIFT, "mine.py", ["lacks the function: write mine.py:FUNCTION"]),
        (SHIFT, "mine.py:shft", ["mine.py has no function 'shft'; it has shift"]),
        ("1 / 0", "mine.py:shift", ["--attack 'mine.py:shift' raised ZeroDivisionError"]),
        ("def (", "mine.py:shift", ["raised SyntaxError"]),
        ("import sys\nsys.exit(0)", "mine.py:shift", ["raised SystemExit"]),
        (
            "def shift(images, labels):\n    return images",
            "mine.py:shift",
            ["'shift' takes (images, labels), expected (model, images"],
        ),
        ("shift = 3", "mine.py:shift", ["is of type int; expected a function"]),
        (SHIFT.replace('("Linf",)', '("L2",)'), "mine.py:shift", ["defined for L2 only, not for Linf"]),
        (SHIFT.replace("def shift", "def fgsm"), "mine.py:fgsm", ["'fgsm', which is a name of robench's", "@attack(name=...)"]),
    ],
)
def test_a_file_that_holds_no_attack_is_one_clear_message(here, text, where, messages):
    write(here / "mine.py", text)
    one_message(run("--attack", where), *messages)
    assert not (here / "run" / "chunks").exists()
    checked = call("check-attack", where)
    assert "Traceback" not in checked.output and (checked.exit_code == 1 or "L2" in messages[0])


def test_a_file_given_as_a_suite_is_told_of_the_option(here):
    one_message(run("--suite", "mine.py:shift"), "--attack mine.py:shift takes a function of a file")


@pytest.mark.parametrize(
    ("body", "outcome", "said"),
    [
        ("return images[:, :, 1:]", "invalid", "returned shape"),
        ("return images * float('nan')", "invalid", "NaN"),
        ("return images.roll(1, 0) * 0 + 1", "invalid", "outside the ball"),
        ("return None", "error", "the attack returned None, expected adversarial images"),
        ("raise ValueError('no')", "error", "ValueError: no"),
        ("raise SystemExit(0)", "error", "SystemExit"),
    ],
)
def test_an_attack_that_fails_is_a_verdict_about_the_attack(here, body, outcome, said):
    write(here / "mine.py", f"def bad(model, images, labels, threat, seed):\n    {body}\n")
    result = run("--attack", "mine.py:bad")
    assert result.exit_code == 1 and "attack failed: bad" in result.stderr and said in result.stderr
    verdicts = pd.read_csv("run/verdicts.csv")
    assert outcome in set(verdicts[verdicts["attack"] == "bad"]["outcome"])
    checked = call("check-attack", "mine.py:bad")
    assert checked.exit_code == 3 and "FAIL" in checked.output and "Traceback" not in checked.output


def test_a_file_without_its_function_is_told_what_is_missing(here):
    write(here / "mine.py", SHIFT)
    for called in (call("check-attack", "mine.py"), run("--attack", "mine.py"), run("--suite", "mine.py")):
        one_message(called, "mine.py:FUNCTION")


@pytest.mark.parametrize("alone", [darken, Attack.of(darken)])
def test_one_attack_needs_no_list_around_it(alone):
    result = robench.evaluate(BrightnessClassifier(), *brightness_data([0.05, 0.3]), suite=alone, eps=0.1)
    assert list(result.summary["attack"]) == ["clean", "darken", "union"]


@pytest.mark.parametrize(("suite", "said"), [("", "the suite is empty"), ([], "the suite is empty"), (3, "is of type int")])
def test_a_suite_that_holds_no_attack_is_refused(suite, said):
    with pytest.raises(RobenchError, match=said):
        robench.evaluate(BrightnessClassifier(), *brightness_data([0.05, 0.3]), suite=suite, eps=0.1)


# --- installed packages ---


def install(folder, package, entries, code):
    """A package as pip leaves it."""
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[robench.attacks]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
    )


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_the_attacks_of_installed_packages_are_names(here, site):
    install(site, "packed_shift", {"Shifted": "packed_shift:shift"}, SHIFT)
    shown = call("list", "attacks").output
    assert "shifted" in shown and "of packed_shift 1.2: packed_shift:shift" in shown
    result = run("--suite", "shifted,pgd1")
    assert result.exit_code == 0, result.output
    assert columns() == ["Shifted", "pgd1"] and robust()["Shifted"] == 2
    (suite,) = parse_columns("shifted", LINF, 10)
    assert suite.stages[0].library.startswith("packed_shift 1.2, code ")
    assert call("check-attack", "shifted").exit_code == 0


def test_a_broken_entry_point_is_one_message_when_it_is_named_and_breaks_no_other(here, site):
    install(site, "broken_shift", {"torn": "broken_shift:shift", "gone": "no_such_module:fn"}, "raise OSError('torn')")
    assert "torn" in call("list", "attacks").output
    one_message(run("--suite", "torn"), "'torn' of broken_shift 1.2 (broken_shift:shift) cannot be loaded: OSError: torn")
    one_message(run("--suite", "gone"), "cannot be loaded: ModuleNotFoundError")
    one_message(run("--suite", "tron"), "unknown attack 'tron' (did you mean 'torn'?)")
    assert run("--suite", "pgd1").exit_code == 0


def test_two_packages_with_one_name_are_refused_and_robench_s_own_names_stay_its_own(here, site):
    install(site, "one_shift", {"shift": "one_shift:shift", "pgd20": "one_shift:shift"}, SHIFT)
    install(site, "two_shift", {"shift": "two_shift:shift"}, SHIFT)
    one_message(run("--suite", "shift"), "is of", "one_shift 1.2", "and of", "two_shift 1.2", "uninstall one")
    assert parse_columns("pgd20", LINF, 10)[0].stages[0].library.startswith("torchattacks")


def test_a_parameter_is_compared_with_its_default_as_it_is_recorded():
    def crafted(model, images, labels, threat, seed, *, widths=(1.0, 2.0)):
        return images

    import numpy as np

    assert Attack.of(crafted, widths=np.float64(2)).name == "crafted(widths=2.0)"
    assert Attack.of(crafted, widths=(1.0, 2.0)).name == "crafted"
