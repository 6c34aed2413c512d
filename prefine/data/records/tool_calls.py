"""Tool definitions and tool calls in rows: as OpenAI's API has them, or as JSON text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefine.data.reading.rows import RowError, kind_of
from prefine.json_reading import JsonError, parse_json

_FUNCTION = "function"


def tools_of(value: Mapping[str, Any], at: str = "") -> tuple[dict[str, Any], ...]:
    """The tool definitions in `tools` or `functions`: a list, or its JSON text.

    Args:
        value: a row, or an object in it.
        at: the place of that object, with a dot after it.

    Raises:
        RowError: invalid; a definition without a name; both columns, with different content.
    """
    found = {name: tools for name in ("tools", "functions") if (tools := _definitions(value.get(name), at + name))}
    if len(found) > 1 and found["tools"] != found["functions"]:
        raise RowError(f"{at}functions", "differ from tools")
    return next(iter(found.values()), ())


def _definitions(value: Any, field: str) -> tuple[dict[str, Any], ...]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    listed = _json_in(value, field, "tool definitions")
    for index, tool in enumerate(listed):
        if not isinstance(tool, dict):
            raise RowError(f"{field}[{index}]", f"is {kind_of(tool)}, not a tool definition")
        function = tool.get(_FUNCTION, tool)
        if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
            raise RowError(f"{field}[{index}]", "has no name of a function")
    return tuple(tool if _FUNCTION in tool else {"type": _FUNCTION, _FUNCTION: tool} for tool in listed)


def tool_calls(turn: dict[str, Any], field: str) -> tuple[dict[str, Any], ...]:
    """The calls in a turn's `tool_calls`, or in OpenAI's earlier `function_call`.

    Raises:
        RowError: not a list of calls, nor its JSON text.
    """
    calls, earlier = turn.get("tool_calls"), turn.get("function_call")
    if calls and earlier:
        raise RowError(field, "has tool_calls and function_call")
    if earlier:
        return calls_in_text(earlier, f"{field}.function_call")
    if not calls:
        return ()
    return _calls(_json_in(calls, f"{field}.tool_calls", "calls"), f"{field}.tool_calls")


def calls_in_text(value: Any, field: str) -> tuple[dict[str, Any], ...]:
    """The calls of a turn without other content: JSON text of one call or several, or a call.

    Raises:
        RowError: anything else.
    """
    if isinstance(value, str):
        value = _parsed(value, field, "a tool call")
    return _calls(value if isinstance(value, list) else [value], field)


def _calls(listed: Sequence[Any], field: str) -> tuple[dict[str, Any], ...]:
    for index, call in enumerate(listed):
        function = call.get(_FUNCTION, call) if isinstance(call, dict) else None
        if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
            raise RowError(f"{field}[{index}]", "is not a call of a function by its name")
    return tuple(call if _FUNCTION in call else {"type": _FUNCTION, _FUNCTION: call} for call in listed)


def _json_in(value: Any, field: str, what: str) -> list[Any]:
    if isinstance(value, str):
        value = _parsed(value, field, f"a list of {what}")
    if not isinstance(value, list):
        raise RowError(field, f"is {kind_of(value)}, not a list of {what}")
    return value


def _parsed(text: str, field: str, what: str) -> Any:
    try:
        return parse_json(text)
    except JsonError:
        raise RowError(field, f"is text that is not the JSON of {what}") from None
