"""Bodies of requests: numbers that JSON does not have are refused, and a large body does not hold up other clients."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

# A body of this size is read in about a millisecond.
_SMALL_BYTES = 64 * 1024


class JsonRequest(Request):
    """A request whose body is strict JSON."""

    async def json(self) -> Any:
        """The body's value.

        Raises:
            JSONDecodeError: it is not JSON, or has a number that is not finite.
        """
        if not hasattr(self, "_strict"):
            body = await self.body()
            large = len(body) > _SMALL_BYTES
            self._strict = await asyncio.to_thread(strict_json, body) if large else strict_json(body)
        return self._strict


class JsonRoute(APIRoute):
    """A route whose body is a JsonRequest's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        handle = super().get_route_handler()

        async def with_strict_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return with_strict_json


def strict_json(body: bytes) -> Any:
    """The value of a JSON text.

    Python also reads NaN and Infinity, and 1e999 as infinite; none of them could be sent back.

    Raises:
        JSONDecodeError: it is not JSON, or has a number that is not finite.
    """

    def refused(number: str) -> Any:
        short = number[:40]
        raise json.JSONDecodeError(f"it has the number {short}, which JSON cannot represent", "", 0)

    def finite(number: str) -> float:
        value = float(number)
        return value if math.isfinite(value) else refused(number)

    return json.loads(body, parse_constant=refused, parse_float=finite)
