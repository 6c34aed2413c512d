"""Sources become records, and every row is accounted for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.stream import RecordStream, read_records
from prefine.errors import DataError
from prefine.records import Demonstration, Preference, Prompt, Vote


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def pair(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Q{number}", "chosen": "A", "rejected": "B", **more}


def accounted(stream: RecordStream[Any], quarantine: Quarantine) -> list[Any]:
    records = list(stream)
    counts = stream.counts
    assert counts.rows_in == counts.kept + counts.quarantined + counts.left_out
    assert counts.records == len(records) == counts.found - counts.duplicates
    assert counts.quarantined == quarantine.total
    if quarantine.path is not None and counts.quarantined:
        assert len(quarantine.path.read_text().splitlines()) == counts.quarantined
    return records


def refusal(sources: Any, kind: Any, quarantine: Quarantine | None = None) -> str:
    with pytest.raises(DataError) as caught:
        list(read_records(sources, kind, quarantine=quarantine or Quarantine()))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_are_kept_dropped_as_duplicates_or_quarantined_and_all_are_counted(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [pair(1, id=1), pair(2, id=1), "{broken", pair(1), "", pair(3, chosen=" ")])
    second = write(
        tmp_path / "b.jsonl",
        [
            {"other": 1},
            {"prompt": "Q2", "response_1": "A", "response_2": "B", "preferred": 2},
            pair(1),
            {"chosen": [], "rejected": []},
        ],
    )
    with Quarantine(tmp_path / "out" / "quarantine.jsonl") as quarantine:
        stream = read_records([first, second], Preference, quarantine=quarantine)
        records = accounted(stream, quarantine)
    assert [(record.prompt[0].content, record.chosen) for record in records] == [("Q1", "A"), ("Q2", "A"), ("Q2", "B")]
    assert stream.counts.as_dict() == {
        "rows_in": 9,
        "kept": 5,
        "quarantined": 4,
        "reasons": {
            "line is not valid JSON: expecting property name enclosed in double quotes": 1,
            "chosen is blank": 1,
            "columns fit no known format": 1,
            "chosen is an empty list": 1,
        },
        "left_out": 0,
        "left_out_reasons": {},
        "duplicates": 2,
        "records": 3,
        "duplicate_ids": 1,
        "contradictions": 1,
        "scored_pairs": 0,
        "columns_left_out": {},
        "answers_unread": {},
        "votes_unread": {},
        "votes_down_unread": {},
        "missing_words": {},
        "missing_at": [],
        "read_as": {},
    }
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["file"], line["line"], line["field"]) for line in lines] == [
        (first, 3, "line"),
        (first, 6, "chosen"),
        (second, 1, "columns"),
        (second, 4, "chosen"),
    ]
    assert lines[0]["row"] == "{broken\n"
    assert json.loads(lines[1]["row"]) == pair(3, chosen=" ")


def test_duplicates_stay_when_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [pair(1), pair(1)])
    stream = read_records(source, Preference, quarantine=Quarantine(), deduplicate=False)
    assert len(list(stream)) == 2
    assert (stream.counts.kept, stream.counts.duplicates) == (2, 0)


def test_wrong_columns_of_a_whole_file_are_one_error_that_names_them_and_leave_no_quarantine(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", [pair(1)])
    for length in (2, 2_500):
        wrong = write(tmp_path / "wrong.jsonl", [{"question": str(row), "answer\n": "x"} for row in range(length)])
        with Quarantine(tmp_path / "quarantine.jsonl") as quarantine:
            message = refusal([good, wrong], Preference, quarantine)
        assert message == (
            f"{wrong}: its columns (question, answer\\n) fit no format of a preference. Map the columns: "
            "data.columns: {prompt: question, chosen: …, rejected: …} in a recipe, --column NAME=COLUMN on the "
            "command line; docs/data.md shows all formats."
        )
        assert not (tmp_path / "quarantine.jsonl").exists()
    assert refusal(good, Vote) == (
        f"{good}: its columns (prompt, chosen, rejected) fit no format of a vote; they are those of preferences: "
        "prefine dpo, prefine orpo, prefine reward and prefine sft learn from them. Use one of these commands, or "
        "other data."
    )
    votes = write(tmp_path / "votes.jsonl", [{"messages": [], "label": True}])
    verbs = "prefine kto, prefine reward and prefine sft"
    assert f"; they are those of votes: {verbs} learn from them. " in refusal(votes, Preference)


def test_nothing_kept_is_an_error_with_the_three_commonest_reasons(tmp_path: Path) -> None:
    rows: list[Any] = [pair(1, chosen="")] * 4 + [pair(1, rejected=5)] * 3 + ["oops"] * 2 + [pair(1, prompt=None)]
    source = write(tmp_path / "a.jsonl", rows)
    with Quarantine(tmp_path / "quarantine.jsonl") as quarantine:
        message = refusal(source, Preference, quarantine)
    assert message == (
        f"{source}: none of 10 rows is a preference: chosen is blank (4); rejected is a number, not text (3); "
        f"line is not valid JSON: expecting value (2). See the rows in {tmp_path / 'quarantine.jsonl'}."
    )
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 10
    assert "docs/data.md" in refusal(source, Preference)


def test_all_sources_are_looked_for_before_any_is_read(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [pair(1)])
    with pytest.raises(DataError, match="no such file"):
        read_records([source, str(tmp_path / "missing.jsonl")], Preference, quarantine=Quarantine())
    with pytest.raises(DataError, match="no data source is given"):
        read_records([], Preference, quarantine=Quarantine())
    with pytest.raises(DataError, match="is the quarantine file of this run"):
        read_records(source, Preference, quarantine=Quarantine(Path(source)))
    assert Path(source).read_text() == json.dumps(pair(1)) + "\n"


def test_csv_and_parquet_give_the_same_records_as_json_lines(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [pair(1, margin=1.5, note="x"), pair(2, margin=None, note='quoted "and\nbroken"')]
    lines = write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.csv").write_text(
        'prompt,chosen,rejected,margin,note\nQ1,A,B,1.5,x\nQ2,A,B,,"quoted ""and\nbroken"""\n'
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = list(read_records(lines, Preference, quarantine=Quarantine()))
    assert len(expected) == 2
    for name in ("a.csv", "a.parquet"):
        assert list(read_records(str(tmp_path / name), Preference, quarantine=Quarantine())) == expected


