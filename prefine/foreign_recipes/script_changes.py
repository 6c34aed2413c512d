"""What a script changes in an object after it made it: `config.beta = 0.3`, setattr, dataclasses.replace."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from prefine.foreign_recipes.literals import called, shown
from prefine.foreign_recipes.script_names import ScriptNames

# Calls whose result is a copy of their first argument.
_COPIES = ("replace", "copy", "deepcopy")
_MOST_STEPS = 50
_BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.Module)


@dataclass(frozen=True)
class ScriptChange:
    """A change of one attribute.

    Attributes:
        name: the attribute; None if it is known only when the script runs.
        value: its new value; None if the change is not surely made, or not a plain assignment.
        text: its source text and line.
    """

    name: str | None
    value: ast.expr | None
    text: str


class ScriptChanges:
    """The changes of all objects that are made by calls such as `DPOConfig(…)`.

    Args:
        tree: the script.
        names: of the script.
    """

    def __init__(self, tree: ast.Module, names: ScriptNames) -> None:
        self._names = names
        nodes = list(ast.walk(tree))
        # Of each node, the node that it is a part of, and the name of that part.
        self._parents = {
            child: (node, name)
            for node in nodes
            for name, part in ast.iter_fields(node)
            for child in (part if isinstance(part, list) else [part])
            if isinstance(child, ast.AST)
        }
        self._named = names.made()
        for node in nodes:
            if isinstance(node, ast.Assign) and isinstance(made := names.followed(node.value), ast.Call):
                for target in node.targets:
                    if isinstance(target, ast.Attribute):  # self.args = DPOConfig(…)
                        self._named.setdefault(shown(target), []).append(made)
        self._trained = min(
            (node.lineno for node in nodes if isinstance(node, ast.Call) and self._is_training(node)), default=None
        )
        self._found: dict[ast.Call, list[ScriptChange]] = {}
        for node in nodes:
            for base, name, value in _changes(node):
                self._note(node, base, name, value)

    def of(self, call: ast.Call) -> list[ScriptChange]:
        """The changes of what this call makes, in order of the lines."""
        return self._found.get(call, [])

    def _note(self, node: ast.AST, base: ast.expr, name: str | None, value: ast.expr | None) -> None:
        statement = self._statement(node)
        text = f"{shown(node if hasattr(statement, 'body') else statement)}, line {statement.lineno}"
        made = self._made(base, node)
        if made is not None:
            sure = self._surely_made(statement, made)
            self._found.setdefault(made, []).append(ScriptChange(name, value if sure else None, text))
            return
        for call in self._possible(base):
            self._found.setdefault(call, []).append(ScriptChange(name, None, text))

    def _possible(self, base: ast.expr) -> list[ast.Call]:
        """The calls that may have made what is changed: one of several values, or a parameter of the same name."""
        found = self._named.get(shown(base), [])[:_MOST_STEPS]
        if isinstance(base, ast.Attribute):
            for owner in self._named.get(shown(base.value), [])[:_MOST_STEPS]:
                parts = [keyword.value for keyword in owner.keywords if keyword.arg == base.attr]
                found += [made for part in parts if (made := self._made(part, part)) is not None]
        return list(dict.fromkeys(found))

    def _made(self, base: ast.expr, change: ast.AST) -> ast.Call | None:
        """The call that makes what an expression stands for."""
        for _ in range(_MOST_STEPS):
            if isinstance(base, ast.Name):
                values = self._names.assigned(base)[:3]
                others = [value for value in values if value is not change]  # config = replace(config, beta=0.3)
                if len(others) != 1 or others[0] is None:
                    return None
                base = others[0]
            if isinstance(base, ast.Attribute):  # trainer.args
                owner = self._names.followed(base.value)
                given = owner.keywords if isinstance(owner, ast.Call) else []
                part = next((keyword.value for keyword in given if keyword.arg == base.attr), None)
                if part is None:
                    return None
                base = part
            elif isinstance(base, ast.Call) and called(base) in _COPIES and base.args:
                base = base.args[0]
            elif isinstance(base, ast.Call):
                return base
        return None

    def _statement(self, node: ast.AST) -> ast.stmt:
        while not isinstance(node, ast.stmt):
            node = self._parents[node][0]
        return node

    def _surely_made(self, statement: ast.stmt, call: ast.Call) -> bool:
        """Whether the change follows the call in its block, or one around it, and comes before training."""
        blocks = list(self._blocks(self._statement(call)))
        own = next(self._blocks(statement))
        after = statement.lineno > call.lineno
        return own in blocks and after and (self._trained is None or statement.lineno <= self._trained)

    def _blocks(self, statement: ast.AST) -> Iterator[tuple[ast.AST, str]]:
        """The blocks that hold a statement, from the inside, up to its function or the module."""
        while True:
            parent, name = self._parents[statement]
            yield parent, name
            if isinstance(parent, _BLOCKS):
                return
            statement = parent

    def _is_training(self, node: ast.Call) -> bool:
        """Whether this is `trainer.train()`."""
        match node:
            case ast.Call(func=ast.Attribute(value=trainer, attr="train")):
                made = self._names.followed(trainer)
                return isinstance(made, ast.Call) and called(made).endswith("Trainer")
        return False


def _changes(node: ast.AST) -> Iterator[tuple[ast.expr, str | None, ast.expr | None]]:
    """Each change that a node makes: of what, which attribute, and the new value where it is assigned plainly."""
    match node:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                if isinstance(target, ast.Attribute):
                    yield target.value, target.attr, value
                elif isinstance(target, ast.Tuple | ast.List):
                    yield from ((base, name, None) for base, name in _attributes(target))
        case ast.AnnAssign(target=ast.Attribute(value=base, attr=name), value=ast.expr() as value):
            yield base, name, value
        case ast.AugAssign(target=ast.Attribute(value=base, attr=name)):
            yield base, name, None
        case ast.Delete() | ast.For() | ast.AsyncFor() | ast.With() | ast.AsyncWith():
            yield from ((base, name, None) for part in _targets(node) for base, name in _attributes(part))
        case ast.Call(func=ast.Name(id="setattr"), args=[base, ast.Constant(value=str() as name), value]):
            yield base, name, value
        case ast.Call(func=ast.Name(id="setattr"), args=[base, *_]):
            yield base, None, None
        case ast.Call(args=[base, *_], keywords=keywords) if called(node) == "replace":
            yield from ((base, keyword.arg, keyword.value if keyword.arg else None) for keyword in keywords)


def _targets(node: ast.Delete | ast.For | ast.AsyncFor | ast.With | ast.AsyncWith) -> list[ast.expr]:
    if isinstance(node, ast.Delete):
        return node.targets
    if isinstance(node, ast.For | ast.AsyncFor):
        return [node.target]
    return [item.optional_vars for item in node.items if item.optional_vars is not None]


def _attributes(target: ast.expr) -> Iterator[tuple[ast.expr, str]]:
    for node in ast.walk(target):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield node.value, node.attr
