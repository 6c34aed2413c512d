"""Whatever a file holds: no traceback, and every row is either kept or in quarantine."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import RowError
from prefine.data.records.convert import records_of
from prefine.data.records.layouts.table import SHAPES
from prefine.data.records.stream import read_records
from prefine.errors import DataError
from prefine.records import Demonstration, Preference, Prompt, Vote

KINDS: list[Any] = [Preference, Vote, Demonstration, Prompt]
QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])

texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", " ", "up", "1", "true", "\n\nHuman: Q\n\nAssistant: A", "\n\nAssistant:", "\ud800", "\x00"]),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.sampled_from([0, 1, 2, 1.0, 10**400, -0.0])
)
turn = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts}),
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system", "other"]), "value": texts}),
    st.dictionaries(st.sampled_from(["role", "content", "weight", "tool_calls"]), scalars),
)
chats = st.lists(st.one_of(turn, turn, turn, scalars), max_size=5)
nested = st.recursive(
    st.one_of(scalars, chats),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)
known = sorted({name for shapes in SHAPES.values() for shape in shapes for name in shape.columns})
columns = [*known, "system", "system_prompt", "history", "tools", "train", "weight", "image", "id", "extra", "other"]
of_one_layout = st.sampled_from(sorted({tuple(sorted(s.columns)) for shapes in SHAPES.values() for s in shapes}))
values = st.one_of(texts, chats, nested)
good = {"prompt": "Q", "chosen": "A", "rejected": "B", "completion": "A", "label": 1}
rows = st.one_of(
    st.dictionaries(st.sampled_from(columns), values, max_size=8),
    st.dictionaries(st.sampled_from(columns), values, max_size=2).map(lambda dirt: {**good, **dirt}),
    of_one_layout.flatmap(lambda names: st.fixed_dictionaries(dict.fromkeys(names, values))),
)


def check_accounts(name: str, content: bytes, kind: Any) -> int | None:
    """Read a file with this content; rows_in, or None where the file as a whole is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path, quarantine_path = Path(folder) / name, Path(folder) / "out" / "quarantine.jsonl"
        path.write_bytes(content)
        with Quarantine(quarantine_path) as quarantine:
            stream = read_records(str(path), kind, quarantine=quarantine)
            try:
                records = list(stream)
            except DataError as error:
                assert "\n" not in str(error)
                assert str(error).startswith(f"{path}: ")
                assert stream.counts.kept == 0 or name.endswith(".json")
                return None
        counts = stream.counts
        assert counts.rows_in == counts.kept + counts.quarantined + counts.left_out
        assert len(records) == counts.found - counts.duplicates
        assert quarantine.total == counts.quarantined
        listed = quarantine_path.read_text(encoding="utf-8").splitlines() if quarantine_path.exists() else []
        assert len(listed) == counts.quarantined
        assert all(set(json.loads(line)) == {"file", "line", "field", "reason", "row"} for line in listed)
        for record in records:  # what is kept can be written again and is the same when read back
            written = json.dumps(record.model_dump(mode="json"), ensure_ascii=False).encode("utf-8")
            assert records_of(json.loads(written), kind) == [record]
        return counts.rows_in


@QUICK
@given(lines=st.lists(st.one_of(st.binary(max_size=40), rows.map(lambda row: json.dumps(row).encode())), max_size=12))
def test_dirty_json_lines(lines: list[bytes]) -> None:
    content = b"\n".join([json.dumps(good).encode(), b" " * 9000, *lines])
    expected = sum(1 for line in content.split(b"\n") if line.strip(b" \t\r\n\x0b\x0c"))
    for kind in KINDS:
        assert check_accounts("a.jsonl", content, kind) == expected


@QUICK
@given(elements=st.lists(st.one_of(rows, nested), max_size=8), cut=st.none() | st.integers(1, 200))
def test_dirty_json_arrays(elements: list[Any], cut: int | None) -> None:
    content = json.dumps([good, *elements]).encode()
    for kind in KINDS:
        rows_in = check_accounts("a.json", content[:-cut] if cut else content, kind)
        assert rows_in == (None if cut else len(elements) + 1)


@QUICK
@given(cells=st.lists(st.lists(texts, max_size=6), max_size=8), tail=st.binary(max_size=60))
def test_dirty_csv(cells: list[list[str]], tail: bytes) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(good)
    writer.writerow(good.values())
    content = buffer.getvalue().encode() + b" " * 9000 + b"\n"
    body = io.StringIO()
    csv.writer(body).writerows(cells)
    content += body.getvalue().encode("utf-8", "surrogatepass") + tail
    for kind in KINDS:
        rows_in = check_accounts("a.csv", content, kind)
        assert rows_in is not None
        assert rows_in >= 2


@QUICK
@given(content=st.binary(min_size=1, max_size=300), suffix=st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]))
def test_files_of_random_bytes(content: bytes, suffix: str) -> None:
    for name in (f"a{suffix}", f"a{suffix}.gz"):
        check_accounts(name, content, Preference)


@settings(max_examples=400, deadline=None)
@given(row=rows)
@example(row={"messages": [{"role": "system", "content": ""}], "rejected_response": "B", "label": True})
@example(row={"prompt": "\n\nAssistant:", "system": "0"})  # a system turn before no turn at all
def test_any_row_converts_or_is_refused_by_field_and_reason(row: dict[str, Any]) -> None:
    for kind in KINDS:
        try:
            records = records_of(row, kind)
        except RowError as error:
            assert error.problem.field
            assert 0 < len(error.problem.reason) < 200
        else:
            assert records
            assert all(type(record) is kind for record in records)


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_nested_nulls_in_every_place_of_a_pair(field: str) -> None:
    for dirt in (None, [None], [[None]], {}, [{"role": None, "content": None}], [{"role": "user", "content": [None]}]):
        with pytest.raises(RowError) as caught:
            records_of({**good, field: dirt}, Preference)
        assert caught.value.problem.field.startswith(field)
