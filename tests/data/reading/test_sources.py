"""Every source gives its rows in order; a bad row is that row's problem, a broken file is one clear error."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pytest

from prefine.data.reading.rows import EXCERPT_CHARACTERS, MAX_ROW_BYTES, Unwritable
from prefine.data.reading.sources import Row, locate, read_rows
from prefine.errors import DataError
from prefine.json_reading import MAX_NESTING

PAIR = {"prompt": "Where is my parcel?", "chosen": "It is in Lyon.", "rejected": "No idea."}
OTHER = {"prompt": "Is it late?", "chosen": "By a day.", "rejected": "Maybe."}


def rows_of(path: Path, content: bytes) -> list[Row]:
    path.write_bytes(content)
    return list(read_rows(str(path)))


def problems(rows: list[Row]) -> list[tuple[int, str, str]]:
    return [(row.line, row.problem.field, row.problem.reason) for row in rows if row.problem is not None]


def refusal(source: Path | str, *, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(str(source), split=split))
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.remedy.endswith(".")
    return message


# --- JSON lines --------------------------------------------------------------------------------------------------


def test_jsonl_accepts_byte_order_mark_crlf_blank_lines_and_a_missing_last_newline(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r\n\r\n  \n" + json.dumps(OTHER).encode()
    rows = rows_of(tmp_path / "a.jsonl", content)
    assert [(row.line, row.value) for row in rows] == [(1, PAIR), (4, OTHER)]
    assert {row.file for row in rows} == {str(tmp_path / "a.jsonl")}


@pytest.mark.parametrize(
    ("number", "reason"), [(b"NaN", "is nan"), (b"[-Infinity]", "is -inf"), (b'{"b": 1e999}', "is inf")]
)
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_a_number_that_json_cannot_write_marks_its_column(
    tmp_path: Path, number: bytes, reason: str, form: str
) -> None:
    line = b'{"a": ' + number + b', "b": 1}'
    (row,) = rows_of(tmp_path / f"a.{form}", line if form == "jsonl" else b"[" + line + b"]")
    assert row.value == {"a": Unwritable(f"{reason}, not a finite number"), "b": 1}


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (b'{"a": ' + b"9" * 5000 + b"}", "line", "has a number with too many digits"),
        (b'{"a": 1, "b": {"k": 1, "k": 2}}', "k", "is given twice"),
        (b"[1, 2]", "line", "is a list, not an object"),
        (b'"text"', "line", "is text, not an object"),
        (b"null", "line", "is null, not an object"),
        (b'{"a": 1} {"a": 2}', "line", "is not valid JSON: text after the object"),
        (b'{"a": ', "line", "is not valid JSON: expecting value"),
        (b'{"a": "\xff\xfe"}', "line", "is not valid UTF-8"),
        (b'{"a": "\\ud83d"}', "line", "has a lone surrogate (half of a character)"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "line", "nests deeper than 64 levels"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "line", "nests deeper than 64 levels"),
        (b'{"a": "\x00"}', "line", "is not valid JSON: invalid control character"),
    ],
)
def test_a_bad_json_line_is_set_aside_and_its_neighbours_are_read(
    tmp_path: Path, line: bytes, field: str, reason: str
) -> None:
    good = json.dumps(PAIR).encode() + b"\n"
    padding = b" " * 9000  # so that a NUL in the bad line does not make the file look binary
    rows = rows_of(tmp_path / "a.jsonl", good + padding + b"\n" + line + b"\n" + good)
    assert [row.value for row in rows if row.problem is None] == [PAIR, PAIR]
    assert problems(rows) == [(3, field, reason)]
    assert 0 < len(rows[1].raw) <= EXCERPT_CHARACTERS


def test_nesting_up_to_the_limit_and_whole_surrogate_pairs_are_fine(tmp_path: Path) -> None:
    inner = b"[" * (MAX_NESTING - 1) + b"]" * (MAX_NESTING - 1)
    rows = rows_of(tmp_path / "a.jsonl", b'{"a": ' + inner + b', "b": "\\ud83d\\ude42", "c": "[[[{{{"}\n')
    assert problems(rows) == []
    assert rows[0].value is not None
    assert rows[0].value["b"] == "🙂"


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_memory_stays_bounded_beside_a_50_mb_line_in_a_60_mb_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"big{suffix}"
    good = json.dumps({**PAIR, "note": "x" * 20_000}).encode() + b"\n"
    with gzip.open(path, "wb", 1) if suffix.endswith(".gz") else path.open("wb") as stream:
        for _ in range(250):
            stream.write(good)
        stream.write(b'{"prompt": "')
        for _ in range(50):
            stream.write(b"y" * 1_000_000)
        stream.write(b'"}\n')
        for _ in range(250):
            stream.write(good)
    kept, rejected = 0, []
    tracemalloc.start()
    try:
        for row in read_rows(str(path)):
            if row.problem is None:
                kept += 1
            else:
                rejected.append(row)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept == 500
    assert problems(rejected) == [(251, "line", "is longer than 8 MiB")]
    assert rejected[0].raw == '{"prompt": "' + "y" * (EXCERPT_CHARACTERS - 12)
    assert peak < 4 * MAX_ROW_BYTES


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    frame = len(b'{"a": ""}')
    text = b"x" * (MAX_ROW_BYTES - frame)
    rows = rows_of(tmp_path / "a.jsonl", b'{"a": "' + text + b'"}\n{"a": "' + text + b'xx"}\n{"b": 1}\n')
    assert [row.problem is None for row in rows] == [True, False, True]
    assert rows[2].value == {"b": 1}


# --- JSON arrays -------------------------------------------------------------------------------------------------


def test_json_array_rows_are_numbered_and_bad_ones_set_aside_alone(tmp_path: Path) -> None:
    content = (
        b'\xef\xbb\xbf [ {"a": 1},\n {"a": NaN}, 7, {"b": 1, "b": 2},'
        b' {"c": "\xff"}, {"d": "\\ud800"}, {"e": "\xc3\xa9"} ]\n'
    )
    rows = rows_of(tmp_path / "a.json", content)
    assert [(row.line, row.value) for row in rows if row.problem is None] == [
        (1, {"a": 1}),
        (2, {"a": Unwritable("is nan, not a finite number")}),
        (7, {"e": "é"}),
    ]
    assert problems(rows) == [
        (3, "line", "is a number, not an object"),
        (4, "b", "is given twice"),
        (5, "line", "is not valid UTF-8"),
        (6, "line", "has a lone surrogate (half of a character)"),
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"a": 1}', "starts with '{\"a\": 1}' where a .json file needs a [list of rows]"),
        (b'[{"a": 1}\n', "line 2, column 1: a comma or the closing bracket is missing"),
        (b'[{"a": 1},\n {"a": }]', "line 2, column 8: expecting value"),
        (b'[{"a": 1}] x', "line 1, column 11: text after the array"),
        (b"[" * 200_000, "line 1, column 2: row 1 nests too deep to be read"),
        (b"[]", "has no rows"),
    ],
)
def test_a_broken_json_array_is_one_error_with_its_place(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert complaint in refusal(path)


# --- CSV ---------------------------------------------------------------------------------------------------------


def test_csv_reads_quotes_line_breaks_numbers_votes_chat_cells_and_empty_cells(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": 'He said "hi", twice'}]
    cell = json.dumps(turns).replace('"', '""')
    content = (
        "\ufeffprompt,completion,label,margin,,id\r\n"
        f'"{cell}","two\r\nlines, one cell",True,1.5,x,\r\n'
        "\r\n"
        'plain,"[{not turns}]",up,-2,y,7\r\n'
    )
    rows = rows_of(tmp_path / "a.csv", content.encode())
    assert problems(rows) == []
    assert [(row.line, row.value) for row in rows] == [
        (
            2,
            {
                "prompt": turns,
                "completion": "two\r\nlines, one cell",
                "label": True,
                "margin": 1.5,
                "column 5": "x",
                "id": None,
            },
        ),
        (
            5,
            {
                "prompt": "plain",
                "completion": "[{not turns}]",
                "label": "up",
                "margin": -2,
                "column 5": "y",
                "id": "7",
            },
        ),
    ]


def test_bad_csv_rows_are_set_aside_alone(tmp_path: Path) -> None:
    content = (
        b"prompt,chosen,rejected\n"
        b"a,b\n"
        b"a,b,\xff\n"
        b'a,"b"x,c\n'
        b"\"[{'role': 'user', 'content': 'hi'}]\",b,c\n"
        b"p," + b"z" * (MAX_ROW_BYTES + 10) + b",q\n"
        b"a,b,c\n"
        b'a,b,"never closed\n'
    )
    rows = rows_of(tmp_path / "a.csv", content)
    assert [(row.line, row.value) for row in rows if row.problem is None] == [
        (7, {"prompt": "a", "chosen": "b", "rejected": "c"})
    ]
    found = problems(rows)
    assert found[:2] == [(2, "line", "has 2 cells where the header has 3"), (3, "line", "is not valid UTF-8")]
    assert found[2][:2] == (4, "line")
    assert found[2][2].startswith("is not valid CSV:")
    assert found[3] == (5, "prompt", "looks like a list of turns but is not valid JSON")
    assert found[4] == (6, "line", "is longer than 8 MiB")
    assert found[5] == (8, "line", "is not valid CSV: unexpected end of data")
    assert len(found) == 6


def test_a_csv_cell_may_be_longer_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)
    rows = rows_of(tmp_path / "a.csv", b"prompt\n" + b"long " * 100_000 + b"\n")
    assert [row.value for row in rows] == [{"prompt": "long " * 100_000}]


def test_csv_headers_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for content, complaint in [
        (b"prompt,chosen,prompt\na,b,c\n", "names the column 'prompt' twice"),
        (b"pr\xffompt\na\n", "header is not valid UTF-8"),
        (b"prompt\n", "has no rows"),
        (b"\n\n", "has no rows"),
    ]:
        path = tmp_path / "a.csv"
        path.write_bytes(content)
        assert complaint in refusal(path)


# --- Parquet -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".parquet.gz"])
def test_parquet_rows_come_as_plain_json(tmp_path: Path, suffix: str) -> None:
    import datetime
    import decimal

    import pyarrow
    import pyarrow.parquet

    turns = [{"role": "user", "content": "hi"}]
    table = pyarrow.table(
        {
            "prompt": ["a", "b", "c"],
            "turns": [turns, None, []],
            "when": [datetime.date(2024, 2, 29), None, None],
            "price": [decimal.Decimal("1.50"), None, None],
            "score": [1.5, float("nan"), 2.0],
            "bytes": [b"text", b"", b"\xff"],
        }
    )
    plain = tmp_path / "plain.parquet"
    pyarrow.parquet.write_table(table, plain)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(plain.read_bytes()) if suffix.endswith(".gz") else plain.read_bytes())
    rows = list(read_rows(str(path)))
    assert rows[0].value == {
        "prompt": "a",
        "turns": turns,
        "when": "2024-02-29",
        "price": 1.5,
        "score": 1.5,
        "bytes": "text",
    }
    assert [row.value and row.value["score"] for row in rows[1:]] == [Unwritable("is nan, not a finite number"), 2.0]
    assert [row.value and row.value["bytes"] for row in rows[1:]] == [
        "",
        Unwritable("holds bytes that are not UTF-8 text"),
    ]


def test_one_parquet_text_that_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    raw = pyarrow.array([b"good", b"\xff\xfe", b"fine"], pyarrow.binary())
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), tmp_path / "a.parquet")
    rows = list(read_rows(str(tmp_path / "a.parquet")))
    unreadable = {"prompt": Unwritable("is not valid UTF-8")}
    assert [row.value for row in rows] == [{"prompt": "good"}, unreadable, {"prompt": "fine"}]


# --- Files that cannot be used -----------------------------------------------------------------------------------


def test_files_that_cannot_be_used_are_refused_by_name_with_a_remedy(tmp_path: Path) -> None:
    line = json.dumps(PAIR).encode() + b"\n"
    packed = gzip.compress(line * 50_000)
    cases = {
        "empty.jsonl": (b"", "is empty"),
        "blank.jsonl": (b"\n \n", "has no rows"),
        "mark.jsonl": (b"\xef\xbb\xbf", "has no rows"),
        "binary.jsonl": (b"\x01\x00\x02" * 99, "is a binary file (it has NUL bytes), not jsonl text"),
        "packed.jsonl": (packed, "is gzip-compressed, not jsonl text. Add .gz to its name."),
        "wide.csv": ("prompt\nhi\n".encode("utf-16-le"), "set data.encoding to utf-16-le"),
        "nothing.jsonl.gz": (gzip.compress(b""), "is empty"),
        "plain.jsonl.gz": (line, "is damaged or truncated gzip data"),
        "cut.jsonl.gz": (packed[: len(packed) // 2], "is damaged or truncated gzip data"),
        "flipped.jsonl.gz": (packed[:-8] + b"\0\0\0\0" + packed[-4:], "is damaged or truncated gzip data"),
        "cut.parquet.gz": (packed[:-20], "is damaged or truncated gzip data"),
        "text.parquet": (line, "cannot be read as Parquet"),
        "notes.doc": (
            line,
            "its extension '.doc' is not one that prefine reads. Use .jsonl, .json, .csv, .tsv, .txt, .parquet",
        ),
    }
    for name, (content, complaint) in cases.items():
        (tmp_path / name).write_bytes(content)
        message = refusal(tmp_path / name)
        assert message.startswith(f"{tmp_path / name}: "), name
        assert complaint in message, name


def test_missing_paths_pipes_and_impossible_names_are_refused(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "missing.jsonl")
    assert "no such file or folder" in refusal("data/missing.jsonl")
    assert "no such file or folder" in refusal("just-a-name")
    assert refusal("nul\0name.jsonl").startswith("nul\\x00name.jsonl: no such file or folder")
    assert "cannot be opened: File name too long" in refusal("x" * 300 + ".jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is not a regular file" in refusal(tmp_path / "pipe.jsonl")


# --- Folders and Hugging Face data sets --------------------------------------------------------------------------


def test_a_folder_is_read_file_by_file_in_order_without_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(json.dumps(OTHER))
    (tmp_path / "a.JSONL.gz").write_bytes(gzip.compress(json.dumps(PAIR).encode()))
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("not data")
    (tmp_path / "sub.jsonl").mkdir()
    rows = list(read_rows(str(tmp_path)))
    assert [(Path(row.file).name, row.value) for row in rows] == [("a.JSONL.gz", PAIR), ("b.jsonl", OTHER)]


def test_a_folder_without_data_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    assert "holds nothing" in refusal(tmp_path)
    (tmp_path / "README.md").write_text("not data")
    assert "has no file that prefine reads; it holds README.md" in refusal(tmp_path)


def test_a_saved_dataset_is_read_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    single, several = tmp_path / "single", tmp_path / "several"
    datasets.Dataset.from_list([PAIR, OTHER]).save_to_disk(str(single))
    datasets.DatasetDict(
        {"train": datasets.Dataset.from_list([PAIR]), "test": datasets.Dataset.from_list([OTHER])}
    ).save_to_disk(str(several))
    assert [(row.line, row.value) for row in read_rows(str(single))] == [(1, PAIR), (2, OTHER)]
    assert [row.value for row in read_rows(str(several), split="test")] == [OTHER]
    assert "has no split 'validation'. Choose one of: train, test." in refusal(several, split="validation")
    for arrow in several.rglob("*.arrow"):
        arrow.write_bytes(b"damaged")
    assert "cannot be read at all" in refusal(several)


def test_a_hugging_face_dataset_is_streamed_by_split_and_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(PAIR) + "\n")
    (folder / "test.jsonl").write_text(json.dumps(OTHER) + "\n")
    rows = list(read_rows(f"hf:{folder}", split="test"))
    assert [(row.file, row.line, row.value) for row in rows] == [(f"hf:{folder}[test]", 1, OTHER)]
    assert "Bad split: dev" in refusal(f"hf:{folder}", split="dev")
    canary = tmp_path / "canary"
    (folder / "pairs.py").write_text(f"open({str(canary)!r}, 'w').close()")
    refusal(f"hf:{folder}")
    assert not canary.exists()


def test_an_id_that_cannot_be_reached_is_one_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[object, ...]] = []

    def load_dataset(path: str, config: str | None, *, split: str, streaming: bool) -> object:
        asked.append((path, config, split, streaming))
        raise ConnectionError("Couldn't reach the Hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [part.form for part in locate("owner/name")] == ["hub"]
    message = refusal("owner/name#config")
    assert message.startswith("owner/name#config[train]: cannot be read at all: Couldn't reach the Hub. Check the id")
    assert asked == [("owner/name", "config", "train", True)]
