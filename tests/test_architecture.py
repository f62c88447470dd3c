"""Who may import whom, and whether the map in docs/architecture.md shows what is there."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import robench

ROOT = Path(robench.__file__).parent
MAP = Path(__file__).parents[1] / "docs" / "architecture.md"
ATTACK_LIBRARIES = {"torchattacks", "pyautoattack", "autoattack", "robustbench"}
CALL = re.compile(r"^(?P<indent> *)(?P<name>[\w.]+)\(\) (?P<path>robench/[\w/]+\.py): (?P<what>.+)$", re.MULTILINE)


def rows(text):
    """(module, purpose, layer or "") of every row of the map's table."""
    lines = [line for line in text.splitlines() if line.startswith("| `robench/")]
    cells = [[cell.strip() for cell in line.strip().removesuffix("|").removeprefix("|").split("|")] for line in lines]
    return [(module.strip("`"), purpose, layer) for module, purpose, layer in cells]


def place(path):
    return path.parts[0].removesuffix(".py")


ROWS = rows(MAP.read_text(encoding="utf-8"))
# A module may import from its own layer and from those with smaller numbers.
FLOOR = {place(Path(module).relative_to("robench")): int(layer) for module, _, layer in ROWS if layer}


def imports():
    """(file, imported module) for every import statement of the package, wherever in the file it stands."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path.relative_to(ROOT), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path.relative_to(ROOT), node.module


def modules():
    """Every file of the package as the map writes it: a package below the top is a folder, and stands for its __init__.py."""
    for path in sorted(ROOT.rglob("*.py")):
        below = path.relative_to(ROOT.parent).as_posix()
        yield below if path.parent == ROOT else below.removesuffix("__init__.py")


def difference(listed, there):
    """What a map has wrong about modules, a line each; empty where it shows every one of them once."""
    return [
        *(f"{module} has no row in docs/architecture.md" for module in sorted(set(there) - set(listed))),
        *(f"{module} has a row in docs/architecture.md and is not there" for module in sorted(set(listed) - set(there))),
        *(f"{module} has {count} rows in docs/architecture.md" for module, count in Counter(listed).items() if count > 1),
    ]


def test_every_module_has_one_row_in_the_map():
    assert not difference([module for module, _, _ in ROWS], list(modules()))


def test_a_module_that_is_new_moved_or_listed_twice_is_noticed():
    assert difference(["a.py", "b.py", "b.py", "gone.py"], ["a.py", "b.py", "new.py"]) == [
        "new.py has no row in docs/architecture.md",
        "gone.py has a row in docs/architecture.md and is not there",
        "b.py has 2 rows in docs/architecture.md",
    ]


def test_layers_are_given_once_to_what_lies_at_the_top_and_read_downwards():
    top = {module for module in modules() if module.strip("/").count("/") == 1}
    assert {module for module, _, layer in ROWS if layer} == top
    layers = [int(layer) for _, _, layer in ROWS if layer]
    assert layers == sorted(layers, reverse=True)
    assert set(layers) == set(range(1, max(layers) + 1))


def test_the_modules_of_a_package_stand_below_its_row():
    package = ""
    for module, _, layer in ROWS:
        package = module if layer else package
        assert layer or module.startswith(package), f"{module} stands below {package}"


def test_every_row_says_what_the_module_is_for():
    assert not [module for module, purpose, _ in ROWS if len(purpose.split()) < 3]


def test_imports_go_down():
    upward = [
        f"{path} imports {module}"
        for path, module in imports()
        if module.startswith("robench.") and FLOOR[module.split(".")[1]] > FLOOR[place(path)]
    ]
    assert not upward


def calls(text):
    """(function, its file, what it says, caller or None, the caller's file) of every line of the map's call trees."""
    for tree in re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        above = []  # (indentation, function, file), from the root of the tree down
        for line in CALL.finditer(tree):
            depth, call = len(line["indent"]), (line["name"], line["path"])
            above = [each for each in above if each[0] < depth]
            yield *call, line["what"], *(above[-1][1:] if above else (None, None))
            above.append((depth, *call))


def named_in(node):
    """Every name that a function or class uses: variables, attributes and imports."""
    parts = list(ast.walk(node))
    return (
        {part.id for part in parts if isinstance(part, ast.Name)}
        | {part.attr for part in parts if isinstance(part, ast.Attribute)}
        | {part.name for part in parts if isinstance(part, ast.alias)}
    )


@cache
def functions(path):
    """Functions, classes and methods that a file defines: name, or Class.name, to the names that each uses."""
    found = {}
    for node in ast.parse((ROOT.parent / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = named_in(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}": named_in(part) for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


CALLS = list(calls(MAP.read_text(encoding="utf-8")))


def test_the_call_trees_are_found():
    assert [name for name, _, _, caller, _ in CALLS if caller is None] == ["attack", "audit", "reproduce"]
    assert len(CALLS) > 50
    text = MAP.read_text(encoding="utf-8")
    trees = "".join(re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert trees.count("()") == len(CALLS), "a line of a call tree is not read: NAME() robench/FILE.py: what it does"


@pytest.mark.parametrize(("name", "path", "what", "caller", "its_path"), CALLS, ids=[f"{call[0]} in {call[1]}" for call in CALLS])
def test_every_line_of_a_call_tree_is_a_function_that_the_line_above_it_calls(name, path, what, caller, its_path):
    assert (ROOT.parent / path).is_file(), f"{path} is not there"
    is_defined = name in functions(path)
    assert is_defined, f"{path} defines no {name}"
    if caller is None or re.search(r"\bthrough\b", what):
        return
    if caller not in functions(its_path):
        pytest.skip(f"{its_path} defines no {caller}, as the line above it says")
    is_named = name.rpartition(".")[2] in functions(its_path)[caller]
    assert is_named, f"{caller} of {its_path} does not name {name}"


def test_only_adapters_import_attack_libraries():
    assert not [path for path, module in imports() if module.split(".")[0] in ATTACK_LIBRARIES and place(path) != "adapters"]


def test_reports_need_no_torch():
    assert not [path for path, module in imports() if module.split(".")[0] == "torch" and place(path) == "report"]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_and_types_have_docstrings(path):
    tree = ast.parse(path.read_text())
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    assert not [node.name for node in public if not ast.get_docstring(node)]
