"""`prefine data audit`: output, files, refusals before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefine.cli.app import main
from tests.cli.test_data import model  # noqa: F401
from tests.data.audit.writing import pair, written

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(FILE, …)` runs the verb: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main(["data", "audit", *map(str, arguments)])
        shown = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, shown.out, shown.err

    return call


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Two rows and a copy of the first."""
    return written(tmp_path / "rows.jsonl", [pair(1), pair(2), pair(1)])


def test_findings_page_json_and_copy(run: Run, source: str, tmp_path: Path) -> None:
    code, out, _ = run(source, "--out", tmp_path / "audit", "--fix", tmp_path / "clean.jsonl")
    assert code == 0
    assert "HIGH   Exact duplicates" in out and f"{source}:3 ↔ {source}:1" in out
    assert "2 of 3 rows; repeats an earlier row: 1" in out
    assert (tmp_path / "audit" / "audit.html").is_file()
    assert len((tmp_path / "clean.jsonl").read_text().splitlines()) == 2


def test_rows_of_several_kinds_are_named(run: Run, tmp_path: Path) -> None:
    mixed = written(tmp_path / "mixed.jsonl", [pair(1), pair(2), {"prompt": "q", "completion": "a", "label": True}])
    _, out, _ = run(mixed)
    assert "HIGH   Rows of other kinds" in out and "the rows are 2 preferences and 1 votes" in out


def test_one_json_object(run: Run, source: str, tmp_path: Path) -> None:
    code, out, _ = run(source, "--json", "--fix", tmp_path / "clean.jsonl")
    held = json.loads(out)
    assert code == 0 and held["facts"]["duplicates"] == 1
    assert held["fixed"]["kept"] == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--near"], "--near only changes what --fix leaves out"),
        (["--contradictions", "drop"], "--contradictions drop only changes what --fix leaves out"),
        (["--fix", "rows.jsonl"], "--fix is rows.jsonl, which is a source"),
        (["--fix", "clean.csv"], "--fix is clean.csv, and the sources are jsonl files"),
        (["--fix", "taken.jsonl"], "--fix: taken.jsonl exists"),
        (["--out", "taken.jsonl"], "taken.jsonl is not a folder"),
        (["--heldout", "nothing.jsonl"], "nothing.jsonl: no such file"),
        (["--kind", "votes"], "rows.jsonl"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_refusals(
    run: Run, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.jsonl").write_text("mine\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = run("rows.jsonl", *options)
    assert (code, out) == (2, "") and says in err and len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tokens_are_counted_with_a_model(run: Run, source: str, model: Path) -> None:  # noqa: F811
    code, out, _ = run(source, "--model", model, "--json")
    lengths = next(each for each in json.loads(out)["findings"] if each["check"] == "token_lengths")
    assert code == 0 and lengths["figures"]["estimated"] is False
