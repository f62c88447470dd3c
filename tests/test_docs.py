"""What the documentation tells people to type."""

import importlib.util
import inspect
import re
import shlex
from importlib.metadata import version
from pathlib import Path

import click
import pandas
import pytest
from cases import linear_case
from click.testing import CliRunner

import robench
from robench import types
from robench.attacks import attack_of_file
from robench.audit.checks import CHECKS
from robench.cli import main
from robench.data import DATASETS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("reports/**/README.md")])
RUN = ["docs/README.md", "docs/reading-a-report.md", "docs/audit.md"]  # in this order, in one folder


def commands(page):
    """Lines of indented or fenced blocks, and spans in the text, that begin with robench; comments cut off."""
    text = page.read_text()
    blocks = re.findall(r"^(?:    |\t)?(robench .+)$", text, re.MULTILINE)
    spans = re.findall(r"`(robench [a-z]+ [^`\n]+)`", text)
    for line in [*blocks, *spans]:
        words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
        if "..." not in line and "…" not in line:
            yield words[1:]


def understood(words):
    """Parses a command line without running it."""
    command = main.commands.get(words[0])
    assert command is not None, f"there is no `robench {words[0]}`"
    command.make_parser(click.Context(command)).parse_args(list(words[1:]))


ALL = [(str(page.relative_to(ROOT)), words) for page in PAGES for words in commands(page)]


def test_commands_are_found():
    assert len(ALL) > 20


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in ALL])
def test_every_command_and_option_of_the_documentation_exists(page, words):
    if words[0].isupper() or words[0].startswith("-"):
        pytest.skip("names no command")
    understood(words)


def test_a_command_that_does_not_exist_is_noticed():
    with pytest.raises(click.NoSuchOption):
        understood(["attack", "--no-such-option", "1"])
    with pytest.raises(AssertionError, match="no `robench atack`"):
        understood(["atack"])


@pytest.mark.slow
def test_the_commands_of_the_first_pages_run_as_a_newcomer_would_run_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = 0
    for page in RUN:
        for line in re.findall(r"^    (robench .+)$", (ROOT / page).read_text(), re.MULTILINE):
            done = CliRunner().invoke(main, shlex.split(line)[1:])
            assert done.exit_code in (0, 3), f"{line}: {done.output}"  # 3: the audit refuted a number, as it should
            ran += 1
    assert ran == 7
    assert (tmp_path / "reports/digits-single-0-Linf-0.2/report.md").exists()


def test_the_page_on_python_lists_every_public_name_and_its_round_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "python.md").read_text()
    assert re.findall(r"^\| `robench\.(\w+)` \|", page, re.MULTILINE) == [name for name in robench.__all__ if name != "__version__"]
    assert not [name for name in robench.__all__ if name != "__version__" and not inspect.getdoc(getattr(robench, name))]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    summary = names["result"].summary.set_index("attack")
    assert len(names["fooled"]) == summary.loc["fast", "broken"] > 0
    assert (tmp_path / "reports/first/report.md").is_file()


def test_every_module_that_make_docs_writes_a_page_of_is_there():
    named = re.search(r"^API := \$\(addprefix (\S+),((?:.*\\\n)*.*)\)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    modules = [named[1] + name for name in named[2].replace("\\\n", " ").split()]
    assert len(modules) > 20
    assert not [module for module in modules if importlib.util.find_spec(module) is None]


def test_a_public_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'robench' has no attribute 'evaluat'"):
        _ = robench.evaluat


def test_the_page_on_adding_an_attack_runs_as_it_stands(tmp_path, monkeypatch):
    section = (ROOT / "docs" / "adding.md").read_text().partition("## An attack")[2].partition("\n## ")[0]
    code, notebook = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    check, attack = re.findall(r"^    (robench .+)$", section, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_attack.py").write_text(code)
    model, images, labels, _ = linear_case(0.1, "Linf", n=10)
    checked = CliRunner().invoke(main, shlex.split(check)[1:])
    assert checked.exit_code == 0 and "48 of 48 claims hold" in checked.output, checked.output
    understood(shlex.split(attack)[1:])
    found = {"model": model, "images": images, "labels": labels}
    exec(notebook.replace("robench.evaluate(", "told = robench.evaluate(").replace("suite=", "eps=0.1, suite="), found)
    assert list(found["told"].summary["attack"]) == ["clean", "signs", "pgd20", "signs(draws=50)", "union"]


def section_of_adding(title):
    return (ROOT / "docs" / "adding.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.slow
def test_the_section_on_an_attack_of_another_library_runs_as_it_stands(tmp_path, monkeypatch):
    section = section_of_adding("An attack of another library")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mifgsm.py").write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1])
    (check,) = re.findall(r"^    (robench .+)$", section, re.MULTILINE)
    done = CliRunner().invoke(main, shlex.split(check)[1:])
    assert done.exit_code == 0 and "16 of 16 claims hold" in done.output, done.output
    model, images, labels, _ = linear_case(0.1, "Linf", n=10)
    told = robench.evaluate(model, images, labels, suite=attack_of_file("mifgsm.py:mifgsm"), eps=0.1, out="run")
    assert list(told.summary["attack"]) == ["clean", "mifgsm", "union"]
    assert f"torchattacks {version('torchattacks')}" in Path("run/report.md").read_text()


@pytest.mark.slow
def test_the_section_on_a_data_set_runs_as_it_stands(tmp_path, monkeypatch):
    section = section_of_adding("A data set")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DATASETS, "tints", None)  # taken away at the end
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], {"__name__": "tints"})
    assert len(robench.load_dataset("tints", "train").classes) == 3
    lines = re.findall(r"^    python tints.py (.+)$", section, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["train", "attack"]
    for line in lines:
        done = CliRunner().invoke(main, shlex.split(line))
        assert done.exit_code == 0, done.output
    clean, attacked = (
        pandas.read_csv("reports/tints-single-0-Linf-0.1/summary.csv").set_index("attack").loc[["clean", "pgd5"], "robust_accuracy"]
    )
    assert clean > 0.9 > attacked
    assert "tints" in CliRunner().invoke(main, ["list", "datasets"]).output


def test_values_that_the_page_on_adding_names_exist():
    text = (ROOT / "docs" / "adding.md").read_text()
    named = set(re.findall(r"`([A-Z][a-z]\w+)\.([A-Za-z_]+)", text))
    assert ("Attack", "of") in named and ("ReturnPolicy", "ANY") in named
    assert not [f"{owner}.{name}" for owner, name in named if not hasattr(getattr(types, owner, None), name)]


def test_links_of_the_documentation_lead_somewhere():
    missing = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not target.startswith("http") and not (page.parent / target).exists():
                missing.append(f"{page.relative_to(ROOT)}: {target}")
    assert not missing


def test_every_check_of_the_audit_is_explained():
    text = (ROOT / "docs" / "audit.md").read_text()
    assert not [name for name in CHECKS if name not in text]
    assert f"reads {len(CHECKS)} checks" in text
