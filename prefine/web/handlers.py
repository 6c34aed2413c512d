"""Turns whatever goes wrong in a route into the error that clients read."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from prefine.errors import PrefineError
from prefine.web.errors import ApiError

_LONGEST_QUOTE = 80
_KINDS = {404: "not_found_error", 405: "invalid_request_error"}


def install_handlers(app: FastAPI) -> None:
    """Let every error be an ApiError's response. The Guard answers for those that nobody foresaw."""
    for kind, convert in (
        (ApiError, lambda error: error),
        (RequestValidationError, invalid_request),
        (HTTPException, _of_http),
        (PrefineError, refused_request),
    ):
        app.add_exception_handler(kind, _handler(convert))


def _handler(convert: Any) -> Any:
    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 404:
            error.detail = (
                f"there is no {request.method} {request.url.path[:200]}; GET /openapi.json lists what there is"
            )
        found: ApiError = convert(error)
        return found.response()

    return handle


def invalid_request(error: RequestValidationError) -> ApiError:
    """400 with the first field that is not valid: OpenAI's clients read nothing else as "your request is wrong"."""
    first = error.errors()[0]
    # A part may be a key of the client's.
    place = [str(part)[:_LONGEST_QUOTE] for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    rule = first["msg"].removeprefix("Value error, ")
    field = ".".join(place)
    begin = f"{field}: " if field else ""
    if first["type"] == "missing":
        return ApiError(400, f"{begin}is missing", param=field or None, code="missing_required_parameter")
    return ApiError(
        400, f"{begin}{rule} (it is {_quoted(first.get('input'))})", param=field or None, code="invalid_value"
    )


def _quoted(value: Any) -> str:
    """The beginning of a value. No more of it is written than is shown, as the value may be a whole body."""
    quoted = ""
    short = value[: _LONGEST_QUOTE + 1] if isinstance(value, str) else value
    for piece in json.JSONEncoder(default=repr).iterencode(short):
        quoted += piece
        if len(quoted) > _LONGEST_QUOTE:
            return quoted[:_LONGEST_QUOTE] + "…"
    return quoted


def refused_request(error: PrefineError) -> ApiError:
    """400 with the problem and its remedy."""
    return ApiError(400, error.lines[0], param=error.field)


def _of_http(error: HTTPException) -> ApiError:
    kind = _KINDS.get(error.status_code, "invalid_request_error" if error.status_code < 500 else "server_error")
    return ApiError(error.status_code, str(error.detail), kind=kind, headers=error.headers)
