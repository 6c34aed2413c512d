"""The cleaned copy: exactly the other rows, as they were, and a list of those left out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from prefine.data.audit.cleaning import dropped_path, write_cleaned
from prefine.data.audit.run import AuditSettings, audit_sources
from prefine.errors import DataError
from tests.data.audit.writing import pair, written


def copied(source: Path | str, out: Path, **settings: object) -> list[dict[str, object]]:
    """Write a copy; returns the rows left out."""
    audit = audit_sources(AuditSettings([str(source)], **settings))  # type: ignore[arg-type]
    copy = write_cleaned(audit, out)
    assert copy.rows == audit.rows == copy.kept + copy.reasons.total()
    return [json.loads(line) for line in dropped_path(out).read_text().splitlines()]


def test_lines_are_copied_byte_for_byte(tmp_path: Path) -> None:
    lines = [
        json.dumps(pair(1)).encode(),
        b'{"chosen": "b",   "prompt": "a", "rejected": "\\u00e9", "more": [1.0, null]}',
        b"",
        json.dumps(pair(1)).encode(),
        b'{"broken": ',
        b'{"prompt": "a", "chosen": "same", "rejected": "same"}',
        json.dumps(pair(2)).encode(),
    ]
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"\n".join(lines))
    dropped = copied(source, tmp_path / "clean.jsonl")
    kept = [line for number, line in enumerate(lines) if number not in (3, 5)]
    assert (tmp_path / "clean.jsonl").read_bytes() == b"\n".join(kept) + b"\n"
    assert dropped == [
        {
            "file": str(source),
            "line": 4,
            "reason": "repeats an earlier row",
            "other_file": str(source),
            "other_line": 1,
        },
        {"file": str(source), "line": 6, "reason": "chosen and rejected are the same text"},
    ]
    copied(source, tmp_path / "clean.jsonl.gz")
    assert gzip.decompress((tmp_path / "clean.jsonl.gz").read_bytes()) == (tmp_path / "clean.jsonl").read_bytes()
    assert not copied(tmp_path / "clean.jsonl", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "clean.jsonl").read_bytes()


def test_rows_of_a_table_may_span_lines(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_bytes(b'prompt,chosen,rejected\r\nq,"a\r\nb",c\r\nq,"a\r\nb",c\r\nq,d,e\r\n')
    dropped = copied(source, tmp_path / "clean.csv")
    assert (tmp_path / "clean.csv").read_bytes() == b'prompt,chosen,rejected\r\nq,"a\r\nb",c\r\nq,d,e\r\n'
    assert [row["line"] for row in dropped] == [4]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    rows = [pair(1), pair(2), pair(1)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = pyarrow.table({**columns, "n": pyarrow.array([1, 2, 3], pyarrow.int16()), "blob": [b"\xff", b"\xfe", b"x"]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    copied(tmp_path / "rows.parquet", tmp_path / "clean.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "clean.parquet") == table.slice(0, 2)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match="cannot be written as JSON without a loss"):
        copied(tmp_path / "rows.parquet", tmp_path / "other.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_other_forms_become_json_lines(tmp_path: Path) -> None:
    rows = [pair(1, extra={"a": [1]}), pair(1, extra={"a": [1]}), pair(2)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    copied(tmp_path / "rows.json", tmp_path / "clean.jsonl")
    found = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert found == [rows[0], rows[2]]


def test_messages_of_a_tree_stay_together(tmp_path: Path) -> None:
    def tree(name: str) -> list[dict[str, object]]:
        asked = {"message_id": f"{name}0", "parent_id": None, "message_tree_id": name, "role": "prompter", "text": "q"}
        answers = [
            {"message_id": f"{name}{n}", "parent_id": f"{name}0", "message_tree_id": name, "role": "assistant"}
            | {"text": f"a{n}", "rank": n}
            for n in (1, 2)
        ]
        return [asked, *answers]

    source = written(tmp_path / "rows.jsonl", [*tree("x"), *tree("y")])
    audit = audit_sources(AuditSettings([source]))
    assert audit.checks.judgements.duplicates == 1
    assert not copied(source, tmp_path / "clean.jsonl")


@pytest.mark.parametrize("out", ["clean.csv", "clean.parquet", "clean.txt", "clean"])
def test_a_copy_in_another_form_is_refused(tmp_path: Path, out: str) -> None:
    source = written(tmp_path / "rows.jsonl", [pair(1)])
    with pytest.raises(DataError, match=r"--fix is .* and the sources are jsonl files"):
        copied(source, tmp_path / out)


def test_sources_that_change_meanwhile_are_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", [pair(1), pair(2)])
    audit = audit_sources(AuditSettings([source]))
    written(tmp_path / "rows.jsonl", [pair(1)])
    with pytest.raises(DataError, match="changed since they were audited"):
        write_cleaned(audit, tmp_path / "clean.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
