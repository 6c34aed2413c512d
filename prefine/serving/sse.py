"""Server-sent events: a response that comes piece by piece, and ends when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from prefine.web.errors import json_text

T = TypeVar("T")

DONE = "data: [DONE]\n\n"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}  # proxies are not to collect pieces


def frame(value: Any, event: str | None = None) -> str:
    """One event."""
    return framed(json_text(value), event)


def framed(text: str, event: str | None = None) -> str:
    """One event, of JSON text."""
    return f"{'' if event is None else f'event: {event}' + chr(10)}data: {text}\n\n"


class ClientGoneError(Exception):
    """The client has closed its connection."""


class EventStream(Response):
    """Sends frames as they come.

    Args:
        frames: texts; an error that they raise must be a frame of theirs.
        cancel: called at the end, whatever ended it.
    """

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[str], cancel: Callable[[], None]) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._frames = frames
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await while_connected(self._send_all(send), receive)
        except (ClientGoneError, OSError):
            return
        finally:
            self._cancel()

    async def _send_all(self, send: Send) -> None:
        async for text in self._frames:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(work: Awaitable[T], receive: Receive) -> T:
    """The result of some work, unless the client leaves before it is done.

    Args:
        receive: the request's, whose body has been read.

    Raises:
        ClientGoneError: it has left; the work is cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
