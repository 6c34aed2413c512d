"""Reads the configuration in a training script of TRL. The script is parsed (`ast`), never executed.

Only literals are taken: numbers, text, lists, `torch.bfloat16`, and names that are bound once, to a literal.
Everything else is kept as its source text, so that it is listed and not lost.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefine.errors import RecipeError
from prefine.foreign_recipes.literals import Literals, called, shown
from prefine.foreign_recipes.script_changes import ScriptChange, ScriptChanges
from prefine.foreign_recipes.script_names import ScriptNames
from prefine.foreign_recipes.settings import Setting

MOST_BYTES = 1024 * 1024
# Calls that load a model by its name, the first argument.
_LOADING = "from_pretrained"
QUANTISATION = "BitsAndBytesConfig"
# What a script does to its rows between loading and training.
_ROW_CHANGES = frozenset(("map", "filter", "select", "shuffle", "train_test_split", "rename_column", "rename_columns"))
# What is loaded besides models.
_OTHER_PARTS = re.compile("Tokenizer|Processor|Config")
_MOST_STEPS = 50
_MOST_CHANGES_SHOWN = 3
_CHANGED = "the script changes its rows, which prefine does not: write the changed rows to a file, and name that"
_LATER = "the script changes it later, and the file is not run: write what holds into the recipe"


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
        self._names = ScriptNames(self._tree)
        self._literals = Literals(self._names)
        self._changes = ScriptChanges(self._tree, self._names)

    def calls(self, *names: str) -> list[ScriptCall]:
        """The calls of functions and classes with these names, in order."""
        return [self._call(node) for node in self._calls(*names)]

    def _calls(self, *names: str) -> list[ast.Call]:
        found = [node for node in ast.walk(self._tree) if isinstance(node, ast.Call) and called(node) in names]
        return sorted(found, key=lambda node: (node.lineno, node.col_offset))

    def _call(self, node: ast.Call) -> ScriptCall:
        call = ScriptCall(called(node), node.lineno)
        call.positional.extend(node.args)
        for argument in node.args:
            call.unread.append((shown(argument), "it is an argument without a name: write it as name=value"))
        for keyword in node.keywords:
            if keyword.arg is None:
                call.unread.append((f"**{shown(keyword.value)}", "its names are known only when the script runs"))
            else:
                call.settings[keyword.arg] = self.setting(keyword.arg, keyword.value)
                call.expressions[keyword.arg] = keyword.value
        self._change(call, self._changes.of(node))
        return call

    def _change(self, call: ScriptCall, changes: list[ScriptChange]) -> None:
        """Let attributes that are assigned after the call count: the only value of each, if it is a literal."""
        by_name: dict[str | None, list[ScriptChange]] = {}
        for change in changes:
            by_name.setdefault(change.name, []).append(change)
        for name, made in by_name.items():
            said = "; ".join(change.text for change in made[:_MOST_CHANGES_SHOWN])
            if name is None or call.name.endswith("Trainer"):
                call.unread.append((said, _LATER))
            elif len(made) > 1 or made[0].value is None:
                call.settings[name] = Setting(name, expression=said)
            else:
                call.settings[name] = self.setting(name, made[0].value)

    def setting(self, name: str, node: ast.expr) -> Setting:
        """A value as a setting; what is not a literal keeps its source text."""
        try:
            return Setting(name, self._literals.value(node))
        except ValueError:
            return Setting(name, expression=shown(node))

    def loaded_name(self, node: ast.expr | None) -> str | None:
        """The name that a model is loaded by: `"org/name"`, or `AutoModel….from_pretrained("org/name")`."""
        node = None if node is None else self._names.followed(node)
        if isinstance(node, ast.Call) and called(node) == _LOADING and node.args:
            node = node.args[0]
        if node is None:
            return None
        try:
            value = self._literals.value(node)
        except ValueError:
            return None
        return value if isinstance(value, str) else None

    def loaded_model(self, node: ast.expr) -> tuple[str | None, dict[str, Setting]]:
        """The name that a model is loaded by, and the other arguments of its `from_pretrained`."""
        followed = self._names.followed(node)
        if isinstance(followed, ast.Call) and called(followed) == _LOADING:
            given = [(each.arg, each.value) for each in followed.keywords if each.arg is not None]
            return self.loaded_name(followed), {
                name: self.setting(name, value) for name, value in given if not self._is_call(value, QUANTISATION)
            }
        return self.loaded_name(followed), {}

    def _is_call(self, node: ast.expr, name: str) -> bool:
        followed = self._names.followed(node)
        return isinstance(followed, ast.Call) and called(followed) == name

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
            node = self._names.followed(node)
            if isinstance(node, ast.Subscript):
                if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
                    key = key or node.slice.value
                node = node.value
            elif not isinstance(node, ast.Call):
                break
            elif called(node) == "load_dataset":
                return self._source(node, key, changes), changes
            elif isinstance(node.func, ast.Attribute) and called(node) in _ROW_CHANGES:
                changes.append((f".{called(node)}(…), line {node.lineno}", _CHANGED))
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
