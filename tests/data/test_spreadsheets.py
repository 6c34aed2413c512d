"""Files as spreadsheets write them: other delimiters, encodings and headers, and cells that stand for nothing."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine.data.prepare import Preparation, Prepared
from prefine.data.reading.csv_rows import typed_cell
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.sources import locate, read_rows
from prefine.data.records.kinds import kind_of_sources
from prefine.data.records.stream import RecordStream, read_records, remarks
from prefine.data.tokens.template import ChatTemplate
from prefine.errors import CheckpointError, DataError, RecipeError
from prefine.recipe.dpo import DpoRecipe
from prefine.recipe.loading import load_recipe
from prefine.recipe.sections import DataSection
from prefine.records import Demonstration, Preference, Prompt, Vote
from prefine.text_form import TextForm, delimiter_named, encoding_named

PAIRS = "prompt{d}chosen{d}rejected\nWie heißt Köln?{d}Köln – schön{d}Nö\nQuoi?{d}Voilà l’été{d}Çà\n"
FOUND = [
    {"prompt": "Wie heißt Köln?", "chosen": "Köln – schön", "rejected": "Nö"},
    {"prompt": "Quoi?", "chosen": "Voilà l’été", "rejected": "Çà"},
]


def stream_of(path: Path, kind: Any, **settings: Any) -> RecordStream[Any]:
    stream: RecordStream[Any] = read_records(str(path), kind, quarantine=Quarantine(), **settings)
    return stream


def read(path: Path, content: bytes, kind: Any = Preference, **settings: Any) -> tuple[list[Any], list[str]]:
    """The records of a file with this content, and what is told about it."""
    path.write_bytes(content)
    stream = stream_of(path, kind, **settings)
    return list(stream), remarks(stream.counts.as_dict())


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding", "told"),
    [
        ("a.csv", ",", "utf-8", []),
        ("a.csv", ",", "utf-8-sig", []),
        ("a.csv", ";", "utf-8", ["semicolons"]),
        ("a.csv", "\t", "utf-8", ["tabs"]),
        ("a.csv", "|", "utf-8", ["vertical bars"]),
        ("a.tsv", "\t", "utf-8", []),
        ("a.tsv", ",", "utf-8", ["commas"]),
        ("a.csv", ";", "cp1252", ["cp1252", "semicolons"]),
        ("a.csv.gz", ";", "cp1252", ["cp1252", "semicolons"]),
        ("a.csv", "\t", "utf-16", ["UTF-16", "tabs"]),
        ("a.csv", ",", "utf-32", ["UTF-32"]),
    ],
)
def test_delimiters_and_encodings_are_found_out_and_told(
    tmp_path: Path, name: str, delimiter: str, encoding: str, told: list[str]
) -> None:
    content = PAIRS.format(d=delimiter).encode(encoding)
    path = tmp_path / name
    records, said = read(path, gzip.compress(content) if name.endswith(".gz") else content)
    assert [(r.prompt[0].content, r.chosen, r.rejected) for r in records] == [tuple(row.values()) for row in FOUND]
    assert len(said) == len(told)
    for line, word in zip(said, told, strict=True):
        assert line.startswith(f"{path}: ") and word in line and ("data." in line or "UTF-" in line)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_line_by_which_excel_names_the_delimiter_is_no_row(tmp_path: Path, ending: str) -> None:
    content = f"sep=;{ending}prompt;margin{ending}a, b;1{ending}"
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode())
    assert [(row.line, row.value) for row in read_rows(str(path))] == [(3, {"prompt": "a, b", "margin": 1})]


def test_a_delimiter_in_texts_does_not_outvote_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt\none; two; three\nfour; five\n", encoding="utf-8")
    assert [row.value for row in read_rows(str(path))] == [{"prompt": "one; two; three"}, {"prompt": "four; five"}]
    path.write_text('prompt,note\n"a;b;c",x\n"d;e;f",y\n', encoding="utf-8")
    assert [row.value for row in read_rows(str(path))] == [
        {"prompt": "a;b;c", "note": "x"},
        {"prompt": "d;e;f", "note": "y"},
    ]


@pytest.mark.parametrize("cell", ["1e999", "-1e999", "9" * 300 + "e99"])
def test_a_number_too_large_for_a_float_stays_text(cell: str) -> None:
    assert typed_cell("margin", cell) == cell
    assert typed_cell("margin", "1e300") == 1e300


def test_a_comma_is_a_decimal_comma_only_between_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Prompt;MARGIN\nQ;0,5\nR;-1,25\n", encoding="utf-8")
    assert [row.value["MARGIN"] for row in read_rows(str(path)) if row.value] == [0.5, -1.25]
    path.write_text('prompt,margin\nQ,"0,5"\n', encoding="utf-8")
    assert [row.value for row in read_rows(str(path))] == [{"prompt": "Q", "margin": "0,5"}]


def test_what_the_recipe_says_wins_and_nothing_is_told(tmp_path: Path) -> None:
    content = PAIRS.format(d=";").encode("cp1252")
    form = TextForm(delimiter=";", encoding="cp1252")
    records, said = read(tmp_path / "a.csv", content, text=form)
    assert len(records) == 2 and records[0].chosen == "Köln – schön" and said == []
    polish = 'prompt,chosen,rejected\n"zażółć","gęślą","jaźń"\n'.encode("cp1250")
    records, said = read(tmp_path / "b.csv", polish, text=TextForm(encoding="cp1250"))
    assert (records[0].prompt[0].content, records[0].chosen, records[0].rejected) == ("zażółć", "gęślą", "jaźń")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("zażółć gęślą jaźń", "cp1250"), ("привет мир", "cp1251"), ("şarkı ışık", "cp1254"), ("καλημέρα", "cp1253")],
)
def test_another_code_page_is_not_taken_for_windows_1252(tmp_path: Path, text: str, encoding: str) -> None:
    content = f"prompt,note\nplain,x\n{text},y\n".encode(encoding)
    (tmp_path / "a.csv").write_bytes(content)
    stream = stream_of(tmp_path / "a.csv", Prompt)
    assert [record.prompt[0].content for record in stream] == ["plain"]
    assert dict(stream.counts.reasons) == {"line is not valid UTF-8": 1}
    assert "data.encoding" in remarks(stream.counts.as_dict())[0]


def test_utf8_with_a_damaged_row_costs_that_row_only(tmp_path: Path) -> None:
    content = "prompt,note\nschön,x\n".encode() + b"sch\xf6n,y\n" + "grün,z\n".encode()
    (tmp_path / "a.csv").write_bytes(content)
    stream = stream_of(tmp_path / "a.csv", Prompt)
    assert [record.prompt[0].content for record in stream] == ["schön", "grün"]
    assert stream.counts.quarantined == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_utf_16_json_is_read_by_its_byte_order_mark(tmp_path: Path, name: str) -> None:
    """As PowerShell's `>` writes it."""
    text = '{"prompt": "schön 👍"}'
    records, said = read(tmp_path / name, (f"[{text}]" if name == "a.json" else text).encode("utf-16"), Prompt)
    assert [record.prompt[0].content for record in records] == ["schön 👍"]
    assert len(said) == 1 and "UTF-16" in said[0]


