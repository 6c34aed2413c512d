"""House rules that a reader notices first: short files and functions, names that say something, nothing unfinished."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "prefine"
FILES = {str(file.relative_to(HOUSE.parent)): file for file in sorted(HOUSE.rglob("*.py"))}

# The aims are 400 and 60; these limits leave room for a table or a docstring.
MOST_LINES_IN_A_FILE = 410
MOST_LINES_IN_A_FUNCTION = 80
MOST_LINES_IN_A_CLASS = 200
MOST_METHODS_IN_A_CLASS = 15
MOST_CONSTRUCTOR_ARGUMENTS = 10
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "misc", "helpers", "helper", "shared", "core", "base", "stuff"}
UNFINISHED_WORDS = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def unfinished_words(file: Path) -> Iterator[int]:
    """Line numbers of notes to come back later."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if UNFINISHED_WORDS.search(line):
            yield number


def unfinished(tree: ast.Module) -> Iterator[int]:
    """Line numbers of `assert False` and of `raise NotImplementedError`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant) and not node.test.value:
            yield node.lineno
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node):
            yield node.lineno


def test_files_are_short() -> None:
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in FILES.items()}
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES_IN_A_FILE}


def test_functions_are_short() -> None:
    long = {
        f"{name}: {node.name}": lines
        for name in FILES
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MOST_LINES_IN_A_FUNCTION
    }
    assert not long


def test_nothing_is_left_unfinished() -> None:
    found = {name: [*unfinished_words(file), *unfinished(tree_of(name))] for name, file in FILES.items()}
    assert not {name: lines for name, lines in found.items() if lines}


def test_names_say_something() -> None:
    parts = {Path(part).stem for file in FILES for part in Path(file).parts}
    assert not parts & NAMES_THAT_SAY_NOTHING


def test_every_module_says_what_it_is() -> None:
    assert not [name for name in FILES if tree_of(name).body and not ast.get_docstring(tree_of(name))]


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for name in FILES:
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.ClassDef):
                yield name, node


def test_classes_are_short() -> None:
    long = {}
    for file, node in classes():
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        methods = sum(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body)
        if lines > MOST_LINES_IN_A_CLASS or methods > MOST_METHODS_IN_A_CLASS:
            long[f"{file}: {node.name}"] = f"{lines} lines, {methods} methods"
    assert not long


def test_constructors_take_few_arguments() -> None:
    many = {}
    for file, node in classes():
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                count = len(part.args.args) + len(part.args.kwonlyargs) - 1
                if count > MOST_CONSTRUCTOR_ARGUMENTS:
                    many[f"{file}: {node.name}"] = count
    assert not many


def test_class_names_are_unique() -> None:
    places: dict[str, list[str]] = {}
    for file, node in classes():
        if not node.name.startswith("_"):
            places.setdefault(node.name, []).append(file)
    assert not {name: files for name, files in places.items() if len(files) > 1}


STAGES_ARE_KNOWN_TO = "prefine/report/stages/registry.py"


def is_stage(node: ast.expr | None) -> bool:
    """Whether an expression is called a stage: `stage`, `facts.stage`, `manifest.get("stage")`, `row["stage"]`."""
    if isinstance(node, ast.Call):
        named = ast.unparse(node.func) in ("str", "text") or isinstance(node.func, ast.Attribute)
        return named and any(map(is_stage, node.args))
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    key = node.slice if isinstance(node, ast.Subscript) else node
    return name == "stage" or (isinstance(key, ast.Constant) and key.value == "stage")


def asks_for_a_stage(tree: ast.AST) -> Iterator[int]:
    """Line numbers of what depends on a stage's name: a comparison with text, a match, a table's entry."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            text = any(
                isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value != "stage"
                for side in sides
                for part in ast.walk(side)
            )
            if any(map(is_stage, sides)) and text:
                yield node.lineno
        if isinstance(node, ast.Match) and is_stage(node.subject):
            yield node.lineno
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict) and is_stage(node.slice):
            yield node.lineno


@pytest.mark.parametrize(
    "code",
    [
        'stage == "dpo"',
        'facts.stage != "ppo" or x',
        'self.stage in ("sft", "ppo")',
        'manifest.get("stage") == "reward"',
        'manifest["stage"] == "reward"',
        'text(manifest.get("stage")) == "reward"',
        'match stage:\n    case "sft": pass',
        '{"sft": 1}[facts.stage]',
    ],
)
def test_a_question_for_the_stage_is_found(code: str) -> None:
    assert list(asks_for_a_stage(ast.parse(code)))


def test_only_registries_know_the_stages() -> None:
    """What differs between stages belongs to their classes, recipes and reports."""
    found = {name: list(asks_for_a_stage(tree_of(name))) for name in FILES if name != STAGES_ARE_KNOWN_TO}
    assert not {name: lines for name, lines in found.items() if lines}
