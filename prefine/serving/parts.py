"""Long work on the event loop, done in parts: whoever waits is served between two of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from prefine.web.errors import json_text

T = TypeVar("T")

# Tokens, or pieces of JSON: a part is one or two milliseconds of work.
PART = 64
# How deep responses are taken apart: choices, one of them, its log-probabilities, their list, one token.
_DEPTH = 5


async def in_parts(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """The items, in order, some at a time."""
    for start in range(0, len(items), PART):
        yield items[start : start + PART]
        await asyncio.sleep(0)


async def json_text_in_parts(value: Any) -> str:
    """As `json_text`.

    Raises:
        ValueError: a number is not finite.
    """
    pieces, written = _pieces(value, _DEPTH), []
    while some := list(islice(pieces, PART)):
        written += some
        if len(some) == PART:
            await asyncio.sleep(0)
    return "".join(written)


def _pieces(value: Any, depth: int) -> Iterator[str]:
    if depth and isinstance(value, dict) and value:
        for place, (name, each) in enumerate(value.items()):
            yield f"{',' if place else '{'}{json_text(name)}:"
            yield from _pieces(each, depth - 1)
        yield "}"
    elif depth and isinstance(value, list) and value:
        for place, each in enumerate(value):
            yield "," if place else "["
            yield from _pieces(each, depth - 1)
        yield "]"
    else:
        yield json_text(value)
