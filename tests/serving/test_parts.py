"""Long work lets others have their turn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.generation.writer import Generated, NewToken
from prefine.serving.answering import Choice
from prefine.serving.parts import PART, in_parts, json_text_in_parts
from prefine.serving.text_stream import TextStream
from prefine.serving.token_texts import TextPlace, TokenTexts
from tests.training.tiny import make_tokenizer

T = TypeVar("T")
TOKENIZER = make_tokenizer()
MANY = 10 * PART


def turns_of_others(work: Awaitable[T]) -> tuple[T, int]:
    """The result of some work, and how often another task had its turn meanwhile."""

    async def both() -> tuple[T, int]:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        result = await work
        task.cancel()
        return result, turns

    return asyncio.run(both())


def test_parts_are_the_whole() -> None:
    async def collected(count: int) -> list[int]:
        return [each async for some in in_parts(range(count)) for each in some]

    for count in (0, 1, PART, PART + 1):
        assert asyncio.run(collected(count)) == list(range(count))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
@settings(max_examples=50, deadline=None)
def test_json_in_parts_is_the_same_json(value: Any) -> None:
    assert asyncio.run(json_text_in_parts(value)) == json.dumps(value, separators=(",", ":"))


def test_no_number_is_infinite() -> None:
    with pytest.raises(ValueError, match="JSON"):
        asyncio.run(json_text_in_parts({"a": [float("inf")]}))


def test_a_large_response_is_written_in_parts() -> None:
    _, turns = turns_of_others(json_text_in_parts({"choices": [{"logprobs": {"content": [{"token": "a"}] * MANY}}]}))
    assert turns >= MANY // PART


def test_the_text_of_a_whole_answer_is_made_in_parts() -> None:
    letter = TOKENIZER("a", add_special_tokens=False)["input_ids"][0]
    choice = Choice(0, [1], (), TextStream(TOKENIZER, ()))
    generated = Generated((letter,) * MANY, (-1.0,) * MANY, "", "length", ended=False)
    piece, turns = turns_of_others(choice.end(generated))
    assert (piece.text, choice.finish_reason) == ("a" * MANY, "length")
    assert turns >= MANY // PART


def test_log_probabilities_are_made_in_parts() -> None:
    texts = TokenTexts(TOKENIZER)
    tokens = texts.said_tokens([NewToken(5, -1.0, ((6, -2.0),))] * MANY, ())
    found, turns = turns_of_others(texts.text_logprobs(tokens, TextPlace()))
    assert len(found["tokens"]) == MANY
    assert turns >= MANY // PART
