"""House rules that a reader notices first: short files and functions, names that say something, nothing unfinished."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "prefine"
FILES = {str(file.relative_to(HOUSE.parent)): file for file in sorted(HOUSE.rglob("*.py"))}

# The aims are 400 and 60; these limits leave room for a table or a docstring.
MOST_LINES_IN_A_FILE = 410
MOST_LINES_IN_A_FUNCTION = 80
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "misc", "helpers", "helper", "shared", "core", "base", "stuff"}
UNFINISHED_WORDS = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")


def unfinished(tree: ast.Module) -> Iterator[int]:
    """Line numbers of `assert False` and of `raise NotImplementedError`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant) and not node.test.value:
            yield node.lineno
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node):
            yield node.lineno


@pytest.mark.parametrize("file", FILES)
def test_files_are_short(file: str) -> None:
    assert len(FILES[file].read_text(encoding="utf-8").splitlines()) <= MOST_LINES_IN_A_FILE


@pytest.mark.parametrize("file", FILES)
def test_functions_are_short(file: str) -> None:
    long = {
        node.name: lines
        for node in ast.walk(ast.parse(FILES[file].read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MOST_LINES_IN_A_FUNCTION
    }
    assert not long


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_left_unfinished(file: str) -> None:
    text = FILES[file].read_text(encoding="utf-8")
    words = [number for number, line in enumerate(text.splitlines(), start=1) if UNFINISHED_WORDS.search(line)]
    assert not [*words, *unfinished(ast.parse(text))]


def test_names_say_something() -> None:
    parts = {Path(part).stem for file in FILES for part in Path(file).parts}
    assert not parts & NAMES_THAT_SAY_NOTHING


@pytest.mark.parametrize("file", FILES)
def test_every_module_says_what_it_is(file: str) -> None:
    text = FILES[file].read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text))
