"""As much of Go's text/template as Ollama templates of prefine use: if, else if, else, range, variables, eq, fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_ACTION = re.compile(r"(\{\{.*?\}\})", re.DOTALL)


def render(template: str, root: dict[str, Any]) -> str:
    """Execute a template.

    Args:
        root: what `$` is: System and Messages, each message with Role and Content.
    """
    nodes, left = _parse(iter(_ACTION.split(template)))
    assert left is None
    return _execute(nodes, root, root, {})


def _parse(parts: Iterator[str]) -> tuple[list[Any], str | None]:
    """Nodes up to an {{ end }} or {{ else … }}, and that action's text; None at the end of the template."""
    nodes: list[Any] = []
    for part in parts:
        if not part.startswith("{{"):
            nodes.append(part)
            continue
        action = part[2:-2].strip()
        assert not part.startswith("{{-") and not part.endswith("-}}"), "this stand-in trims nothing"
        if action == "end" or action.startswith("else"):
            return nodes, action
        if action.startswith("range "):
            body, end = _parse(parts)
            assert end == "end"
            nodes.append(("range", action.removeprefix("range "), body))
        elif action.startswith("if "):
            nodes.append(_branches(action.removeprefix("if "), parts))
        else:
            nodes.append(("do", action))
    return nodes, None


def _branches(condition: str, parts: Iterator[str]) -> tuple[str, str, list[Any], list[Any]]:
    body, end = _parse(parts)
    if end == "end":
        return "if", condition, body, []
    assert end is not None
    if end == "else":
        other, last = _parse(parts)
        assert last == "end"
        return "if", condition, body, other
    return "if", condition, body, [_branches(end.removeprefix("else if "), parts)]


def _execute(nodes: list[Any], dot: Any, root: Any, variables: dict[str, Any]) -> str:
    text = ""
    for node in nodes:
        if isinstance(node, str):
            text += node
        elif node[0] == "range":
            text += "".join(_execute(node[2], each, root, variables) for each in _value(node[1], dot, root, variables))
        elif node[0] == "if":
            chosen = node[2] if _value(node[1], dot, root, variables) else node[3]
            text += _execute(chosen, dot, root, variables)
        elif found := re.fullmatch(r"(\$\w+) :?= (.+)", node[1]):
            variables[found[1]] = _value(found[2], dot, root, variables)
        else:
            text += str(_value(node[1], dot, root, variables))
    return text


def _value(expression: str, dot: Any, root: Any, variables: dict[str, Any]) -> Any:
    if found := re.fullmatch(r'eq (\S+) "(.*)"', expression):
        return _value(found[1], dot, root, variables) == found[2]
    if expression in ("true", "false"):
        return expression == "true"
    if expression.startswith("$."):
        return root[expression[2:]]
    return variables[expression] if expression.startswith("$") else dot[expression[1:]]
