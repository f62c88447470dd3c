"""Who may import whom."""

import ast
from pathlib import Path

import pytest

import robench

ROOT = Path(robench.__file__).parent
LAYERS = [  # a module may import from its own layer and from those below it
    {"digest", "code_digest"},
    {"types", "authoring"},
    {"files", "formats", "processes", "progress", "user_code"},
    {"checkpoint"},
    {"data", "adapters"},
    {"models"},
    {"training", "attacks"},
    {"evaluation"},
    {"report"},
    {"runs", "interchange"},
    {"request"},
    {"api"},
    {"notebook", "recheck"},
    {"reproduce", "audit", "doctor", "sweep"},
    {"cli", "__main__", "__init__"},
]
FLOOR = {name: level for level, names in enumerate(LAYERS) for name in names}
ATTACK_LIBRARIES = {"torchattacks", "pyautoattack", "autoattack", "robustbench"}


def imports():
    """(file, imported module) for every import statement of the package, wherever in the file it stands."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path.relative_to(ROOT), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path.relative_to(ROOT), node.module


def place(path):
    return path.parts[0].removesuffix(".py")


def test_every_module_has_a_layer():
    assert {place(path) for path, _ in imports()} <= set(FLOOR)


def test_imports_go_down():
    upward = [
        f"{path} imports {module}"
        for path, module in imports()
        if module.startswith("robench.") and FLOOR[module.split(".")[1]] > FLOOR[place(path)]
    ]
    assert not upward


def test_only_adapters_import_attack_libraries():
    assert not [path for path, module in imports() if module.split(".")[0] in ATTACK_LIBRARIES and place(path) != "adapters"]


def test_reports_need_no_torch():
    assert not [path for path, module in imports() if module.split(".")[0] == "torch" and place(path) == "report"]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_and_types_have_docstrings(path):
    tree = ast.parse(path.read_text())
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    assert not [node.name for node in public if not ast.get_docstring(node)]
