"""The code keeps to its own rules: short functions, files that can be read at one sitting."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.support.generated import ROOT

LONGEST_FUNCTION, USUAL_FUNCTION, LONGEST_FILE = 50, 30, 400
"""Lines; nine functions of ten keep to the second."""

SOURCES = sorted([*(ROOT / "operator").rglob("*.py"), *(ROOT / "bench").rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of each function of a file, decorators and inner functions counted with it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node.end_lineno - first + 1


def sizes() -> dict[str, int]:
    return {name: lines for path in SOURCES for name, lines in functions(path)}


def test_no_function_is_long() -> None:
    assert sizes()
    assert {name: lines for name, lines in sizes().items() if lines > LONGEST_FUNCTION} == {}


def test_nine_functions_of_ten_are_short() -> None:
    ordered = sorted(sizes().values())
    middle, tenth = (ordered[len(ordered) * share // 10] for share in (5, 9))
    print(f"\n{len(ordered)} functions: median {middle} lines, nine of ten up to {tenth}, longest {ordered[-1]}")
    assert ordered[len(ordered) * 9 // 10] <= USUAL_FUNCTION


def test_no_file_is_long() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in SOURCES + TESTS}
    folders = Counter[str]()
    for name, count in lines.items():
        folders["/".join(name.split("/")[:-1])] += count
    print("\n" + "\n".join(f"{count:6} {folder}" for folder, count in sorted(folders.items())))
    assert lines
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}
