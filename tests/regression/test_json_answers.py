"""JSON in answers: where it is found, what is valid, how it is compared."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine.json_reading import JsonError
from prefine.regression.json_answers import JsonAnswer, json_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_any_value_is_found_bare_and_fenced(value: Any) -> None:
    text = json.dumps(value)
    for answer in (text, f"```json\n{text}\n```", f"```\n{text}\n```\n"):
        assert json_of(answer, bare=True) == value
        assert json_of(answer) == value


@given(st.dictionaries(st.text(), VALUES, max_size=3))
def test_objects_are_found_among_words(value: dict[str, Any]) -> None:
    assert json_of(f"Sure! Here it is:\n\n{json.dumps(value)}\n\nAnything else?") == value


@pytest.mark.parametrize(
    "answer",
    ["", "No.", "{'a': 1}", '{"a": 1,}', '{"a": 1', '{"a": NaN}', "[1, 2", '{"a": True}', "[" * 5000, "9" * 6000],
)
def test_what_is_no_json(answer: str) -> None:
    with pytest.raises(JsonError):
        json_of(answer)


@pytest.mark.parametrize("around", ["Here: {}", "{} Enjoy!", "Here:\n```json\n{}\n```", "```\n{}\n```\nEnjoy!"])
def test_bare_allows_nothing_around(around: str) -> None:
    answer = around.replace("{}", '{"a": 1}')
    assert JsonAnswer(form={"a": "integer"}).holds(answer)
    assert not JsonAnswer(form={"a": "integer"}, bare=True).holds(answer)


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        ("text", '"a"', ['""', "1", "null"]),
        ("integer", "1", ["1.5", '"1"', "true"]),
        ("number", "1", ['"1"', "true", "null"]),
        ("boolean", "true", ["1", '"true"']),
        ("null", "null", ['"null"', "0"]),
        (["integer"], "[1, 2]", ["1", '["1"]', "{}"]),
        ({"a": "text"}, '{"a": "b"}', ["{}", '{"a": "b", "c": 1}', '["a"]', '{"a": null}']),
        ({"a": {"b": ["number"]}}, '{"a": {"b": [1.5]}}', ['{"a": {"b": 1.5}}', '{"a": [1.5]}']),
        ([{"a": "integer"}], '[{"a": 1}, {"a": 2}]', ['[{"a": 1}, {"b": 2}]', '{"a": 1}']),
    ],
)
def test_forms(form: Any, right: str, wrong: list[str]) -> None:
    rule = JsonAnswer(form=form)
    assert rule.holds(right)
    assert [answer for answer in wrong if rule.holds(answer)] == []


def test_values_and_lengths() -> None:
    rule = JsonAnswer(
        form=[{"on": "boolean", "name": "text"}], values={"0.on": True, "0.name": "Lima"}, lengths={"": 1}
    )
    assert rule.holds('[{"on": true, "name": "LIMA."}]')
    assert not rule.holds('[{"on": false, "name": "Lima"}]')
    assert not rule.holds('[{"on": true, "name": "Peru"}]')
    assert not rule.holds('[{"on": true, "name": "Lima"}, {"on": true, "name": "Lima"}]')
    assert not rule.holds("[]")
