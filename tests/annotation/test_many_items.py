"""A request's work does not grow with the items: steps of SQLite's machine are counted, not seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefine.annotation.database import PROJECT_FILE
from prefine.annotation.project import Project
from prefine.annotation.records import AnnotationItem, JudgedAnswer, ProjectSettings, PromptTurn
from tests.annotation.projects import vote

ITEMS, NAMES = 50_000, [f"annotator-{number}" for number in range(20)]
MOST_STEPS = 20_000  # about two milliseconds
_GRAIN = 100


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the first annotator is 30,000 items ahead of all others."""
    path = tmp_path_factory.mktemp("many") / "project.db"
    answers = JudgedAnswer("", "yes", "sft"), JudgedAnswer("", "no", "dpo")
    with Project.create(path, ProjectSettings(overlap=20, repeats=0.1)) as found:
        found.add_items(
            AnnotationItem(0, f"q{number}", (PromptTurn("user", f"Question {number}?"),), f"c{number % 7}", answers)
            for number in range(ITEMS)
        )
        for name in NAMES:
            found.join(name)
    connection = PROJECT_FILE.open_for_writing(path)
    with PROJECT_FILE.transaction(connection, path, durable=False):
        connection.execute(
            "INSERT INTO votes (annotator, item, key, kind, choice, ranking, note, criteria, seconds, session, shown,"
            " repeat, at) SELECT 1, number, 'key' || number, 'compare', 'tie', '[]', '', '{}', 1, '', '[]', 0, 1"
            " FROM items ORDER BY rank LIMIT 30000"
        )
        connection.execute("UPDATE annotators SET done = 30000, firsts = 30000 WHERE number = 1")
        connection.execute("UPDATE items SET missing = 19 WHERE rank < 30000")
        connection.execute("UPDATE totals SET missing = missing - 30000")
    connection.close()
    return path


@contextmanager
def few_steps(found: Project) -> Iterator[None]:
    steps = 0

    def counted() -> int:
        nonlocal steps
        steps += _GRAIN
        return 0

    found._connection.set_progress_handler(counted, _GRAIN)
    yield
    found._connection.set_progress_handler(None, 0)
    assert steps <= MOST_STEPS


def test_twenty_annotators_and_fifty_thousand_items(path: Path) -> None:
    with Project(path) as found:
        ahead = found.next_task(NAMES[0])  # looks at what was judged, once
        assert ahead is not None
        assert ahead.done == 30_000
        for name in NAMES:
            with few_steps(found):
                vote(found, "dpo", name)
            with few_steps(found):
                found.undo(name)
            with few_steps(found):
                vote(found, "tie", name)
