"""What a source holds is found out from the columns of its first rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefine.data.records.kinds import KINDS, kind_of_sources
from prefine.errors import DataError

ROWS: dict[str, list[dict[str, Any]]] = {
    "preferences": [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        {"prompt": "Q", "response_1": "A", "response_2": "B", "preferred": 1},
    ],
    "votes": [{"prompt": "Q", "completion": "A", "label": True}],
    "demonstrations": [
        {"messages": []},
        {"conversations": []},
        {"prompt": "Q", "completion": "A"},
        {"instruction": "Q", "input": "", "output": "A"},
    ],
    "prompts": [{"prompt": "Q"}, {"prompt": "Q", "note": 1}],
}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_every_kind_has_rows_here() -> None:
    assert list(ROWS) == list(KINDS)


@pytest.mark.parametrize("kind", ROWS)
def test_each_format_is_found(kind: str, tmp_path: Path) -> None:
    for row in ROWS[kind]:
        assert kind_of_sources([write(tmp_path / "a.jsonl", [row])]) == kind


def test_most_rows_decide_and_broken_ones_do_not(tmp_path: Path) -> None:
    vote, pair = ROWS["votes"][0], ROWS["preferences"][0]
    assert kind_of_sources([write(tmp_path / "a.jsonl", ["oops", vote, vote, pair, {"x": 1}, {"x": 2}])]) == "votes"
    assert kind_of_sources([write(tmp_path / "a.jsonl", [*["oops"] * 400, pair])]) == "preferences"
    later = write(tmp_path / "b.jsonl", [vote])
    assert kind_of_sources([write(tmp_path / "a.jsonl", [pair]), later, later]) == "preferences"


def test_unknown_columns_are_named_with_the_formats_there_are(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"question": 1, "b\n": 2}])
    with pytest.raises(DataError) as caught:
        kind_of_sources([source])
    assert str(caught.value) == (
        f"{source}: its columns (question, b\\n) fit no known format. Map the columns: data.columns: {{prompt: "
        "question, completion: …} in a recipe, --column NAME=COLUMN on the command line; docs/data.md shows all "
        "formats."
    )
    source = write(tmp_path / "a.jsonl", [{f"column {n}": 1 for n in range(30)}])
    with pytest.raises(DataError, match=r"column 11, …\) fit no known format"):
        kind_of_sources([source])


def test_a_source_without_a_readable_row(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ["oops"] * 3 + ["[1]"])
    with pytest.raises(DataError) as caught:
        kind_of_sources([source])
    assert str(caught.value) == (
        f"{source}: no row of it can be read: line is not valid JSON: expecting value (3); line is a list, not an "
        "object (1). Correct the rows, or read another file."
    )


def test_every_source_must_be_there(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", [{"prompt": "Q"}])
    with pytest.raises(DataError, match="no such file"):
        kind_of_sources([good, "missing.jsonl"])
    with pytest.raises(DataError, match="no data source is given"):
        kind_of_sources([])
