"""Every rejected row can be read afterwards, at once and after a crash; reasons are few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import Problem
from prefine.errors import DataError


def entries(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_nothing_rejected_leaves_no_file(tmp_path: Path) -> None:
    with Quarantine(tmp_path / "run" / "quarantine.jsonl") as quarantine:
        assert quarantine.total == 0
    assert list(tmp_path.iterdir()) == []


def test_a_row_is_on_disk_as_soon_as_it_is_added_and_cut_to_2000_characters(tmp_path: Path) -> None:
    path = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(path)
    quarantine.add("a.jsonl", 3, Problem("line", "is not valid JSON"), "é\ud800" * 2_000)
    quarantine.add("a.jsonl", 4, Problem("chosen", "is blank"), {"chosen": "", "at": 1})
    assert entries(path) == [
        {
            "file": "a.jsonl",
            "line": 3,
            "field": "line",
            "reason": "is not valid JSON",
            "row": "é\ud800" * 1_000,
        },
        {"file": "a.jsonl", "line": 4, "field": "chosen", "reason": "is blank", "row": '{"chosen": "", "at": 1}'},
    ]
    quarantine.close()
    assert dict(quarantine.reasons) == {"line is not valid JSON": 1, "chosen is blank": 1}


def test_a_second_reading_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    for line in (1, 2):
        with Quarantine(path) as quarantine:
            quarantine.add("a.jsonl", line, Problem("x", "y"), "")
    assert [entry["line"] for entry in entries(path)] == [2]


def test_positions_do_not_make_new_reasons_and_reasons_are_bounded() -> None:
    quarantine = Quarantine()
    for index in range(50):
        quarantine.add("f", index, Problem(f"messages[{index}].content", "is blank"), "")
        quarantine.add("f", index, Problem("messages", f"turn {index} is 'user' where 'assistant' is expected"), "")
        quarantine.add("f", index, Problem("line", f"has {index} cells where the header has {index + 1}"), "")
    assert dict(quarantine.reasons) == {
        "messages[…].content is blank": 50,
        "messages turn N is 'user' where 'assistant' is expected": 50,
        "line has N cells where the header has N": 50,
    }
    for index in range(5_000):
        quarantine.add("f", index, Problem(f"key{index}", "is given twice"), "")
    assert quarantine.total == 5_150
    assert len(quarantine.reasons) == 1_001


def test_a_reason_cannot_smuggle_terminal_codes_or_line_breaks() -> None:
    quarantine = Quarantine()
    assert quarantine.add("f", 1, Problem("\x1b[31mé\n", "is given twice"), "") == "\\x1b[31mé\\n is given twice"


def test_a_quarantine_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="rejected rows cannot be written") as caught:
        Quarantine(tmp_path / "file" / "quarantine.jsonl").add("f", 1, Problem("x", "y"), "")
    assert "\n" not in str(caught.value)
