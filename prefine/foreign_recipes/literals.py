"""Values of a parsed script that are known without running it. What would take long or much room is not a value."""

from __future__ import annotations

import ast
from typing import Any

from prefine.foreign_recipes.script_names import ScriptNames

_DEEPEST = 50
# Steps for one value, and for all of a script: names that stand for sums of names could take for ever.
_MOST_STEPS = 10_000
_MOST_STEPS_IN_ALL = 1_000_000
_CHARACTERS_OF_A_STEP = 16
_LARGEST = 1e18
_LONGEST_SHOWN = 60


class Literals:
    """Reads literals: numbers, text, lists, mappings, sums and products, `torch.bfloat16`, and names of these.

    Args:
        names: of the script.
    """

    def __init__(self, names: ScriptNames) -> None:
        self._names = names
        self._left = 0
        self._left_in_all = _MOST_STEPS_IN_ALL

    def value(self, node: ast.expr) -> Any:
        """The value. Raises ValueError for anything that would have to be run, or is too large."""
        start = self._left = min(_MOST_STEPS, self._left_in_all)
        try:
            value = self._value(node, 0)
        finally:
            self._left_in_all -= start - max(self._left, 0)
        if self._left < 0:
            raise ValueError
        return value

    def _value(self, node: ast.expr, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:  # a name that is assigned to itself, or too much to read
            raise ValueError
        match node:
            case ast.Constant(value=str() as text):
                self._left -= len(text) // _CHARACTERS_OF_A_STEP
                return text
            case ast.Constant(value=int() | float() | bool() | None as value):
                return value if value is None else _bounded(value)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self._value(operand, depth + 1)
                if isinstance(value, int | float):
                    return -value
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as operation, right=right):
                return _computed(self._value(left, depth + 1), operation, self._value(right, depth + 1))
            case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
                return [self._value(part, depth + 1) for part in parts]
            case ast.Dict(keys=keys, values=values):
                if any(key is None for key in keys):  # {**other}
                    raise ValueError
                names = [self._value(key, depth + 1) for key in keys if key is not None]
                parts = [self._value(value, depth + 1) for value in values]
                return dict(zip(map(str, names), parts, strict=True))
            case ast.Attribute(value=ast.Name(id="torch"), attr=attribute):
                return attribute  # torch.bfloat16
            case ast.Name():
                meant = self._names.followed(node)
                if not isinstance(meant, ast.Name):
                    return self._value(meant, depth + 1)
        raise ValueError


def _computed(left: Any, operation: ast.operator, right: Any) -> float:
    """The value of `16 * 2`. Raises ValueError for anything but numbers."""
    if not all(isinstance(each, int | float) for each in (left, right)):
        raise ValueError
    match operation:
        case ast.Add():
            return _bounded(left + right)
        case ast.Sub():
            return _bounded(left - right)
        case ast.Mult():
            return _bounded(left * right)
    if right == 0:
        raise ValueError
    return _bounded(left / right)


def _bounded(value: float) -> float:
    if not abs(value) <= _LARGEST:  # also infinity, and what is not a number
        raise ValueError
    return value


def shown(node: ast.AST) -> str:
    """The source text of a part of the script, in one line of at most 60 characters."""
    try:
        text = " ".join(ast.unparse(node).split())
    except (ValueError, RecursionError):  # a number of thousands of digits, an expression nested deeply
        text = f"what is in line {getattr(node, 'lineno', 0)}"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def called(node: ast.Call) -> str:
    """The last part of the name of what is called."""
    match node.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""
