"""The file of a project: whose it is, who may read it, what it refuses, and names and links of annotators."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefine.annotation.database import MIGRATIONS, PROJECT_FILE, is_project
from prefine.annotation.project import Project, ProjectReader, hash_of_token, is_begun
from prefine.annotation.records import AnnotationItem, JudgedAnswer, ProjectSettings, PromptTurn
from prefine.errors import CheckpointError, DataError
from prefine.feedback.database import is_feedback
from prefine.feedback.database import open_for_writing as open_feedback
from tests.annotation.projects import item, project, taken, vote


def by_token(found: Project, token: str) -> str | None:
    return found.by_token(hash_of_token(token))


def test_a_project_is_its_owners_alone_and_known_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    with project(path):
        assert {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()} == {0o600}
        assert is_project(path)
    assert not is_feedback(path)
    open_feedback(tmp_path / "feedback.db").close()
    with pytest.raises(DataError, match="not one with a project of prefine annotate"):
        Project(tmp_path / "feedback.db")


def test_it_is_opened_with_a_log_and_votes_are_flushed(tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found:
        vote(found, "dpo")
        assert found._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert found._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


@pytest.mark.parametrize("name", ["none.db", "a\0b", "folder"])
def test_what_is_no_project_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for opened in (Project, ProjectReader):
        with pytest.raises(DataError):
            opened(tmp_path / name)


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    path.write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        Project.create(path, ProjectSettings())
    assert path.read_text() == "mine"
    with pytest.raises(CheckpointError):
        Project.create(tmp_path / "none" / "project.db", ProjectSettings())
    with pytest.raises(CheckpointError):
        Project.create(tmp_path / "a\0b", ProjectSettings())


@pytest.mark.parametrize("left", ["nothing", "empty", "tables"])
def test_what_a_kill_left_of_a_project_is_made_anew(left: str, tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    if left == "empty":
        path.touch()
    if left == "tables":  # as earlier releases wrote them before the settings
        PROJECT_FILE.open_for_writing(path).close()
        with pytest.raises(DataError, match="was not finished"):
            ProjectReader(path)
    assert not is_begun(path)
    Project.create(path, ProjectSettings(title="mine")).close()
    assert is_begun(path) and ProjectReader(path).settings.title == "mine"
    with pytest.raises(DataError, match="exists already"):
        Project.create(path, ProjectSettings(title="yours"))
    assert ProjectReader(path).settings.title == "mine"


def test_a_project_is_made_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "project.db"
    seen = []

    def killed(connection: sqlite3.Connection, settings: ProjectSettings) -> None:
        with contextlib.closing(sqlite3.connect(path)) as other:
            seen.extend(other.execute("SELECT name FROM sqlite_master").fetchall())
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("prefine.annotation.project.insert_settings", killed)
        with pytest.raises(KeyboardInterrupt):
            Project.create(path, ProjectSettings())
    assert not seen and not is_begun(path)
    Project.create(path, ProjectSettings()).close()


def test_of_two_who_make_a_project_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "project.db"
    Project.create(path, ProjectSettings(title="mine")).close()
    monkeypatch.setattr("prefine.annotation.project.is_begun", lambda path: False)  # it looked before the other began
    with pytest.raises(DataError, match="exists already"):
        Project.create(path, ProjectSettings(title="yours"))
    assert ProjectReader(path).settings.title == "mine"


def test_tables_of_a_later_release_are_refused_and_older_ones_brought_forward(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    with project(path) as found:
        vote(found, "dpo")
    later = replace(PROJECT_FILE, migrations=(*MIGRATIONS, "ALTER TABLE votes ADD COLUMN origin TEXT;"))
    connection = later.open_for_writing(path)
    assert connection.execute("SELECT choice IS NOT NULL, origin FROM votes").fetchall() == [(1, None)]
    connection.close()
    with pytest.raises(DataError, match="Upgrade prefine"):
        Project(path)


def test_a_damaged_project_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    project(path).close()
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
    with pytest.raises(DataError, match="the annotation database cannot be used"):
        Project(path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("kind", "guess"),
        ("order", "random"),
        ("overlap", 0),
        ("repeats", 1.5),
        ("repeats", float("nan")),
        ("lease_minutes", 0.0),
        ("lease_minutes", float("inf")),
        ("title", "x" * 201),
        ("instructions", "\ud83d"),
        ("criteria", ("helpful", "helpful")),
        ("criteria", ("<b>",)),
        ("criteria", tuple(f"c{number}" for number in range(21))),
    ],
)
def test_settings_that_cannot_be(setting: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        Project.create(tmp_path / "project.db", ProjectSettings(**{setting: value}))
    assert refused.value.field == setting
    assert not list(tmp_path.iterdir())


def test_settings_and_items_come_back(tmp_path: Path) -> None:
    settings = ProjectSettings("Title", "*Read.*", "rank", ("helpful",), 3, 0.25, "given", 5.0, False, False, 7)
    prompt = (PromptTurn("system", "Be brief."), PromptTurn("user", "Grüße 🙂"))
    answers = tuple(JudgedAnswer(f"id{number}", f"answer {number}", f"m{number}", f"r{number}") for number in range(4))
    with Project.create(tmp_path / "project.db", settings) as found:
        assert found.add_items([AnnotationItem(9, "", prompt, "mail", answers)]) == 1
        assert found.settings == settings
        assert list(found.items()) == [AnnotationItem(1, "1", prompt, "mail", answers)]
        assert found.item(1) == next(found.items())
        with pytest.raises(DataError):
            found.item(2)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (replace(item(2), prompt=()), "prompt"),
        (replace(item(2), prompt=(PromptTurn("assistant", "Hi"),)), "prompt"),
        (replace(item(2), prompt=(PromptTurn("tool", "1"), PromptTurn("user", "Hi"))), "prompt"),
        (item(2, models=("dpo",)), "answers"),
        (item(2, models=("a", "b", "c")), "answers"),
        (replace(item(2), category="\udcff"), None),
    ],
)
def test_items_are_added_all_or_none(bad: AnnotationItem, field: str | None, tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 0) as found:
        with pytest.raises(DataError) as refused:
            found.add_items([item(1), bad])
        assert refused.value.field == field
        assert list(found.items()) == []
        assert found.next_task("ann") is None


def test_a_link_is_one_annotators_and_a_new_one_ends_the_old(tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found:
        first, other = found.annotator("ann"), found.annotator("bob")
        assert (by_token(found, first), by_token(found, other)) == ("ann", "bob")
        assert by_token(found, "") is None
        assert by_token(found, "\udcff") is None
        second = found.annotator("ann")
        assert (by_token(found, first), by_token(found, second)) == (None, "ann")
    everything = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert second.encode() not in everything  # only its hash is stored


@pytest.mark.parametrize("name", ["", " ann", "x" * 61, "a\nb", "a\u202eb", "\udcff"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found, pytest.raises(DataError) as refused:
        found.join(name)
    assert refused.value.field == "name"


def test_who_has_not_joined_gets_nothing(tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found:
        for ask in (found.next_task, found.undo, lambda name: found.pause(name, True)):
            with pytest.raises(DataError, match="is no annotator of this project"):
                ask("eve")


@pytest.mark.parametrize("priorities", [{9: 1.0}, {1: float("nan")}])
def test_priorities_that_cannot_be_change_nothing(priorities: dict[int, float], tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found:
        with pytest.raises(DataError):
            found.prioritise({2: 5.0} | priorities)
        assert found.settings.order == "given"
        assert taken(found).item.id == 1


def test_readers_see_what_another_process_has_written(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    with project(path) as found:
        reader = ProjectReader(path)
        votes = reader.votes()
        vote(found, "dpo")
        vote(found, "dpo")
        first = next(votes)
        vote(found, "dpo")
        assert [first, *votes] == list(reader.votes())[:2]  # one moment
        assert len(list(reader.votes())) == 3
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
