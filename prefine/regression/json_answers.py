"""JSON in an answer: found, parsed, and compared with what was asked for."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Annotated, Any, Literal

import regex
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from prefine.json_reading import JsonError, parse_json
from prefine.regression.form import CheckRule
from prefine.regression.text import plain

_FENCE = regex.compile(r"```[ \t]*\w*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", regex.DOTALL)
_TYPES: dict[str, Any] = {
    "text": Annotated[str, Field(min_length=1)],
    "integer": int,
    "number": float,
    "boolean": bool,
    "null": None,
}
Form = str | list[Any] | dict[str, Any]
"""A form of JSON values: a name of _TYPES; [form] for a list of such values; or an object of forms."""


class JsonAnswer(CheckRule):
    """The answer has one JSON value, of a form; a code fence around it is allowed.

    Attributes:
        form: what the value must look like. Objects must have these fields and no others.
        values: parts that must have a value, by dotted path ("owner.name", "tags.0"); texts in any case.
        lengths: of lists, by dotted path; "" is the whole value.
        bare: nothing may stand around the value or its fence.
    """

    rule: Literal["json"] = "json"
    form: Form
    values: dict[str, Any] = Field(default_factory=dict)
    lengths: dict[str, int] = Field(default_factory=dict)
    bare: bool = False

    def holds(self, answer: str) -> bool:
        try:
            value = json_of(answer, bare=self.bare)
            self._adapter.validate_python(value, strict=True)
            same = all(_same(_at(value, path), wanted) for path, wanted in self.values.items())
            return same and all(len(_at(value, path)) == length for path, length in self.lengths.items())
        except (JsonError, ValidationError, LookupError, TypeError):
            return False

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(_type_of(self.form))


def json_of(answer: str, *, bare: bool = False) -> Any:
    """The JSON value in an answer: the whole text, the content of its code fence, or the first object or list.

    Raises:
        JsonError: there is none, or it is not valid; or `bare` and there is other text.
    """
    text = answer.strip()
    try:
        return _parsed(text)
    except JsonError:
        if not text:
            raise
    fence = _FENCE.search(text)
    if fence and (not bare or fence[0].strip() == text):
        return _parsed(fence[1])
    if bare:
        return _parsed(text)
    start = regex.search(r"[{\[]", text)
    if start is None:
        return _parsed(text)
    try:
        _, end = json.JSONDecoder().raw_decode(text, start.start())
    except (ValueError, RecursionError):
        raise JsonError("is not valid JSON") from None
    return _parsed(text[start.start() : end])


def _parsed(text: str) -> Any:
    """As `parse_json`; NaN and Infinity, which Python reads, are not JSON."""
    value = parse_json(text)
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise JsonError("has a number that is not finite") from None
    return value


def _type_of(form: Form) -> Any:
    """The type that pydantic validates, strictly: "5" is not a number, 1 is not a boolean."""
    if isinstance(form, str):
        return _TYPES[form]
    if isinstance(form, list):
        return list[_type_of(form[0])]  # type: ignore[misc]
    fields: dict[str, Any] = {
        f"field_{i}": (_type_of(each), Field(alias=name)) for i, (name, each) in enumerate(form.items())
    }
    made: type[BaseModel] = create_model("JsonObject", __config__=ConfigDict(strict=True, extra="forbid"), **fields)
    return made


def _at(value: Any, path: str) -> Any:
    """The part of a value at a dotted path."""
    for key in path.split(".") if path else []:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, str) and isinstance(wanted, str):
        return plain(found).rstrip(".") == plain(wanted)
    return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)