def test_a_hugging_face_dataset_becomes_records(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write(tmp_path / "test.jsonl", [pair(1), pair(2), pair(3, chosen="")])
    quarantine = Quarantine(tmp_path / "quarantine")
    stream = read_records(f"hf:{tmp_path}", Preference, split="test", quarantine=quarantine)
    assert len(accounted(stream, quarantine)) == 2
    quarantine.close()
    assert json.loads((tmp_path / "quarantine").read_text())["file"] == f"hf:{tmp_path}[test]"


@pytest.mark.parametrize("kind", [Preference, Demonstration, Prompt])
def test_real_hh_rows_are_read_but_for_the_five_bad_ones(kind: Any) -> None:
    folder = os.environ.get("PREFINE_DATA")
    if not folder:
        pytest.skip("PREFINE_DATA names no folder with hh-harmless-base.jsonl.gz")
    quarantine = Quarantine()
    stream = read_records(str(Path(folder) / "hh-harmless-base.jsonl.gz"), kind, quarantine=quarantine)
    records = accounted(stream, quarantine)
    assert stream.counts.rows_in == 1_800
    assert dict(stream.counts.reasons) == {
        "chosen ends with an empty turn": 3,
        "rejected does not share its turns before the answer with chosen": 2,
    }
    assert all("\n\nHuman:" not in message.content for record in records for message in turns_of(record))
    assert all(message.content == message.content.strip() for record in records for message in turns_of(record))


def turns_of(record: Any) -> Any:
    return record.messages if isinstance(record, Demonstration) else record.prompt
