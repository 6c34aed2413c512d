"""Which rows feedback gives, by hand, and that every event is in one or has a reason."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.feedback.database import opened_for_reading
from prefine.feedback.judgements import Judgements
from prefine.feedback.preference_pairs import Pairs
from prefine.feedback.store import EVENT_KINDS, FeedbackSettings, FeedbackStore, NewEvent
from prefine.feedback.training_rows import Wanted, content_digest, feedback_rows
from tests.feedback.feedback_store import ASKED, WITH_TEXTS, going_on, register

Tell = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(tmp_path / "feedback.db", WITH_TEXTS) as store:
        yield store


def pairs(store: FeedbackStore) -> list[tuple[str, str, str]]:
    """The rule, the chosen and the rejected text of each row of preferences."""
    found = []
    for row in feedback_rows(store.path, "preferences"):
        if row.value is not None:
            (chosen,), (rejected,) = row.value["chosen"], row.value["rejected"]
            assert chosen["role"] == rejected["role"] == "assistant"
            found.append((row.value["source"], chosen["content"], rejected["content"]))
    return found


def reasons(store: FeedbackStore, wanted: Wanted) -> dict[int, str]:
    return {row.number: " ".join(row.unused) for row in feedback_rows(store.path, wanted) if row.unused is not None}


def answers(store: FeedbackStore, **texts: str) -> None:
    for identifier, text in texts.items():
        register(store, identifier, text)


def test_a_correction_is_better_than_the_answer(store: FeedbackStore) -> None:
    answers(store, a="one")
    store.record(NewEvent("a", "correction", text="first"))
    store.record(NewEvent("a", "correction", text="second"))
    assert pairs(store) == [("correction", "second", "one")]
    assert reasons(store, "preferences") == {1: "event was replaced by a later one"}
    store.record(NewEvent("a", "correction", text="one"))  # taken back
    assert pairs(store) == []
    assert reasons(store, "preferences")[3] == "correction is the answer itself"


def test_thumbs_pair_answers_to_one_conversation_only(store: FeedbackStore) -> None:
    answers(store, a="one", b="two", c="three")
    register(store, "d", "four", asked=going_on("zero"))
    store.record(NewEvent("a", "up"))
    assert reasons(store, "preferences") == {1: "thumb has no answer to the same conversation with the opposite thumb"}
    store.record(NewEvent("d", "down"))
    assert pairs(store) == []
    store.record(NewEvent("b", "down"))
    store.record(NewEvent("c", "down"))
    assert pairs(store) == [("thumbs", "one", "two"), ("thumbs", "one", "three")]
    store.record(NewEvent("b", "withdrawn"))
    assert pairs(store) == [("thumbs", "one", "three")]
    found = reasons(store, "preferences")
    assert (found[3], found[5]) == ("event was replaced by a later one", "thumb was taken back")


def test_the_same_conversation_may_be_written_as_text_or_blocks(store: FeedbackStore) -> None:
    register(store, "a", "one")
    register(store, "b", "two", asked=[{"role": "user", "content": [{"type": "text", "text": ASKED[0]["content"]}]}])
    store.record(NewEvent("a", "up"))
    store.record(NewEvent("b", "down"))
    assert pairs(store) == [("thumbs", "one", "two")]


def test_tools_make_another_conversation(store: FeedbackStore) -> None:
    register(store, "a", "one")
    register(store, "b", "two", tools=[{"type": "function", "function": {"name": "track"}}])
    store.record(NewEvent("a", "preferred", other_id="b"))
    assert pairs(store) == []
    assert reasons(store, "preferences") == {1: "answers are not to the same conversation"}


def test_the_last_comparison_of_two_answers_holds_and_goes_before_thumbs(store: FeedbackStore) -> None:
    answers(store, a="one", b="two")
    store.record(NewEvent("a", "preferred", other_id="b"))
    store.record(NewEvent("b", "preferred", other_id="a"))
    assert pairs(store) == [("preferred", "two", "one")]
    store.record(NewEvent("a", "up"))
    store.record(NewEvent("b", "down"))
    assert pairs(store) == [("preferred", "two", "one")]
    contradicted = "event says the opposite of what people said of the two answers otherwise"
    assert reasons(store, "preferences") == {1: "event was replaced by a later one", 3: contradicted, 4: contradicted}


def test_a_regenerated_answer_needs_to_be_accepted(store: FeedbackStore) -> None:
    answers(store, a="one", b="two", c="three")
    store.record(NewEvent("b", "regenerated", other_id="a"))
    store.record(NewEvent("c", "regenerated", other_id="b"))
    assert pairs(store) == []
    assert set(reasons(store, "preferences").values()) == {
        "regenerated answer has no thumb up, and the conversation does not go on with it"
    }
    register(store, "d", "four", asked=going_on("three"))
    assert pairs(store) == [("regenerated", "three", "one"), ("regenerated", "three", "two")]
    assert reasons(store, "preferences") == {}
    store.record(NewEvent("a", "up"))  # an answer that was liked was not asked for again because it was bad
    assert pairs(store) == [("regenerated", "three", "two")]


def test_a_thumb_up_accepts_and_a_thumb_down_refuses(store: FeedbackStore) -> None:
    answers(store, a="one", b="two")
    store.record(NewEvent("b", "regenerated", other_id="a"))
    store.record(NewEvent("b", "up"))
    assert pairs(store) == [("regenerated", "two", "one")]
    store.record(NewEvent("b", "down"))
    register(store, "c", "three", asked=going_on("two"))
    assert pairs(store) == []


def test_a_circle_of_regenerations_ends(store: FeedbackStore) -> None:
    answers(store, a="one", b="two")
    store.record(NewEvent("b", "regenerated", other_id="a"))
    store.record(NewEvent("a", "regenerated", other_id="b"))
    store.record(NewEvent("a", "up"))
    assert pairs(store) == [("regenerated", "one", "two")]


def test_equal_and_cut_answers_make_no_pair(store: FeedbackStore) -> None:
    answers(store, a="one", b="one", c="two")
    register(store, "d", "one and a ha", finish_reason="length")
    store.record(NewEvent("a", "preferred", other_id="b"))
    store.record(NewEvent("d", "preferred", other_id="c"))
    store.record(NewEvent("c", "preferred", other_id="d"))  # a cut answer may be the worse one
    assert pairs(store) == [("preferred", "two", "one and a ha")]
    assert reasons(store, "preferences")[1] == "answers are the same text"
    store.record(NewEvent("d", "preferred", other_id="a"))
    assert "was cut before the model ended it" in reasons(store, "preferences")[4]


def test_votes_are_the_last_thumbs(store: FeedbackStore) -> None:
    answers(store, a="one", b="two", c="three")
    register(store, "d", "four and a ha", finish_reason="length")
    for identifier, kind in (("a", "down"), ("a", "up"), ("b", "down"), ("c", "up"), ("c", "withdrawn"), ("d", "up")):
        store.record(NewEvent(identifier, kind))  # type: ignore[arg-type]
    store.record(NewEvent("a", "correction", text="first"))
    found = [row.value for row in feedback_rows(store.path, "votes") if row.value is not None]
    assert found == [
        {
            "prompt": ASKED,
            "completion": [{"role": "assistant", "content": text}],
            "id": name,
            "model": "dpo",
            "label": up,
        }
        for name, text, up in (("a", "one", True), ("b", "two", False))
    ]
    assert reasons(store, "votes") == {
        1: "event was replaced by a later one",
        4: "event was replaced by a later one",
        5: "thumb was taken back",
        6: "answer was cut before the model ended it, so its end is not one to learn",
        7: "event is no vote on one answer",
    }


def test_a_demonstration_is_the_correction_or_a_voted_answer(store: FeedbackStore) -> None:
    answers(store, a="one", b="two")
    store.record(NewEvent("a", "down"))
    store.record(NewEvent("a", "correction", text="first"))
    store.record(NewEvent("b", "up"))
    found = [row.value for row in feedback_rows(store.path, "demonstrations") if row.value is not None]
    assert [(row["completion"][0]["content"], row.get("label")) for row in found] == [("first", None), ("two", True)]
    assert reasons(store, "demonstrations") == {1: "answer was corrected; the corrected text is the one to learn"}


def test_prompts_are_each_conversation_once(store: FeedbackStore) -> None:
    answers(store, a="one", b="two")
    register(store, "c", "three", asked=going_on("two"))
    found = [row.value for row in feedback_rows(store.path, "prompts") if row.value is not None]
    assert found == [{"prompt": ASKED, "id": "a"}, {"prompt": going_on("two"), "id": "c"}]


@pytest.mark.parametrize("wanted", ["votes", "preferences", "demonstrations"])
def test_thumbs_without_texts_become_no_rows_and_say_so(wanted: Wanted, tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "feedback.db", FeedbackSettings()) as store:
        answers(store, a="one", b="two")
        store.record(NewEvent("a", "up"))
        store.record(NewEvent("b", "down"))
        assert reasons(store, wanted) == dict.fromkeys(
            (1, 2), "texts were not stored, as the server ran without --store-prompts"
        )


def test_the_digest_changes_with_what_is_learned_and_not_with_the_file(store: FeedbackStore) -> None:
    answers(store, a="one", b="two")
    store.record(NewEvent("a", "up"))
    before = content_digest(store.path)
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert content_digest(store.path) == before
    store.record(NewEvent("a", "down"))
    assert content_digest(store.path) != before


EVENTS = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from(EVENT_KINDS), st.sampled_from("abcde")), max_size=12
)


@settings(max_examples=30)
@given(events=EVENTS, without=st.sampled_from(["", "c"]))
def test_every_event_is_in_a_row_or_has_a_reason(
    events: list[tuple[str, Any, str]], without: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("feedback") / "feedback.db"
    with FeedbackStore(path, WITH_TEXTS) as store:
        for number, name in enumerate("abcd"):
            register(store, name, str(number % 3), asked=None if name == without else ASKED)
        register(store, "e", "4", asked=going_on("1"))
        numbers = set()
        for about, kind, other in events:
            if (kind in ("preferred", "regenerated") and about == other) or (kind == "correction" and about == without):
                continue
            text = {"correction": f"{other}!"}.get(kind)
            other_id = other if kind in ("preferred", "regenerated") else None
            numbers.add(store.record(NewEvent(about, kind, text=text, other_id=other_id)).number)
    for wanted in ("votes", "demonstrations"):
        found = [row.number for row in feedback_rows(path, wanted)]  # type: ignore[arg-type]
        assert sorted(found) == sorted(numbers)
    with opened_for_reading(path) as connection:
        judgements = Judgements(connection)
    made = Pairs(judgements)
    corrected = {each.correction.number for each in judgements.completions.values() if each.correction is not None}
    assert made._used | made.unused.keys() | corrected == numbers
    assert not made._used & made.unused.keys()
    opposite = {(conversation, rejected, chosen) for conversation, chosen, rejected in made.pairs}
    assert not opposite & made.pairs.keys()
    rows = list(feedback_rows(path, "preferences"))
    assert {row.number for row in rows if row.unused} == made.unused.keys()
    assert all((row.value is None) != (row.unused is None) for row in rows)
    json.dumps([row.value for row in rows])


def test_what_is_past_the_retention_time_is_not_read_even_if_no_server_deletes_it(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with FeedbackStore(path, FeedbackSettings(store_texts=True, retention_days=30)) as store:
        for name in ("old", "new"):
            store.record(NewEvent(register(store, name, name), "up"))
        store.record(NewEvent("new", "preferred", other_id="old"))
    assert [len(list(feedback_rows(path, wanted))) for wanted in ("votes", "preferences")] == [3, 3]
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE completions SET at = at - 31 * 86400 WHERE id = 'old'")
    connection.close()
    assert [row.value["id"] for row in feedback_rows(path, "votes") if row.value is not None] == ["new"]
    assert [row.value for row in feedback_rows(path, "preferences")] == [None]