def test_a_torn_character_costs_its_row(tmp_path: Path) -> None:
    content = "\ufeffprompt\ngood\nbad".encode("utf-16-le") + b"\x00\xd8\n\x00" + "fine\n".encode("utf-16-le")
    (tmp_path / "a.csv").write_bytes(content)
    rows = list(read_rows(str(tmp_path / "a.csv")))
    assert [row.value for row in rows if row.value] == [{"prompt": "good"}, {"prompt": "fine"}]
    assert [row.problem.reason for row in rows if row.problem] == ["is not valid UTF-8"]


@given(text=st.text(st.characters(codec="cp1252", exclude_categories=("Cc",)), min_size=1, max_size=40))
def test_a_named_encoding_gives_back_every_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(f"{text}.\n".encode("cp1252"))
    assert [row.value for row in read_rows(str(path), text=TextForm(encoding="cp1252"))] == [{"prompt": f"{text}."}]


def test_plain_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfFirst  \r\n\r\n   \n Second, with a comma\nlast"
    records, said = read(tmp_path / "a.txt", content, Prompt)
    assert [record.prompt[0].content for record in records] == ["First  ", " Second, with a comma", "last"]
    assert said == []
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(content))
    assert kind_of_sources([str(tmp_path / "b.txt.gz")]) == "prompts"
    with pytest.raises(DataError, match="fit no format of a demonstration"):
        list(stream_of(tmp_path / "a.txt", Demonstration))


