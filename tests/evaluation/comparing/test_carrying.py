"""What was paid for and what people said survives an evaluation that begins anew, and is copied once."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.comparisons.win_rate import win_rate
from prefine.errors import DataError
from prefine.evaluation.comparing.carrying import carry_over
from prefine.evaluation.comparing.folder import EvaluationFolder
from prefine.evaluation.comparing.judgements import keep_judgements, kept_judgements
from prefine.judges.cache import Reply, ReplyCache
from tests.evaluation.comparing.test_judgements import row

MINE, OTHER = [row("a", "x", people="baseline")], [row("a", "another", people="candidate")]


def replies(file: Path, **texts: str) -> None:
    with ReplyCache(file) as cache:
        for key, text in texts.items():
            cache.put(key, "m", Reply(text, "stop"))


def text_in(file: Path, key: str) -> str | None:
    with ReplyCache(file) as cache:
        found = cache.get(key)
    return None if found is None else found.text


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The folder of an evaluation with replies of a judge and of an endpoint, and people's verdicts."""
    folder = tmp_path / "earlier"
    with EvaluationFolder(folder) as opened:
        keep_judgements(opened.judgements, MINE, [win_rate("people", ["baseline"], [])])
    replies(folder / "judge.db", one="paid", two="before")
    replies(folder / "replies.db", three="answered")
    return folder


def test_replies_and_verdicts_are_added_and_what_is_there_stays(earlier: Path, tmp_path: Path) -> None:
    now = tmp_path / "now"
    with EvaluationFolder(now) as opened:
        keep_judgements(opened.judgements, OTHER, [win_rate("people", ["candidate"], [])])
    replies(now / "judge.db", two="after")
    for _ in range(2):
        carry_over(earlier, now)
        assert [text_in(now / "judge.db", key) for key in ("one", "two", "three")] == ["paid", "after", None]
        assert text_in(now / "replies.db", "three") == "answered"
        for rows in (MINE, OTHER):  # each on its own answers
            plain = [each.model_copy(update={"verdicts": {}}) for each in rows]
            assert kept_judgements(now / "parts" / "judgements.json", plain, [])[0] == rows
    assert text_in(earlier / "judge.db", "one") == "paid"


def test_of_compared_endpoints_nothing_is_taken_over_when_they_are_asked_again(earlier: Path, tmp_path: Path) -> None:
    carry_over(earlier, tmp_path / "now", compared=False)
    assert text_in(tmp_path / "now" / "judge.db", "one") == "paid"
    assert not (tmp_path / "now" / "replies.db").exists()


def test_nothing_is_made_of_a_folder_that_holds_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    carry_over(tmp_path / "run", tmp_path / "now")
    assert not (tmp_path / "now").exists()


def test_damaged_replies_are_named_and_damaged_verdicts_kept(earlier: Path, tmp_path: Path) -> None:
    (earlier / "parts" / "judgements.json").write_text("{")
    carry_over(earlier, tmp_path / "now")
    kept = tmp_path / "now" / "parts" / "judgements.json"
    assert kept.read_text() == "{"
    with EvaluationFolder(tmp_path / "older") as opened:
        keep_judgements(opened.judgements, MINE, [win_rate("people", ["baseline"], [])])
    carry_over(tmp_path / "older", tmp_path / "now")
    assert kept_judgements(kept, MINE, [])[2] == []
    for each in earlier.glob("judge.db*"):
        each.unlink()
    (earlier / "judge.db").write_text("not a database, whatever its name says " * 9)
    with pytest.raises(DataError, match=r"earlier/judge\.db: the judges' replies cannot be used"):
        carry_over(earlier, tmp_path / "now")
