"""What passes from function to function has names: no tuple of unlike things comes back, and no call is a long row of values."""

import ast
from pathlib import Path

import pytest

import robench

ROOT = Path(robench.__file__).parent
MOST = 6  # values that a reader can tell apart by their places

TUPLES = {
    "report/metadata.py attack_settings": "rows of a table, all text, as its header names them",
}
CALLS = {
    "attacks/descent.py": "its text is part of the key of stored results",
    "attacks/nearest.py": "its text is part of the key of stored results",
}


def trees():
    """(path below the package, its tree) of every module."""
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def unlike(returns):
    """The elements of the tuples in an annotation that hold three or more things of more than one type, a text a tuple.

    ``tuple[int, int, int]`` and ``tuple[str, ...]`` hold one kind of thing, and what a ``Callable`` takes or a dictionary is keyed by is not
    returned by this function.
    """
    for node in ast.walk(returns):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("tuple", "Tuple") and isinstance(node.slice, ast.Tuple):
            elements = [ast.unparse(each) for each in node.slice.elts]
            if len(elements) >= 3 and len(set(elements)) > 1:
                yield ", ".join(elements)


def bare_tuples(module, tree):
    """Functions that return such a tuple, and names that stand for one, as "module name: its elements"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            yield from (f"{module} {node.name}: {each}" for each in unlike(node.returns))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield from (f"{module} {node.targets[0].id}: {each}" for each in unlike(node.value))


def wide_calls(module, tree):
    """Calls with more than ``MOST`` arguments by position, as "module:line name"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) > MOST:
            yield f"{module}:{node.lineno} {ast.unparse(node.func)}"


def test_no_function_returns_a_bare_tuple_of_three_unlike_things():
    found = [each for module, tree in trees() for each in bare_tuples(module, tree) if each.partition(":")[0] not in TUPLES]
    assert not found, "return a NamedTuple, or say in TUPLES why not"


def test_no_call_passes_more_than_six_arguments_by_position():
    found = [each for module, tree in trees() if module not in CALLS for each in wide_calls(module, tree)]
    assert not found, "pass them by keyword"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f() -> tuple[int, str, Path]: ...", ["m f: int, str, Path"]),
        ("def f() -> list[tuple[int, str, Path]] | None: ...", ["m f: int, str, Path"]),
        ("class C:\n    async def f(self) -> tuple[int, int, str]: ...", ["m f: int, int, str"]),
        ("Made = tuple[str, int, bytes]", ["m Made: str, int, bytes"]),
        ("def f() -> tuple[int, str]: ...", []),
        ("def f() -> tuple[int, int, int]: ...", []),
        ("def f() -> tuple[str, ...]: ...", []),
        ("def f() -> Named: ...", []),
    ],
)
def test_such_a_tuple_is_noticed_wherever_it_is_annotated(code, found):
    assert list(bare_tuples("m", ast.parse(code))) == found


def test_a_wide_call_is_noticed_and_one_by_keyword_is_not():
    tree = ast.parse("f(1, 2, 3, 4, 5, 6, 7)\nf(1, 2, 3, 4, 5, 6)\nf(1, b=2, c=3, d=4, e=5, f=6, g=7)")
    assert list(wide_calls("m", tree)) == ["m:1 f"]