def test_a_text_file_beside_data_is_a_note_about_them(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text("All rights reserved\n")
    assert [part.form for part in locate(str(tmp_path))] == ["txt"]
    (tmp_path / "a.csv").write_text("prompt\nhi\n")
    assert [part.form for part in locate(str(tmp_path))] == ["csv"]


def test_many_files_written_alike_are_told_in_one_line(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.csv").write_text(f"prompt;note\nQ{number};x\n", encoding="utf-8")
    stream = stream_of(tmp_path, Prompt)
    assert len(list(stream)) == 30
    assert remarks(stream.counts.as_dict()) == [
        f"{tmp_path / '00.csv'} and 29 more: its cells are separated by semicolons; if not, set data.delimiter"
    ]


# --- Headers and cells -------------------------------------------------------------------------------------------


def test_capitals_spaces_and_hyphens_in_headers(tmp_path: Path) -> None:
    content = b"Prompt,Response 1, RESPONSE-2 ,Preferred,Note\nQ,A,B,2,x\n"
    records, _ = read(tmp_path / "a.csv", content)
    assert (records[0].chosen, records[0].rejected, records[0].extra) == ("B", "A", {"Note": "x"})
    assert kind_of_sources([str(tmp_path / "a.csv")]) == "preferences"
    records, _ = read(tmp_path / "a.jsonl", b'{"Prompt": "Q", "CHOSEN": "A", "Rejected": "B", "ID": 7}\n')
    assert (records[0].chosen, records[0].id) == ("A", "7")


def test_an_ambiguous_header_is_left_alone(tmp_path: Path) -> None:
    """The column with the known name is read; of two that could be meant neither is."""
    records, _ = read(tmp_path / "a.csv", b"prompt,Prompt\nQ,other\n", Prompt)
    assert (records[0].prompt[0].content, records[0].extra) == ("Q", {"Prompt": "other"})
    with pytest.raises(DataError, match=r"columns \(Prompt, PROMPT\) fit no format"):
        read(tmp_path / "b.csv", b"Prompt,PROMPT\nQ,other\n", Prompt)


@pytest.mark.parametrize(
    ("label", "vote"),
    [
        *[
            (word, True)
            for word in ("👍", "👍🏽", "👍\ufe0f", "thumbs_up", "ThumbsUp", "thumbs up", "Thumbs-Up", ":thumbsup:")
        ],
        *[(word, True) for word in ("yes", "Y", "good", "POSITIVE", "liked", "1", "1.0", "True", " up ", 1, 1.0, True)],
        *[
            (word, False)
            for word in ("👎", "👎🏿", "👎\ufe0e", "thumbs_down", "thumbsdown", "No", "n", "bad", "negative")
        ],
        *[(word, False) for word in ("Disliked", "0", "FALSE", "down", 0, 0.0, False)],
    ],
)
def test_votes_as_people_write_them(tmp_path: Path, label: Any, vote: bool) -> None:
    row = json.dumps({"prompt": "Q", "completion": "A", "label": label}).encode()
    records, _ = read(tmp_path / "a.jsonl", row, Vote)
    assert records[0].label is vote
    if isinstance(label, str):
        records, _ = read(tmp_path / "a.csv", f"Prompt;Completion;Label\nQ;A;{label}\n".encode(), Vote)
        assert records[0].label is vote


def test_words_for_a_missing_value_are_told_and_kept(tmp_path: Path) -> None:
    content = (
        b"prompt,completion\nQ1,#REF!\nQ2,fine\nQ3, n/a \nQ4,NULL\nQ5,#REF!\n#VALUE!,x\nQ7,NULL is a value in SQL\n"
    )
    path = tmp_path / "a.csv"
    records, said = read(path, content, Demonstration)
    assert len(records) == 7
    assert len(said) == 1
    assert said[0].startswith("warning: 5 records ")
    for told in ("'#REF!' (2)", "'n/a' (1)", "'NULL' (1)", "'#VALUE!' (1)"):
        assert told in said[0]
    assert said[0].endswith(f"({path}:2, {path}:4, {path}:5, {path}:6, {path}:7)")


def test_many_missing_values_name_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    content = "prompt,chosen,rejected\n" + "".join(f"Q{n},nan,B{n}\n" for n in range(50))
    _, said = read(path, content.encode())
    assert "50 records" in said[0] and said[0].endswith(f"{path}:21, …)") and f"{path}:22" not in said[0]


# --- The settings ------------------------------------------------------------------------------------------------


def test_delimiters_and_encodings_by_name() -> None:
    assert [delimiter_named(word) for word in (";", "tab", "\\t", "\t", "Semicolon")] == [";", "\t", "\t", "\t", ";"]
    assert [encoding_named(word) for word in ("UTF8", "windows-1252", "latin-1")] == ["utf-8", "cp1252", "iso8859-1"]
    for word in ("", ";;", "a", '"', "\n", "ß"):
        with pytest.raises(ValueError, match="is not a character"):
            delimiter_named(word)
    for word in ("", "base64", "utf-7-nonsense", "rot13", "a\0b"):
        with pytest.raises(ValueError, match="is not a text encoding"):
            encoding_named(word)


def test_the_settings_belong_to_what_a_run_was_prepared_with(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    template = ChatTemplate(make_tokenizer("chatml"))
    source = tmp_path / "a.csv"
    source.write_bytes(PAIRS.format(d=";").encode("cp1252"))

    def prepared(began_with: dict[str, Any] | None = None, **settings: Any) -> Prepared:
        section = DataSection(train=str(source), heldout_fraction=0.0, **settings)
        return Preparation(tmp_path / "data", section, Preference, template, 0, Quarantine()).stores(began_with)

    first = prepared()
    assert first.counts["train"]["rows"] == 2
    assert len(first.counts["train"]["read_as"]) == 2
    with pytest.raises(CheckpointError, match="differ from those that this run started with"):
        prepared({"key": first.key, "digests": first.digests}, encoding="latin-1")
    shutil.rmtree(tmp_path / "data")
    told = prepared(delimiter=";", encoding="windows-1252")
    assert told.digests == first.digests
    assert told.key != first.key
    assert told.counts["train"]["read_as"] == {}


@pytest.mark.parametrize(
    ("setting", "told"),
    [("delimiter=ab", "data.delimiter is 'ab'"), ("encoding=klingon", "data.encoding is 'klingon'")],
)
def test_settings_that_cannot_be_are_refused_with_the_rule(setting: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, [f"data.{setting}"], DpoRecipe)
    assert setting.partition("=")[2] in str(caught.value) and "write" in str(caught.value).lower(), told
