"""Reads the configuration in a training script of TRL. The script is parsed (`ast`), never executed.

Only literals are taken: numbers, text, lists, `torch.bfloat16`, and names that the script assigns once to a literal.
Everything else is kept as its source text, so that it is listed and not lost.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefine.errors import RecipeError
from prefine.foreign_recipes.settings import Setting

MOST_BYTES = 1024 * 1024
_LONGEST_SHOWN = 60
# Calls that load a model by its name, the first argument.
_LOADING = "from_pretrained"
QUANTISATION = "BitsAndBytesConfig"
# What a script does to its rows between loading and training.
_ROW_CHANGES = frozenset(("map", "filter", "select", "shuffle", "train_test_split", "rename_column", "rename_columns"))
# What is loaded besides models.
_OTHER_PARTS = re.compile("Tokenizer|Processor|Config")
_MOST_STEPS = 50
_CHANGED = "the script changes its rows, which prefine does not: write the changed rows to a file, and name that"


@dataclass(frozen=True)
class ScriptCall:
    """A call of the script, such as `DPOConfig(beta=0.1)`.

    Attributes:
        name: the last part of what is called.
        settings: its keyword arguments, by name.
        expressions: the same, as parsed.
        positional: its arguments without a name, as parsed.
        unread: other arguments, as (source text, reason).
    """

    name: str
    line: int
    settings: dict[str, Setting] = field(default_factory=dict)
    expressions: dict[str, ast.expr] = field(default_factory=dict)
    positional: list[ast.expr] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)


class Script:
    """A parsed script.

    Args:
        path: a Python file.

    Raises:
        RecipeError: it cannot be read, or is not Python.
    """

    def __init__(self, path: Path) -> None:
        self._tree = _parsed(path)
        assigned = [
            (target.id, node.value)
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        ]
        times = Counter(name for name, _ in assigned)
        # A name with two values: which of them holds where is not known without running the script.
        self._names = {name: value for name, value in assigned if times[name] == 1}

    def calls(self, *names: str) -> list[ScriptCall]:
        """The calls of functions and classes with these names, in order."""
        return [self._call(node) for node in self._calls(*names)]

    def _calls(self, *names: str) -> list[ast.Call]:
        found = [node for node in ast.walk(self._tree) if isinstance(node, ast.Call) and _called(node) in names]
        return sorted(found, key=lambda node: (node.lineno, node.col_offset))

    def _call(self, node: ast.Call) -> ScriptCall:
        call = ScriptCall(_called(node), node.lineno)
        call.positional.extend(node.args)
        for argument in node.args:
            call.unread.append((_shown(argument), "it is an argument without a name: write it as name=value"))
        for keyword in node.keywords:
            if keyword.arg is None:
                call.unread.append((f"**{_shown(keyword.value)}", "its names are known only when the script runs"))
            else:
                call.settings[keyword.arg] = self.setting(keyword.arg, keyword.value)
                call.expressions[keyword.arg] = keyword.value
        return call

    def setting(self, name: str, node: ast.expr) -> Setting:
        """A value as a setting; what is not a literal keeps its source text."""
        try:
            return Setting(name, self._literal(node))
        except ValueError:
            return Setting(name, expression=_shown(node))

    def _literal(self, node: ast.expr, depth: int = 0) -> Any:
        """The value of a literal. Raises ValueError for anything that would have to be run."""
        if depth > _MOST_STEPS:  # a name that is assigned to itself
            raise ValueError
        match node:
            case ast.Constant(value=str() | int() | float() | bool() | None as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self._literal(operand, depth + 1)
                if isinstance(value, int | float):
                    return -value
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as operation, right=right):
                return _computed(self._literal(left, depth + 1), operation, self._literal(right, depth + 1))
            case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
                return [self._literal(part, depth + 1) for part in parts]
            case ast.Dict(keys=keys, values=values):
                if any(key is None for key in keys):  # {**other}
                    raise ValueError
                names = [self._literal(key, depth + 1) for key in keys if key is not None]
                parts = [self._literal(value, depth + 1) for value in values]
                return dict(zip(map(str, names), parts, strict=True))
            case ast.Attribute(value=ast.Name(id="torch"), attr=attribute):
                return attribute  # torch.bfloat16
            case ast.Name(id=name) if name in self._names:
                return self._literal(self._names[name], depth + 1)
        raise ValueError

    def _followed(self, node: ast.expr, depth: int = 0) -> ast.expr:
        if isinstance(node, ast.Name) and node.id in self._names and depth < _MOST_STEPS:
            return self._followed(self._names[node.id], depth + 1)
        return node

    def loaded_name(self, node: ast.expr | None) -> str | None:
        """The name that a model is loaded by: `"org/name"`, or `AutoModel….from_pretrained("org/name")`."""
        node = None if node is None else self._followed(node)
        if isinstance(node, ast.Call) and _called(node) == _LOADING and node.args:
            node = node.args[0]
        if node is None:
            return None
        try:
            value = self._literal(node)
        except ValueError:
            return None
        return value if isinstance(value, str) else None

    def loaded_model(self, node: ast.expr) -> tuple[str | None, dict[str, Setting]]:
        """The name that a model is loaded by, and the other arguments of its `from_pretrained`."""
        followed = self._followed(node)
        if isinstance(followed, ast.Call) and _called(followed) == _LOADING:
            given = [(each.arg, each.value) for each in followed.keywords if each.arg is not None]
            return self.loaded_name(followed), {
                name: self.setting(name, value) for name, value in given if not self._is_call(value, QUANTISATION)
            }
        return self.loaded_name(followed), {}

    def _is_call(self, node: ast.expr, name: str) -> bool:
        followed = self._followed(node)
        return isinstance(followed, ast.Call) and _called(followed) == name

    def loaded_models(self) -> list[str]:
        """Names of the models that the script loads, in order; tokenizers and processors are none."""
        loading = [node for node in self._calls(_LOADING) if not _OTHER_PARTS.search(ast.unparse(node.func))]
        names = [self.loaded_name(node) for node in loading]
        return list(dict.fromkeys(name for name in names if name is not None))

    def loaded_datasets(self) -> list[dict[str, Any]]:
        """What the script's calls of load_dataset read; see `dataset`."""
        return [found for node in self._calls("load_dataset") if (found := self.dataset(node)[0])]

    def dataset(self, node: ast.expr) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
        """What `load_dataset` is called with for this expression.

        Returns:
            the literal arguments by name (path, name, split, data_files), None if the expression is not a data set that
            is loaded; and the changes of rows that the script makes afterwards, as (source text, reason).
        """
        key: str | None = None
        changes: list[tuple[str, str]] = []
        for _ in range(_MOST_STEPS):
            node = self._followed(node)
            if isinstance(node, ast.Subscript):
                if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
                    key = key or node.slice.value
                node = node.value
            elif not isinstance(node, ast.Call):
                break
            elif _called(node) == "load_dataset":
                return self._source(node, key, changes), changes
            elif isinstance(node.func, ast.Attribute) and _called(node) in _ROW_CHANGES:
                changes.append((f".{_called(node)}(…), line {node.lineno}", _CHANGED))
                node = node.func.value
            else:
                break
        return None, changes

    def _source(self, node: ast.Call, key: str | None, changes: list[tuple[str, str]]) -> dict[str, Any] | None:
        arguments: list[tuple[str | None, ast.expr]] = [*zip(("path", "name"), node.args, strict=False)]
        arguments += [(keyword.arg, keyword.value) for keyword in node.keywords]
        found: dict[str, Any] = {} if key is None else {"split": key}
        for name, value in arguments:
            setting = self.setting(str(name), value)
            if setting.expression is not None:
                changes.append((f"load_dataset({name}={setting.expression})", "it is not a literal"))
            elif name in ("path", "name", "split", "data_files"):
                found[name] = setting.value
            else:
                changes.append((f"load_dataset({name}={setting.value})", "prefine reads a data set without it"))
        return found if "path" in found else None


def _parsed(path: Path) -> ast.Module:
    try:
        content = path.read_bytes() if path.stat().st_size <= MOST_BYTES else None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", "Check the path.") from None
    if content is None:
        raise RecipeError(f"{path} is larger than {MOST_BYTES // 1024} KiB", "Name the script with the configuration.")
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise RecipeError(f"{path}{where} is not Python that can be parsed", "Correct the file.") from None


def _computed(left: Any, operation: ast.operator, right: Any) -> float:
    """The value of `16 * 2`. Raises ValueError for anything but numbers."""
    if not all(isinstance(each, int | float) for each in (left, right)):
        raise ValueError
    match operation:
        case ast.Add():
            return left + right  # type: ignore[no-any-return]
        case ast.Sub():
            return left - right  # type: ignore[no-any-return]
        case ast.Mult():
            return left * right  # type: ignore[no-any-return]
    if right == 0:
        raise ValueError
    return left / right  # type: ignore[no-any-return]


def _called(node: ast.Call) -> str:
    match node.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
