"""Rows that a program holds: read as a file of the same rows is, named by their content, and never changed later."""

from __future__ import annotations

import datetime
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefine.data.reading.memory_rows import memory_source
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import Unwritable
from prefine.data.reading.sources import read_rows
from prefine.data.records.kinds import kind_of_sources
from prefine.data.records.stream import read_records
from prefine.errors import DataError
from prefine.records import Preference, Prompt

PAIRS = [{"prompt": f"Q{n}", "chosen": f"good {n}", "rejected": f"bad {n}", "margin": n / 2} for n in range(5)]


def values(rows: Any) -> list[Any]:
    return [row.value if row.problem is None else row.problem.reason for row in read_rows(memory_source(rows))]


def as_dataset(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(rows)


def as_iterable(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(rows).to_iterable_dataset()


FORMS = [list, tuple, pd.DataFrame, as_dataset, as_iterable]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_rows_of_every_form_are_read_as_a_file_of_them(form: Callable[[Any], Any], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    source = memory_source(form(PAIRS))
    assert source == memory_source(PAIRS)
    assert source.startswith("memory:5-rows-") and kind_of_sources([source]) == "preferences"
    found = list(read_records(source, Preference, quarantine=Quarantine()))
    assert found == list(read_records(str(tmp_path / "a.jsonl"), Preference, quarantine=Quarantine()))
    assert [(row.file, row.line) for row in read_rows(source)] == [(source, n + 1) for n in range(5)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), min_size=1, max_size=4))
def test_every_json_row_is_read_as_from_a_file(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    assert values(rows) == [row.value for row in read_rows(str(path))]


def test_any_change_of_content_or_order_is_another_name() -> None:
    names = {
        memory_source(rows)
        for rows in (
            PAIRS,
            PAIRS[::-1],
            PAIRS[:4],
            [*PAIRS[:4], {**PAIRS[4], "chosen": "better"}],
            [*PAIRS[:4], {**PAIRS[4], "note": b"\xff"}],
            [*PAIRS[:4], {**PAIRS[4], "note": b"\xfe"}],
            [*PAIRS[:4], {**PAIRS[4], "note": math.nan}],
            [*PAIRS[:4], "no row"],
        )
    }
    assert len(names) == 8


def test_later_changes_of_a_list_or_frame_change_nothing() -> None:
    rows: list[dict[str, Any]] = [{"prompt": [{"role": "user", "content": "Q"}]}]
    frame = pd.DataFrame({"prompt": ["Q"]})
    sources = memory_source(rows), memory_source(frame)
    rows[0]["prompt"][0]["content"] = "changed"
    rows.append({"prompt": "more"})
    frame.loc[0, "prompt"] = "changed"
    for source in sources:
        (record,) = read_records(source, Prompt, quarantine=Quarantine())
        assert record.prompt[0].content == "Q"


def test_a_frames_missing_values_are_null_and_its_index_is_left_out() -> None:
    frame = pd.DataFrame(
        {
            "prompt": ["Q", None],
            "id": [7, None],
            "n": pd.array([1, None], dtype="Int64"),
            "when": [pd.Timestamp("2026-01-02"), pd.NaT],
            3: [[1, 2], np.array([1.5])],
        },
        index=["a", "b"],
    )
    assert values(frame) == [
        {"prompt": "Q", "id": 7.0, "n": 1, "when": "2026-01-02T00:00:00", "3": [1, 2]},
        {"prompt": None, "id": None, "n": None, "when": None, "3": [1.5]},
    ]


def test_arrays_and_tensors_become_numbers_and_what_json_cannot_write_is_marked() -> None:
    row = {
        "a": np.float32(1.5),
        "b": torch.tensor([1, 2]),
        "c": {"x": np.int64(3), "y": (True, None)},
        "d": datetime.date(2026, 1, 2),
        "e": math.inf,
        "f": object(),
    }
    (found,) = values([row])
    assert found == {
        "a": 1.5,
        "b": [1, 2],
        "c": {"x": 3, "y": [True, None]},
        "d": "2026-01-02",
        "e": Unwritable("is inf, not a finite number"),
        "f": Unwritable("holds a object, which has no JSON form"),
    }
    assert (found["e"].form, found["f"].form) == ("Infinity", "<builtins.object>")


def test_bad_rows_are_set_aside_alone() -> None:
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    endless: list[Any] = []
    endless.append(endless)
    rows = [
        "text",
        {"prompt": "\ud800"},
        {1: "a", "1": "b"},
        {"x": deep},
        {"x": endless},
        {"x": 10**5000},
        {"prompt": "Q"},
    ]
    assert values(rows) == [
        "is text, not an object",
        "has a lone surrogate (half of a character)",
        "is given twice",
        "nests deeper than 64 levels",
        "nests deeper than 64 levels",
        "has a number with too many digits",
        {"prompt": "Q"},
    ]
    quarantine = Quarantine()
    source = memory_source(rows)
    assert len(list(read_records(source, Prompt, quarantine=quarantine))) == 1
    assert quarantine.total == 6
    assert quarantine.first["line is text, not an object"] == f"{source}:1"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "there are none. Give at least one row"),
        ((row for row in PAIRS), r"a generator, which can be read only once, .* Pass list\(rows\)"),
        ({"prompt": ["Q"]}, "dict is not a type that prefine reads. Pass a list of dicts, a pandas DataFrame or"),
        ("a.jsonl", "str is not a type that prefine reads"),
        (pd.DataFrame([["Q", "R"]], columns=["prompt", "prompt"]), "two columns have the name 'prompt'"),
    ],
)
def test_what_cannot_be_a_source_is_refused_with_a_remedy(rows: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        memory_source(rows)


def test_splits_are_passed_one_at_a_time() -> None:
    datasets = pytest.importorskip("datasets")
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(PAIRS)})
    with pytest.raises(DataError, match=r"a dictionary of the splits train\. Pass one of them, as in rows\['train'\]"):
        memory_source(splits)


def test_a_data_set_that_makes_tensors_gives_its_values() -> None:
    rows = as_dataset([{"prompt": "Q", "n": [1, 2]}]).with_format("torch")
    assert values(rows) == [{"prompt": "Q", "n": [1, 2]}]


def test_another_process_names_the_same_rows_alike_and_does_not_hold_them() -> None:
    with pytest.raises(DataError, match=r"given from Python, and this process does not hold them\. Pass the same rows"):
        list(read_rows("memory:5-rows-0123456789abcdef"))
    program = f"from prefine.data.reading.memory_rows import memory_source; print(memory_source({PAIRS!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == memory_source(PAIRS)
