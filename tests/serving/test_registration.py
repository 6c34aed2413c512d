"""Answers of a real server are known to the feedback store when the client has them, so that a thumb becomes a row."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import DataError
from prefine.feedback.store import AnsweredRequest, FeedbackStore
from prefine.feedback.training_rows import feedback_rows
from prefine.serving.routes.feedback import feedback_router
from tests.feedback.feedback_store import WITH_TEXTS
from tests.serving.live import Live, make_service, running

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "My parcel is late."}]
CHAT: dict[str, Any] = {"messages": ASKED, "max_tokens": 6, "seed": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeedbackStore]:
    with FeedbackStore(tmp_path_factory.mktemp("feedback") / "feedback.db", WITH_TEXTS) as store:
        yield store


@pytest.fixture(scope="module")
def server(store: FeedbackStore, tiny_model: Path, no_cache_outside: None) -> Iterator[Live]:
    with running(make_service([tiny_model], feedback=store, slots=4), [feedback_router(store)]) as live:
        yield live


def known(store: FeedbackStore) -> set[tuple[str, int]]:
    connection = sqlite3.connect(store.path)
    try:
        return set(connection.execute("SELECT id, choice FROM completions"))
    finally:
        connection.close()


def thumb(server: Live, identifier: str, kind: str = "down") -> int:
    """Send it; the number of the event."""
    answer = server.post("/v1/feedback", {"completion_id": identifier, "thumb": kind})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["number"])


def test_a_thumb_on_an_answer_is_a_vote_on_what_was_asked_and_answered(server: Live, store: FeedbackStore) -> None:
    answer = server.post("/v1/chat/completions", CHAT).json()
    number = thumb(server, answer["id"])
    (row,) = [row.value for row in feedback_rows(store.path, "votes") if row.number == number]
    assert row is not None
    assert (row["prompt"], row["label"], row["model"]) == (ASKED, False, "tiny")
    assert row["completion"] == [{"role": "assistant", "content": answer["choices"][0]["message"]["content"]}]
    assert len(row["run_hash"]) == 64 and Path(row["run"]).is_dir()
    connection = sqlite3.connect(store.path)
    counts = connection.execute(
        "SELECT prompt_tokens, completion_tokens, finish_reason FROM completions WHERE id = ?", (answer["id"],)
    ).fetchone()
    connection.close()
    usage = answer["usage"]
    reason = answer["choices"][0]["finish_reason"]
    assert counts == (usage["prompt_tokens"], usage["completion_tokens"], reason)


def test_every_choice_is_known_when_its_last_chunk_comes(server: Live, store: FeedbackStore) -> None:
    ended = []
    with server.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True, "n": 3}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                for choice in chunk["choices"]:
                    if choice["finish_reason"]:
                        assert (chunk["id"], choice["index"]) in known(store)
                        ended.append(choice["index"])
    assert sorted(ended) == [0, 1, 2]


def test_other_routes_have_ids_for_feedback_too(server: Live, store: FeedbackStore) -> None:
    text = server.post("/v1/completions", {"prompt": "My parcel", "max_tokens": 4}).json()
    number = thumb(server, text["id"])
    (row,) = [row for row in feedback_rows(store.path, "votes") if row.number == number]
    assert row.unused is not None and "no conversation" in row.unused.reason
    said = {"input": "My parcel is late.", "instructions": "Be brief.", "max_output_tokens": 16}
    response = server.post("/v1/responses", said).json()
    number = thumb(server, response["id"])
    (value,) = [row.value for row in feedback_rows(store.path, "votes") if row.number == number]
    assert value is not None and value["prompt"] == ASKED


def test_scoring_of_a_prompt_is_no_answer(server: Live, store: FeedbackStore) -> None:
    before = known(store)
    body = {"prompt": "My parcel", "max_tokens": 0, "echo": True, "logprobs": 1}
    assert server.post("/v1/completions", body).status_code == 200
    assert known(store) == before


def test_an_answer_whose_client_left_is_not_known(server: Live, store: FeedbackStore) -> None:
    before = known(store)
    with server.http.stream(
        "POST", "/v1/chat/completions", json=CHAT | {"stream": True, "max_tokens": 400}
    ) as response:
        next(response.iter_lines())
    assert server.post("/v1/chat/completions", CHAT).status_code == 200
    assert len(known(store) - before) == 1


def test_a_store_that_fails_costs_the_feedback_and_not_the_answer(
    server: Live, store: FeedbackStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(answered: AnsweredRequest) -> None:
        raise DataError("feedback.db: the disk is full", "Free some space.")

    monkeypatch.setattr(store, "register", fail)
    with caplog.at_level(logging.WARNING, "prefine"):
        answer = server.post("/v1/chat/completions", CHAT)
    assert answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"]
    assert "the disk is full" in caplog.text
    unknown = server.post("/v1/feedback", {"completion_id": answer.json()["id"], "thumb": "up"})
    assert unknown.status_code == 404
