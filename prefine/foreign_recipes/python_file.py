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
from prefine.foreign_recipes.data_keys import CHOOSING_ON_HUB, LOAD_DATASET, UNKNOWN
from prefine.foreign_recipes.literals import Literals, called, shown
from prefine.foreign_recipes.script_changes import ScriptChange, ScriptChanges
from prefine.foreign_recipes.script_names import ScriptNames
from prefine.foreign_recipes.settings import Setting

MOST_BYTES = 1024 * 1024
# Calls that load a model by its name, the first argument.
_LOADING = "from_pretrained"
_NAMES = ("pretrained_model_name_or_path", "model_name")  # its first argument; the second name is unsloth's
QUANTISATION = "BitsAndBytesConfig"
# What a script does to its rows between loading and training.
_ROW_CHANGES = frozenset(("map", "filter", "select", "shuffle", "train_test_split", "rename_column", "rename_columns"))
# What is loaded besides models.
_OTHER_PARTS = re.compile("Tokenizer|Processor|Config")
_TOKENIZER = re.compile("Tokenizer|Processor")
_TOKENIZER_CHANGES = (
    "setup_chat_format",
    "clone_chat_template",
    "get_chat_template",
    "add_special_tokens",
    "add_tokens",
)
_NAMELESS = "it is an argument without a name: write it as name=value"
_NAMES_UNKNOWN = "its names are known only when the script runs"
_MOST_STEPS = 50
_MOST_CHANGES_SHOWN = 3
_CHANGED = "the script changes its rows, which prefine does not: write the changed rows to a file, and name that"
_NOT_LITERAL = "it is not a literal"
_NOT_KNOWN = "prefine does not know what it means to the data set"
# Arguments of load_dataset that choose the rows.
_CHOOSING = ("name", "split", *CHOOSING_ON_HUB)
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


