"""response_format: answers that are held to a form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefine.errors import PrefineError
from prefine.generation.json_constraint import JsonConstraint
from prefine.models.forward.packed import embedding_rows
from prefine.serving.models import ServedModel
from prefine.serving.prompter import Prompter
from prefine.web.errors import ApiError

_FIELD = "response_format"


def constraint_of(form: Mapping[str, Any], model: ServedModel) -> Callable[[Prompter], JsonConstraint] | None:
    """What makes the constraint of an answer in a form, on the prompter's thread; None for plain text.

    Args:
        form: OpenAI's response_format.

    Raises:
        ApiError: an unknown form, or a schema that is none; so does what is returned.
    """
    kind = form.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return lambda prompter: _constraint(model, prompter, None)
    if kind != "json_schema":
        found = repr(kind[:40]) if isinstance(kind, str) else "not a text"
        raise _refused(f"type: is {found}, and there are text, json_object and json_schema", "type")
    described = form.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict | bool):
        raise _refused("json_schema.schema: is missing, or is no JSON schema", "json_schema.schema")
    return lambda prompter: _constraint(model, prompter, schema)


def _constraint(model: ServedModel, prompter: Prompter, schema: Mapping[str, Any] | bool | None) -> JsonConstraint:
    rows, stops = embedding_rows(model.loaded.packed.causal), model.loaded.template.stop_ids
    try:
        return JsonConstraint(prompter.tokenizer, rows, stops, schema)
    except PrefineError as error:
        raise _refused(f"json_schema.schema: {error.problem}. {error.remedy}", "json_schema.schema") from None


def _refused(message: str, place: str) -> ApiError:
    return ApiError(400, f"{_FIELD}.{message}", param=f"{_FIELD}.{place}", code="invalid_value")
