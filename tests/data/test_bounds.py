"""Small files must not fill memory, and columns that nobody reads must not cost a row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefine.data.reading import arrow_rows
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import MAX_ROW_BYTES, MAX_TEXT_CHARACTERS
from prefine.data.reading.sources import read_rows
from prefine.data.records.stream import RecordStream, read_records
from prefine.errors import DataError
from prefine.records import Demonstration, Preference

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
PEAK_MIB = "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"


def read(path: Path, kind: Any = Preference) -> tuple[list[Any], RecordStream[Any]]:
    stream: RecordStream[Any] = read_records(str(path), kind, quarantine=Quarantine())
    return list(stream), stream


def peak_mib(code: str) -> int:
    """Peak memory of a process of its own that runs `code`, less that of one that only imports."""
    told = [
        subprocess.run(
            [
                sys.executable,
                "-c",
                f"import resource\nfrom prefine.data.reading.sources import read_rows\n{body}\n{PEAK_MIB}",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for body in ("import pyarrow.parquet", code)
    ]
    return int(told[1].split()[-1]) - int(told[0].split()[-1])


# --- Columns that nobody reads -----------------------------------------------------------------------------------


def test_bytes_and_nan_in_unread_columns_refuse_no_row_and_are_counted(tmp_path: Path) -> None:
    table = pa.table(
        {
            **{name: [f"{text}{i}" for i in range(3)] for name, text in PAIR.items()},
            "thumbnail": [b"\x89PNG\xff", b"ascii", None],
            "price": [float("nan"), 1.0, float("inf")],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    records, stream = read(tmp_path / "a.parquet")
    assert [record.extra for record in records] == [{}, {"thumbnail": "ascii", "price": 1.0}, {"thumbnail": None}]
    assert stream.counts.quarantined == 0
    assert stream.counts.as_dict()["columns_left_out"] == {"price": 2, "thumbnail": 1}


def test_text_that_is_not_utf8_costs_a_row_only_where_it_is_read(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    others = {name: ["x1", "x2", "x3"] for name in ("prompt", "chosen")}
    pq.write_table(pa.table({**others, "rejected": ["a", "b", "c"], "note": texts}), tmp_path / "unread.parquet")
    records, stream = read(tmp_path / "unread.parquet")
    assert len(records) == 3
    assert stream.counts.columns_left_out == {"note": 1}
    pq.write_table(pa.table({**others, "rejected": texts}), tmp_path / "read.parquet")
    records, stream = read(tmp_path / "read.parquet")
    assert len(records) == 2
    assert dict(stream.counts.reasons) == {"rejected is not valid UTF-8": 1}


def test_nan_in_json_lines_costs_a_row_only_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{**PAIR, "note": float("nan")}, {**PAIR, "chosen": "c", "margin": float("inf")}, {**PAIR, "chosen": "d"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    records, stream = read(path)
    assert [record.chosen for record in records] == ["a", "d"]
    assert dict(stream.counts.reasons) == {"margin is inf, not a finite number": 1}
    assert stream.counts.columns_left_out == {"note": 1}


# --- Memory ------------------------------------------------------------------------------------------------------


def test_a_small_parquet_file_with_large_values_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """One value of 25 MB, 128 times over, in a file of 3 KB."""
    big = "x" * 25_000_000
    path = tmp_path / "a.parquet"
    table = pa.table({"prompt": [big] * 127 + ["p"], "chosen": ["a"] * 128, "rejected": ["b"] * 128})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=10**8)
    del table
    assert path.stat().st_size < 5_000
    rows = list(read_rows(str(path)))
    assert [row.problem and row.problem.reason for row in rows] == ["is longer than 8 MiB"] * 127 + [None]
    assert peak_mib(f"for row in read_rows({str(path)!r}): pass") < 250


@pytest.mark.parametrize("nested", [False, True])
def test_a_row_group_that_would_expand_a_thousandfold_is_refused_unread(
    tmp_path: Path, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_rows, "_MOST_EXPANDED_BYTES", 1_000_000)
    column: Any = [[7] * 1_000_000] if nested else ["x" * 5_000_000]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": column}), path, compression="zstd")
    with pytest.raises(DataError, match=r"a\.parquet: \d+ bytes of it stand for \d+ bytes in memory"):
        next(read_rows(str(path)))


def test_a_parquet_batch_is_as_small_as_its_rows_are_large(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [str(i) * 1_000_000 for i in range(9)]
    pq.write_table(pa.table({"prompt": texts}), path, compression="none", use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(0)
    assert arrow_rows._rows_at_once(group, "a") == 64 * 1024 * 1024 * 9 // group.total_byte_size
    assert [row.value for row in read_rows(str(path))] == [{"prompt": text} for text in texts]


def test_a_record_with_more_text_than_tokenizers_can_take_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    most = "x" * (MAX_TEXT_CHARACTERS - 2)
    chats = [
        {"messages": [{"role": "user", "content": most}, {"role": "assistant", "content": a}]} for a in ("ab", "abc")
    ]
    path.write_text("\n".join(map(json.dumps, chats)))
    records, stream = read(path, Demonstration)
    assert len(records) == 1
    assert dict(stream.counts.reasons) == {"line holds more than 1,048,576 characters of prompt and answers": 1}


def test_a_csv_row_of_ever_more_lines_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected\n" + f'"{"a" * 999}\n",' * (MAX_ROW_BYTES // 1_000))
    row = next(read_rows(str(path)))
    assert row.line == 2
    assert row.problem is not None
    assert row.problem.reason == "is longer than 8 MiB"


def test_a_csv_header_of_very_many_columns_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",".join(map(str, range(200_000))) + "\n1\n")
    with pytest.raises(DataError, match="its header has 200000 columns, more than 10000"):
        next(read_rows(str(path)))
