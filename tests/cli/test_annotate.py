"""prefine annotate: import, export, status and the refusals of each; the page has tests of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.annotation.project import Project
from prefine.cli.app import main
from prefine.web.server import listening_socket
from tests.annotation.projects import vote


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["annotate", *arguments])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"Q{n}", "chosen": f"good {n}", "rejected": f"bad {n}", "model": "dpo", "rejected_model": "sft"}
        for n in range(4)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "pairs.jsonl"


def judge(*said: str) -> None:
    with Project(Path("project.db")) as found:
        found.join("ann")
        for each in said:
            vote(found, each)


def test_import_makes_a_project_with_the_settings_and_adds_to_it(
    pairs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("project.db").touch()  # what a kill leaves
    Path("rules.md").write_text("*Read* both.")
    options = [
        "--criterion",
        "helpful",
        "--overlap",
        "2",
        "--no-ties",
        "--instructions",
        "rules.md",
        "--order",
        "given",
    ]
    assert run("import", pairs, *options) == 0
    assert "4 items added to project.db, which has 4" in capsys.readouterr().err
    with Project(Path("project.db")) as found:
        settings = found.settings
    assert (settings.criteria, settings.overlap, settings.allow_ties) == (("helpful",), 2, False)
    assert (settings.instructions, settings.order, settings.allow_notes) == ("*Read* both.", "given", True)
    Path("more.jsonl").write_text('{"prompt": "new", "answers": ["a", "b"]}\n')
    assert run("import", pairs, "more.jsonl", "--overlap", "2") == 0
    said = capsys.readouterr().err
    assert "4 items that the project has already" in said
    assert "1 item added to project.db, which has 5" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["import", "pairs.jsonl", "--overlap", "3"], "--overlap: project.db has '1'"),
        (["import", "pairs.jsonl", "--criterion", "<b>", "--project", "new.db"], "--criterion: "),
        (["import", "pairs.jsonl", "--repeats", "nan", "--project", "new.db"], "Invalid value for '--repeats'"),
        (["import", "none.jsonl", "--project", "new.db"], "none.jsonl: no such file"),
        (["import", "pairs.jsonl", "--instructions", "none.md", "--project", "new.db"], "--instructions: none.md"),
        (["import", "pairs.jsonl", "--project", "pairs.jsonl"], "is not a SQLite database, as project.db is one"),
        (["export", "none.db", "--to", "votes"], "none.db: cannot be opened"),
        (["export", "--to", "csv"], "--out: this format is not printed"),
        (["export", "--to", "openai-evals", "--out", "evals"], "no row can be written"),
        (["status", "pairs.jsonl"], "is not a SQLite database"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], told: str, pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", pairs) == 0
    capsys.readouterr()
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert not Path("new.db").exists()


def test_every_format_is_exported(pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", pairs, "--order", "given") == 0
    judge("dpo", "sft", "tie", "skip")
    capsys.readouterr()
    assert run("export", "--to", "preferences") == 0
    shown = capsys.readouterr()
    assert [json.loads(line)["model"] for line in shown.out.splitlines()[:2]] == ["dpo", "sft"]
    assert shown.err == "3 preferences\n1 event without a row: vote is a skip\n"
    assert run("export", "--to", "votes", "--out", "votes.jsonl") == 0
    assert len(Path("votes.jsonl").read_text().splitlines()) == 4
    assert run("export", "--to", "arena", "--out", "arena.jsonl") == 0
    assert [json.loads(line)["winner"] == "tie" for line in Path("arena.jsonl").read_text().splitlines()] == [
        False,
        False,
        True,
    ]
    assert run("export", "--to", "csv", "--out", "votes.csv") == 0
    assert Path("votes.csv").read_text().count("\n") >= 5
    capsys.readouterr()
    assert run("export", "--to", "openai-evals", "--out", "evals") == 0
    assert run("export", "--to", "promptfoo", "--out", "promptfoo") == 0
    said = capsys.readouterr().err
    assert "1 event without a row: is a tie" in said
    assert "oaieval MODEL people --registry_path evals" in said
    assert "promptfoo eval -c promptfoo/promptfooconfig.yaml" in said


@pytest.mark.parametrize("to", ["preferences", "votes", "arena", "csv", "openai-evals", "promptfoo"])
@pytest.mark.parametrize("out", ["project.db", "link.db", "./project.db-wal", "project.db.sessions"])
def test_no_export_is_written_over_the_project(
    to: str, out: str, pairs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("import", pairs) == 0
    judge("dpo", "dpo")
    Path("link.db").symlink_to("project.db")
    before = Path("project.db").read_bytes()
    capsys.readouterr()
    assert run("export", "--to", to, "--out", out) == 2
    assert "is the project, or belongs to it, and would be lost" in capsys.readouterr().err
    assert Path("project.db").read_bytes() == before


def test_a_spreadsheet_replaces_no_file_with_content(pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", pairs) == 0
    judge("dpo")
    Path("mine.csv").write_text("mine")
    Path("empty.csv").touch()
    capsys.readouterr()
    assert run("export", "--to", "csv", "--out", "mine.csv") == 2
    assert "a file with content is not replaced" in capsys.readouterr().err
    assert Path("mine.csv").read_text() == "mine"
    assert run("export", "--to", "csv", "--out", "empty.csv") == 0


@pytest.mark.parametrize("command", [["compare", "none/a", "none/b"], ["open", "--reward", "none/c"]])
def test_who_may_come_in_is_settled_before_any_work(
    command: list[str], pairs: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFINE_PASSWORD", raising=False)
    assert run("import", pairs) == 0
    capsys.readouterr()
    assert run(*command, "--host", "0.0.0.0") == 2
    assert "there is no password" in capsys.readouterr().err
    with listening_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert run(*command, "--port", str(port)) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_status_shows_progress_and_what_the_votes_say(pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", pairs, "--order", "given") == 0
    capsys.readouterr()
    assert run("status") == 0
    assert capsys.readouterr().out == "4 items, 0 of them complete; 0 votes, 4 missing\n"
    judge("dpo", "dpo", "skip")
    assert run("status") == 0
    shown = capsys.readouterr().out
    assert "4 items, 2 of them complete; 2 votes, 2 missing\n  ann: 3 votes (1 skip" in shown
    assert run("status", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["progress"]["votes"], value["progress"]["annotators"][0]["name"]) == (2, "ann")
    assert value["findings"]
