"""Which files the columns of robench's own attacks are keyed by, held against all that these attacks import."""

import ast
import hashlib
import json
from pathlib import Path

import pytest
from cases import LINF

import robench
from robench.attacks import AttackOptions, parse_columns, registry
from robench.attacks.registry import ATTACKS, keyed_modules
from robench.evaluation.run_folder import attack_folder
from robench.identity import REWRITE_VERSION
from robench.types import AUTOATTACK_UNITS, PassOptions

ROOT = Path(robench.__file__).parent
# As they were when the first columns were keyed; the order is that of the texts in the digest.
KEYED = {
    "averaged": ["averaged", "descent"],
    "descent": ["descent", "straight_through"],
    "nearest": ["nearest", "descent"],
    "noise": ["noise", "descent"],
}
INTERFACE = (
    "it is how every attack asks any model, those of libraries too: a change of what it answers is a change of the model's answers"
)
RECORDS = "names, digests and descriptions: nothing is computed with it while an attack searches"
REWRITE = "its version enters the key where it is not the first, and its text is pinned below"
# What an attack of ours imports and is not keyed by, with the reason.
NOT_KEYED = {
    "robench.models.classifier": INTERFACE,
    "robench.models.batches": INTERFACE,
    "robench.models.failures": INTERFACE,
    "robench.models.output": INTERFACE,
    "robench.models.seeded": INTERFACE,
    "robench.types": "what attacks take of it is three names, and the one that is a number is pinned below",
    "robench.norms": "the threat model takes its distances from it, which tests/test_norms.py pins; what attacks take is the norm's name",
    "robench.authoring": RECORDS,
    "robench.code_digest": RECORDS,
    "robench.digest": RECORDS,
    "robench.identity": RECORDS,
}
WITH_PASSES = {
    "robench.models.rewrite": REWRITE,
    "robench.models.backbones": "of models that have its layers, part of their digest",
}
UNUSED = {"robench.attacks.straight_through": "they import functions of descent that do not name it, as is tested below"}
TEXT_OF_REWRITE = {1: "dd6070e16d121c5d"}


def tree(module):
    path = ROOT.parent / Path(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))