@dataclass(frozen=True)
class ScriptModel:
    """A model that a script loads.

    Attributes:
        name: a literal; None if it is not known.
        options: further arguments of its `from_pretrained`, by name.
        unread: other arguments, as (source text, reason).
    """

    name: str | None
    options: dict[str, Setting] = field(default_factory=dict)
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
            call.unread.append((shown(argument), _NAMELESS))
        for keyword in node.keywords:
            if keyword.arg is None:
                call.unread.append((f"**{shown(keyword.value)}", _NAMES_UNKNOWN))
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
        if isinstance(node, ast.Call) and called(node) == _LOADING:
            named = [each.value for each in node.keywords if each.arg in _NAMES]
            node = next(iter([*node.args, *named]), None)
        if node is None:
            return None
        try:
            value = self._literals.value(node)
        except ValueError:
            return None
        return value if isinstance(value, str) else None

    def loaded_model(self, node: ast.expr) -> ScriptModel:
        """The name that a model is loaded by, and the other arguments of its `from_pretrained`."""
        followed = self._names.followed(node)
        name = self.loaded_name(followed)
        if not isinstance(followed, ast.Call) or called(followed) != _LOADING:
            return ScriptModel(name)
        given = {each.arg: each.value for each in followed.keywords if each.arg is not None}
        options = {
            option: self.setting(option, value)
            for option, value in given.items()
            if self.made_by(value) != QUANTISATION and option not in _NAMES
        }
        unread = [(f"from_pretrained({shown(argument)})", _NAMELESS) for argument in followed.args[1:]]
        for each in followed.keywords:
            if each.arg is None:
                unread.append((f"from_pretrained(**{shown(each.value)})", _NAMES_UNKNOWN))
        return ScriptModel(name, options, unread)

    def made_by(self, node: ast.expr) -> str:
        """The last part of what an expression calls; empty if it is not a call."""
        followed = self._names.followed(node)
        return called(followed) if isinstance(followed, ast.Call) else ""

    def loaded_models(self) -> list[ScriptModel]:
        """The models that the script loads, in order; tokenizers and processors are none."""
        loading = [node for node in self._calls(_LOADING) if not _OTHER_PARTS.search(_loader(node))]
        return [self.loaded_model(node) for node in loading]

    def subclasses(self, name: str) -> list[str]:
        """Names of the script's own classes that are derived from a class."""
        classes = [node for node in ast.walk(self._tree) if isinstance(node, ast.ClassDef)]
        return [node.name for node in classes if name in (shown(base).rpartition(".")[2] for base in node.bases)]

    def tokenizer_changes(self) -> list[str]:
        """What the script changes in tokenizers, as source text."""
        loading = [node for node in self._calls(_LOADING) if _TOKENIZER.search(_loader(node))]
        found = [change.text for node in loading for change in self._changes.of(node)]
        return found + [f"{called(node)}(…), line {node.lineno}" for node in self._calls(*_TOKENIZER_CHANGES)]

    def loaded_datasets(self) -> list[tuple[dict[str, Any], list[tuple[str, str]]]]:
        """What the script's calls of load_dataset read, in order; see `dataset`."""
        read = [self.dataset(node) for node in self._calls("load_dataset")]
        return [(found, changes) for found, changes in read if found is not None]

    def dataset(self, node: ast.expr) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
        """What `load_dataset` is called with for this expression.

        Returns:
            the literal arguments by name, and under `UNKNOWN` the others that may choose among the rows; None if the
            expression is not a data set that is loaded by a literal name; and what prefine does not do with the rows,
            as (source text, reason).
        """
        found: dict[str, Any] = {}
        unknown: list[str] = []
        changes: list[tuple[str, str]] = []
        for _ in range(_MOST_STEPS):
            node = self._names.followed(node)
            if isinstance(node, ast.Subscript):
                part = self.setting("split", node.slice)
                if isinstance(part.value, str):
                    found.setdefault("split", part.value)
                else:
                    unknown.append(f"[{shown(node.slice)}]")
                    changes.append((f"{unknown[-1]}, line {node.lineno}", _NOT_LITERAL))
                node = node.value
            elif not isinstance(node, ast.Call):
                break
            elif called(node) == "load_dataset":
                self._add_arguments(node, found, unknown, changes)
                found |= {UNKNOWN: unknown} if unknown else {}
                return (found if "path" in found else None), changes
            elif isinstance(node.func, ast.Attribute) and called(node) in _ROW_CHANGES:
                changes.append((f".{called(node)}(…), line {node.lineno}", _CHANGED))
                if called(node) == "train_test_split" and found.pop("split", "train") != "train":
                    unknown.append(".train_test_split(…)")  # its other part is no split of the data set
                node = node.func.value
            else:
                break
        return None, changes

    def _add_arguments(
        self, node: ast.Call, found: dict[str, Any], unknown: list[str], changes: list[tuple[str, str]]
    ) -> None:
        """Add the arguments of a call of load_dataset: to `found` if they are literal."""
        arguments: list[tuple[str | None, ast.expr]] = [*zip(LOAD_DATASET, node.args, strict=False)]
        arguments += [(keyword.arg, keyword.value) for keyword in node.keywords]
        for name, value in arguments:
            setting = self.setting(name or "**", value)
            if name == "token":  # not shown: it is a secret
                changes.append(("load_dataset(token=…)", "the hub's token is that of the environment, HF_TOKEN"))
                continue
            if name in LOAD_DATASET and setting.expression is None:
                if setting.value is not None:
                    found[name] = setting.value
                continue
            text = f"**{shown(value)}" if name is None else f"{name}={shown(value)}"
            changes.append((f"load_dataset({text})", _NOT_LITERAL if name in LOAD_DATASET else _NOT_KNOWN))
            if name in _CHOOSING or name not in LOAD_DATASET:
                unknown.append(text)


def _loader(node: ast.Call) -> str:
    """The class whose from_pretrained is called; its source text if it has no name."""
    match node.func:
        case ast.Attribute(value=ast.Attribute(attr=name) | ast.Name(id=name)):
            return name
    return shown(node.func)


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
