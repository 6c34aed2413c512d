"""Whatever is wrong with JSON is one kind of error, in words that read on from the file's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine import json_reading
from prefine.json_reading import MAX_NESTING, JsonError, nesting_exceeds, parse_json, read_json, read_json_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(VALUES)
def test_what_is_json_is_read_as_it_is(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=40))
def test_bytes_give_a_value_or_a_json_error(data: bytes) -> None:
    try:
        parse_json(data)
    except JsonError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"[" * 200_000, f"nests deeper than {MAX_NESTING} levels"),
        (b'{"a":' * 200_000, f"nests deeper than {MAX_NESTING} levels"),
        (b"[" * 65 + b"]" * 65, f"nests deeper than {MAX_NESTING} levels"),
        (b"{", "is not valid JSON: expecting property name enclosed in double quotes"),
        (b"", "is not valid JSON: expecting value"),
        (b"1" * 5_000, "has a number with too many digits"),
        (b'"\xff"', "is not valid UTF-8"),
    ],
)
def test_what_is_wrong_is_told(data: bytes, told: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_json(data)
    assert str(caught.value) == told


def test_64_levels_are_read() -> None:
    value = parse_json("[" * 64 + "]" * 64)
    assert not nesting_exceeds(value, 64)
    assert nesting_exceeds(value, 63)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text('["é"]', encoding="utf-8")
    assert read_json(path) == ["é"]
    with pytest.raises(JsonError, match="is not a JSON object"):
        read_json_object(path)
    monkeypatch.setattr(json_reading, "MAX_FILE_BYTES", 5)
    with pytest.raises(JsonError, match="is larger than"):
        read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")