def statements(node):
    """Every statement below a node that is run: what stands below ``if TYPE_CHECKING`` is not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from statements(child)


def imported(module):
    """Modules of robench that a module imports, wherever in it, to the names that it takes of each."""
    found = {}
    for each in statements(tree(module)):
        if isinstance(each, ast.ImportFrom) and (each.module or "").startswith("robench."):
            found.setdefault(each.module, set()).update(alias.name for alias in each.names)
    return found


def closure(*modules):
    """Modules with all that they import of robench, and so on."""
    found, left = set(), list(modules)
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += imported(module)
    return found


def own():
    """Modules of our attacks in this package, to whether their passes are rewritten unasked."""
    entries = {name: entry for name, entry in ATTACKS.items() if entry.described is not None}
    return {
        entry.function.partition(":")[0].rpartition(".")[2]: entry.described.pass_options.folded for entry in entries.values()
    }  # fmt: skip


def test_the_keyed_files_follow_from_the_imports_and_are_what_they_were():
    assert {module: keyed_modules(module) for module in own()} == KEYED


RENAMED = {"margin_loss": "margin"}  # names now, and in version 0.1
FIRST = Path(__file__).parent / "version-0.1" / "keyed"
OLD = {name: modules for name, modules in KEYED.items() if name != "averaged"}  # which is younger than version 0.1


def computed(text):
    """What a text computes, as a syntax tree: without docstrings and comments, in the names of version 0.1."""
    parsed = ast.parse(text)
    for node in ast.walk(parsed):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
        for field in ("id", "name"):
            if getattr(node, field, None) in RENAMED:
                setattr(node, field, RENAMED[getattr(node, field)])
    return ast.dump(parsed)


@pytest.mark.parametrize("module", sorted({each for modules in OLD.values() for each in modules}))
def test_a_text_in_other_words_computes_what_it_did_in_the_first_version(module):
    text, first = (
        (ROOT / "attacks" / f"{module}.py").read_text(encoding="utf-8"),
        (FIRST / f"{module}.txt").read_text(encoding="utf-8"),
    )
    assert computed(text) == computed(first)
    assert computed(text) != computed(text.replace("clamp(0, 1)", "clamp(0, 2)").replace("return", "yield"))


def test_texts_in_other_words_keep_the_key_of_the_first():
    now, first = (
        {name: digest([folder / f"{each}{end}" for each in modules]) for name, modules in OLD.items()}
        for folder, end in ((ROOT / "attacks", ".py"), (FIRST, ".txt"))
    )
    assert {now[name]: first[name] for name in OLD if now[name] != first[name]} == registry.IN_OTHER_WORDS
    assert all(registry._code_version(name).endswith(f"code {first[name]}") for name in OLD)


def digest(paths):
    return hashlib.sha256("".join(path.read_text(encoding="utf-8") for path in paths).encode()).hexdigest()[:8]


@pytest.mark.parametrize("module", KEYED)
def test_all_that_an_attack_of_ours_imports_is_keyed_or_excused(module):
    keyed = {f"robench.attacks.{each}" for each in keyed_modules(module)}
    excused = set(NOT_KEYED) | (set(WITH_PASSES) if own()[module] else set()) | (set() if module == "descent" else set(UNUSED))
    assert not keyed & excused
    passes = ["robench.models.rewrite"] if own()[module] else []
    assert closure(f"robench.attacks.{module}", *passes) == keyed | excused


@pytest.mark.parametrize("module", ["nearest", "noise"])
def test_the_functions_of_descent_that_others_take_do_not_name_straight_through(module):
    functions = {each.name: each for each in tree("robench.attacks.descent").body if isinstance(each, ast.FunctionDef)}
    taken, left = set(), sorted(imported(f"robench.attacks.{module}")["robench.attacks.descent"])
    while left:
        name = left.pop()
        taken.add(name)
        names = {each.id for each in ast.walk(functions[name]) if isinstance(each, ast.Name)}
        assert "StraightThrough" not in names
        left += sorted(names & functions.keys() - taken)
    assert taken


def test_of_the_types_attacks_of_ours_compute_with_one_number():
    names = {name for module in ("descent", "straight_through", "nearest", "noise") for name in taken_of_types(module)}
    assert names == {"ThreatModel", "RobenchError", "AUTOATTACK_UNITS"}
    assert AUTOATTACK_UNITS == 11_672  # by which the search's budget is counted


def taken_of_types(module):
    return imported(f"robench.attacks.{module}").get("robench.types", set())


def test_the_text_of_the_rewriting_is_that_of_its_version():
    text = (ROOT / "models" / "rewrite.py").read_text(encoding="utf-8")
    assert {REWRITE_VERSION: hashlib.sha256(text.encode()).hexdigest()[:16]} == TEXT_OF_REWRITE, (
        "models/rewrite.py was changed. It computes the passes of fast, and of whatever runs with --passes or --precision, and its text is in "
        "no key. If a search may find other images now, raise REWRITE_VERSION in robench/identity.py, so that finished columns with such "
        "passes are computed again; in any case write the new digest here"
    )


def test_another_version_of_the_rewriting_computes_columns_with_such_passes_again_and_no_others(monkeypatch):
    def folders():
        asked = [("fast", PassOptions()), ("nearest", PassOptions()), ("pgd20", PassOptions(folded=True)), ("pgd20", PassOptions())]
        columns = [parse_columns(name, LINF, 10, AttackOptions(pass_options=passes))[0] for name, passes in asked]
        return [attack_folder(column, column.stages[0]) for column in columns], columns

    before, _ = folders()
    monkeypatch.setattr(registry, "REWRITE_VERSION", REWRITE_VERSION + 1)
    after, columns = folders()
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, True, True, False]
    recorded = json.loads(json.dumps(dict(columns[2].stages[0].params)))
    assert (recorded["passes"], recorded["passes version"]) == ("folded", REWRITE_VERSION + 1)
