"""The sizes that style.md asks for, over all source: what is larger must be split, not excused."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("schemas", "graphs", "broker", "workers", "scaler", "deploy", "benchmarks", "examples", "tests")
FILE_LINES_MAX = 400
LARGER = {"tests/contract/test_log.py": 560}
"""Files that were larger when this was written: they may only shrink, and new ones are not added."""
FUNCTION_LINES_MAX = 60
PARAMETERS_MAX = 6
CONSTRUCTOR_PARAMETERS_MAX = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files() -> list[Path]:
    return [ROOT / "headrace.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def named(path: Path, function: Function) -> str:
    return f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"


def lines(function: Function) -> int:
    """From the `def` to the last line; decorators are not counted, the docstring is."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> int:
    """All but self and cls."""
    stated = function.args
    every = [*stated.posonlyargs, *stated.args, *stated.kwonlyargs]
    return len([argument for argument in every if argument.arg not in ("self", "cls")])


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    assert len(files()) > 100
    counts = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files()}
    assert {name: count for name, count in counts.items() if count > LARGER.get(name, FILE_LINES_MAX)} == {}


def test_no_function_is_longer_than_a_page() -> None:
    long = {named(path, function): lines(function) for path in files() for function in functions(path) if lines(function) > FUNCTION_LINES_MAX}
    assert long == {}


def test_no_function_takes_more_than_it_can_explain() -> None:
    wide = {
        named(path, function): parameters(function)
        for path in files()
        if "tests" not in path.relative_to(ROOT).parts[:1]
        for function in functions(path)
        if parameters(function) > (CONSTRUCTOR_PARAMETERS_MAX if function.name == "__init__" else PARAMETERS_MAX)
    }
    assert wide == {}


def test_every_module_says_what_it_is() -> None:
    silent = [str(path.relative_to(ROOT)) for path in files() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_the_measures_measure() -> None:
    tree = ast.parse("class A:\n    @property\n    def f(self, a, /, b, *c, d=1, **e):\n        x = 1\n\n        return x\n")
    (function,) = [node for node in ast.walk(tree) if isinstance(node, Function)]
    assert (lines(function), parameters(function)) == (4, 3)
