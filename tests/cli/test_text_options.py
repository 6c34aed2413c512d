"""--delimiter and --encoding of the commands that read rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.cli.app import main
from prefine.cli.options import text_form
from prefine.errors import RecipeError
from prefine.generation.row_settings import source_settings
from prefine.row_rules import AS_WRITTEN
from prefine.text_form import AS_FOUND, TextForm


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["data", "check", *arguments])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def test_an_encoding_that_cannot_be_found_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("prompt~chosen~rejected\nżółć~gęślą~jaźń\n".encode("cp1250"))
    code, _, said = check(capsys, str(path))
    assert code == 2 and said.startswith("error: ")
    code, out, _ = check(capsys, str(path), "--delimiter", "~", "--encoding", "cp1250", "--json")
    found = json.loads(out)
    assert (code, found["kind"], found["counts"]["records"]) == (0, "preferences", 1)
    assert found["counts"]["read_as"] == {}


def test_data_check_says_how_it_read_a_spreadsheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("Prompt;Chosen;Rejected\nKöln?;Schön;#REF!\n".encode("cp1252"))
    code, out, _ = check(capsys, str(path))
    assert code == 0
    assert f"{path}: is not UTF-8 and was read as Windows-1252 (cp1252)" in out
    assert f"{path}: its cells are separated by semicolons; if not, set data.delimiter" in out
    assert "warning: 1 records have a turn or an answer that means a missing value, '#REF!' (1)" in out
    assert f"({path}:2)" in out


@pytest.mark.parametrize(
    ("delimiter", "encoding", "told"),
    [
        (
            "ab",
            None,
            "--delimiter is 'ab', which is not a character that can separate cells. Write ',', ';', '|'",
        ),
        (None, "klingon", "--encoding is 'klingon', which is not a text encoding. Write for example utf-8"),
    ],
)
def test_a_value_that_cannot_be_is_refused(delimiter: str | None, encoding: str | None, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        text_form(delimiter, encoding)
    assert str(caught.value).startswith(told)


def test_they_belong_to_what_a_resume_must_repeat() -> None:
    form = text_form("tab", "windows-1252")
    assert form == TextForm("\t", "cp1252")
    settings = source_settings(["a.csv"], "train", form, AS_WRITTEN, None)
    assert (settings["delimiter"], settings["encoding"]) == ("\t", "cp1252")
    assert source_settings(["a.csv"], "train", AS_FOUND, AS_WRITTEN, None) != settings
