"""How routes send what was generated: whole, or as a stream, which a client may leave at any time."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import Request
from starlette.responses import Response

from prefine.serving.answering import Answers
from prefine.serving.fair_queue import Client
from prefine.serving.parts import json_text_in_parts
from prefine.serving.sse import ClientGoneError, EventStream, frame, while_connected
from prefine.web.errors import JSON_TYPE, ApiError, internal_error, place_of

log = logging.getLogger("prefine")


async def reply(
    request: Request,
    answers: Answers,
    whole: Callable[[], Awaitable[dict[str, Any]]],
    frames: Callable[[], AsyncIterator[str]] | None,
    error_frame: Callable[[ApiError], str] = lambda error: frame(error.body),
) -> Response:
    """The response with what was generated.

    Args:
        answers: what is given up when the client leaves.
        whole: makes the response's JSON.
        frames: makes a stream's frames; None where no stream was asked for.
        error_frame: how a stream says that generation failed; it ends there.

    Raises:
        ApiError: generation failed, and no stream was asked for.
    """
    if frames is not None:
        return EventStream(_with_error(frames(), error_frame), answers.cancel)
    try:
        return Response(await while_connected(_written(whole()), request.receive), media_type=JSON_TYPE)
    except ClientGoneError:
        return Response(status_code=499)
    finally:
        answers.cancel()


async def _written(whole: Awaitable[dict[str, Any]]) -> str:
    return await json_text_in_parts(await whole)


async def _with_error(frames: AsyncIterator[str], error_frame: Callable[[ApiError], str]) -> AsyncIterator[str]:
    try:
        async for text in frames:
            yield text
    except ApiError as error:
        yield error_frame(error)
    except Exception as error:  # noqa: BLE001 - the status is sent already: the stream itself must say that it failed
        log.error("a stream failed: %s", place_of(error))
        yield error_frame(internal_error())


def client_of(request: Request, user: str | None) -> Client:
    """Who takes turns with others: an address and, where the request names one, its user."""
    return Client(request.client.host if request.client is not None else "", user)
