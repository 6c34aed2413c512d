"""Names of a parsed script: which of them stand for one value, whatever part of the script runs."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_MOST_STEPS = 50
# Methods that change the list or mapping that they are called on.
_CHANGING = frozenset(
    ("append", "clear", "extend", "insert", "pop", "popitem", "remove", "reverse", "setdefault", "sort", "update")
)


@dataclass(eq=False)
class _Scope:
    """A part of the script with names of its own.

    Attributes:
        bound: the value of each binding of a name, by name; None where it is not an expression of the script, as for a
            parameter or a loop's target.
        outer: names that `global` and `nonlocal` declare.
    """

    node: ast.AST
    parent: _Scope | None = None
    bound: dict[str, list[ast.expr | None]] = field(default_factory=dict)
    outer: set[str] = field(default_factory=set)


class ScriptNames:
    """The bindings of every name, by scope.

    Args:
        tree: the script.
    """

    def __init__(self, tree: ast.Module) -> None:
        self._module = _Scope(tree)
        self._scopes: dict[ast.AST, _Scope] = {}
        self._changed: list[ast.Name] = []
        self._bindings: list[tuple[_Scope, str, ast.expr | None]] = []
        self._last_star = 0
        self._read(tree)
        for scope, name, value in self._bindings:
            for place in self._places(scope, name):
                place.bound.setdefault(name, []).append(value)
        for node in self._changed:
            self._all(node).append(None)
        for values in self._module.bound.values():  # `from x import *` may bind any name again
            if any(value is not None and value.lineno < self._last_star for value in values):
                values.append(None)

    def followed(self, node: ast.expr) -> ast.expr:
        """What a name stands for, through other names; the node itself if it is not a name that is bound once."""
        for _ in range(_MOST_STEPS):
            values = self._all(node) if isinstance(node, ast.Name) else []
            if len(values) != 1 or values[0] is None:
                break
            node = values[0]
        return node

    def assigned(self, node: ast.Name) -> list[ast.expr | None]:
        """The values of all bindings of a name, None for one that is not an expression of the script."""
        return self._all(node)

    def made(self) -> dict[str, list[ast.Call]]:
        """The calls that a name of any scope is bound to, by name."""
        found: dict[str, list[ast.Call]] = {}
        for _, name, value in self._bindings:
            if isinstance(value, ast.Call):
                found.setdefault(name, []).append(value)
        return found

    def _all(self, node: ast.Name) -> list[ast.expr | None]:
        own = scope = self._scopes.get(node)
        while scope is not None:
            hidden = isinstance(scope.node, ast.ClassDef) and scope is not own
            if node.id in scope.bound and not hidden:
                return scope.bound[node.id]
            scope = scope.parent
        return []

    def _places(self, scope: _Scope, name: str) -> list[_Scope]:
        """The scopes that a binding is in; several where `global` or `nonlocal` leave it open."""
        if name not in scope.outer:
            return [scope]
        found = []
        outer = scope.parent
        while outer is not None:
            found.append(outer)
            outer = outer.parent
        return found

    def _read(self, tree: ast.Module) -> None:
        values: dict[ast.AST, ast.expr] = {}
        unbound: set[ast.AST] = set()  # `x: int` without a value
        waiting: list[tuple[ast.AST, _Scope]] = [(tree, self._module)]
        while waiting:  # not recursive: expressions may be nested deeply
            node, scope = waiting.pop()
            match node:
                case ast.Assign(targets=targets, value=value):
                    values.update((target, value) for target in targets)
                case ast.AnnAssign(target=target, value=None):
                    unbound.add(target)
                case (
                    ast.AnnAssign(target=target, value=ast.expr() as value) | ast.NamedExpr(target=target, value=value)
                ):
                    values[target] = value
            self._bind(node, scope, values, unbound)
            inner = scope
            if isinstance(node, (*_FUNCTIONS, *_COMPREHENSIONS, ast.ClassDef)):
                inner = _Scope(node, scope)
            for name, child in ast.iter_fields(node):
                place = scope if name in ("decorator_list", "bases", "keywords", "returns") else inner
                for each in child if isinstance(child, list) else [child]:
                    if isinstance(each, ast.AST):
                        waiting.append((each, place))

    def _bind(self, node: ast.AST, scope: _Scope, values: dict[ast.AST, ast.expr], unbound: set[ast.AST]) -> None:
        """Note what a node binds, and which names' values it changes in place."""
        name: str | None = None
        match node:
            case ast.Name(id=found, ctx=context):
                self._scopes[node] = scope
                name = found if not isinstance(context, ast.Load) and node not in unbound else None
            case ast.NamedExpr(target=target):
                while isinstance(scope.node, _COMPREHENSIONS) and scope.parent is not None:
                    scope = scope.parent
                self._bindings.append((scope, target.id, values[target]))
                unbound.add(target)
            case ast.arg(arg=found):
                name = found
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.ExceptHandler():
                name = node.name
            case ast.MatchAs() | ast.MatchStar():
                name = node.name
            case ast.MatchMapping(rest=rest):
                name = rest
            case ast.alias(name="*"):
                self._last_star = max(self._last_star, node.lineno)
            case ast.alias(name=module, asname=alias):
                name = alias or module.partition(".")[0]
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                scope.outer.update(names)
            case ast.Subscript(value=base, ctx=ast.Store() | ast.Del()):
                self._change(base)
            case ast.Call(func=ast.Attribute(value=base, attr=method)) if method in _CHANGING:
                self._change(base)
        if name is not None:
            self._bindings.append((scope, name, values.get(node)))

    def _change(self, base: ast.expr) -> None:
        while isinstance(base, ast.Subscript):
            base = base.value
        if isinstance(base, ast.Name):
            self._changed.append(base)
