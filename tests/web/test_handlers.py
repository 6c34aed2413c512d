"""Errors as clients read them."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError

from prefine.web.handlers import invalid_request


class Counted(list[Any]):
    """Counts how many of its elements were looked at."""

    seen = 0

    def __iter__(self) -> Any:
        for each in super().__iter__():
            self.seen += 1
            yield each


def refusal(**fields: Any) -> Any:
    error = {"type": "value_error", "loc": ("body", "prompt"), "msg": "Value error, is wrong", **fields}
    return invalid_request(RequestValidationError([error]))


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("1", '"1"'),
        (None, "null"),
        ([1, {"a": True}], '[1, {"a": true}]'),
        ("x" * 1000, '"' + "x" * 79 + "…"),
        ([10] * 1000, ("[" + "10, " * 20)[:80] + "…"),
    ],
)
def test_a_refusal_quotes_the_beginning_of_the_value(value: Any, quoted: str) -> None:
    assert refusal(input=value).message == f"prompt: is wrong (it is {quoted})"


def test_of_a_large_value_only_what_is_quoted_is_written() -> None:
    value = Counted([10] * 100_000)
    refusal(input=value)
    assert 0 < value.seen < 100


def test_a_long_key_is_cut() -> None:
    assert refusal(loc=("body", "logit_bias", "9" * 5000), input=1).param == "logit_bias." + "9" * 80
