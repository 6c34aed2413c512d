"""Errors of an HTTP API, in the shape that OpenAI's clients read."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

JSON_TYPE = "application/json"


class ApiError(Exception):
    """A request that is refused or fails; the client gets this status and `body`.

    Args:
        status: of HTTP.
        message: what is wrong, with the value found, the rule and the remedy.
        kind: OpenAI's `type`: invalid_request_error, authentication_error, permission_error, not_found_error,
            rate_limit_error, timeout_error, service_unavailable_error or server_error.
        param: the field of the request that it is about.
        code: a word for programs, as in context_length_exceeded.
        headers: of the response, as in Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What the client reads: `{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The response that says so."""
        return json_response(self.body, self.status, self.headers)


def internal_error() -> ApiError:
    """500: a fault of the server's."""
    return ApiError(500, "the server failed; its log says why", kind="server_error", code="internal_error")


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response. In ASCII, so that half a character quoted from a request cannot break it."""
    return Response(json_text(value), status, dict(headers or {}), JSON_TYPE)


def json_text(value: Any) -> str:
    """JSON on one line, without spaces.

    Raises:
        ValueError: a number is not finite: JSON has no such number.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def place_of(error: BaseException) -> str:
    """An error's type and where it was raised, for a log. Its text could quote what a client has sent."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__}\n{frames}".rstrip()
