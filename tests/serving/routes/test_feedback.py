"""POST /v1/feedback: what is recorded, and that everything else is a typed error."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from prefine.feedback.store import FeedbackSettings, FeedbackStore, NewEvent
from prefine.feedback.training_rows import feedback_rows
from prefine.serving.routes.feedback import feedback_router
from prefine.web.guard import Guard
from prefine.web.handlers import install_handlers
from prefine.web.policy import access_policy
from tests.feedback.feedback_store import WITH_TEXTS, register

PATH = "/v1/feedback"


def client_of(store: FeedbackStore | None, api_key: str | None = None) -> TestClient:
    app = FastAPI()
    install_handlers(app)
    app.include_router(feedback_router(store))
    return TestClient(Guard(app, access_policy("127.0.0.1", api_key)), base_url="http://127.0.0.1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(tmp_path / "feedback.db", WITH_TEXTS) as store:
        for name, answer in (("a", "one"), ("b", "two")):
            register(store, name, answer)
        register(store, "a", "three", choice=1)
        yield store


@pytest.fixture
def client(store: FeedbackStore) -> TestClient:
    return client_of(store)


def count(store: FeedbackStore) -> int:
    return sum(1 for _ in feedback_rows(store.path, "votes"))


@pytest.mark.parametrize(
    "said",
    [
        {"thumb": "up"},
        {"thumb": "down", "choice": 1},
        {"thumb": "withdrawn", "key": "k"},
        {"correction": "One!"},
        {"preferred_over": "b"},
        {"preferred_over": "a", "other_choice": 1},
        {"regenerates": "b", "thumb": None},
    ],
)
def test_an_event_is_recorded_and_numbered(said: dict[str, Any], client: TestClient, store: FeedbackStore) -> None:
    answer = client.post(PATH, json={"completion_id": "a", **said})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"object": "feedback.event", "number": 1, "completion_id": "a", "repeated": False}
    assert count(store) == 1


def test_a_repeated_key_records_once(client: TestClient, store: FeedbackStore) -> None:
    bodies = [{"completion_id": "a", "thumb": "up", "key": "k"}] * 2
    assert [client.post(PATH, json=body).json()["repeated"] for body in bodies] == [False, True]
    assert count(store) == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"completion_id": "x", "thumb": "up"}, 404, "completion_not_found"),
        ({"completion_id": "a", "choice": 2, "thumb": "up"}, 404, "completion_not_found"),
        ({"completion_id": "a", "preferred_over": "x"}, 404, "completion_not_found"),
        ({"completion_id": "a", "preferred_over": "a"}, 400, "invalid_value"),
        ({"completion_id": "a", "thumb": "sideways"}, 400, "invalid_value"),
        ({"completion_id": "a", "thumb": True}, 400, "invalid_value"),
        ({"completion_id": "a"}, 400, "invalid_value"),
        ({"completion_id": "a", "thumb": "up", "correction": "x"}, 400, "invalid_value"),
        ({"completion_id": "a", "correction": " \n"}, 400, "invalid_value"),
        ({"completion_id": "a", "correction": "x" * 262_145}, 400, "invalid_value"),
        ({"completion_id": "a", "thumb": "up", "note": "x"}, 400, "invalid_value"),
        ({"completion_id": "a\u0000", "thumb": "up"}, 400, "invalid_value"),
        ({"completion_id": "a" * 201, "thumb": "up"}, 400, "invalid_value"),
        ({"completion_id": "a", "choice": -1, "thumb": "up"}, 400, "invalid_value"),
        ({"completion_id": 7, "thumb": "up"}, 400, "invalid_value"),
        ({"thumb": "up"}, 400, "missing_required_parameter"),
        ([], 400, "invalid_value"),
    ],
)
def test_what_cannot_be_recorded_is_a_typed_error(
    body: Any, status: int, code: str, client: TestClient, store: FeedbackStore
) -> None:
    answer = client.post(PATH, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert error["message"] and "\n" not in error["message"] and error["type"]
    assert count(store) == 0


def test_half_a_character_is_refused(client: TestClient) -> None:
    body = b'{"completion_id": "a", "correction": "\\ud800"}'
    answer = client.post(PATH, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_a_store_that_cannot_be_written_is_the_servers_fault(client: TestClient, store: FeedbackStore) -> None:
    """And what was not recorded is not acknowledged."""
    store._connection.execute("PRAGMA max_page_count = 1")  # as a full disk
    said = {"completion_id": "a", "correction": "x" * 100_000}
    answer = client.post(PATH, json=said)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "feedback_unavailable")
    store._connection.execute("PRAGMA max_page_count = 1000000")
    assert client.post(PATH, json=said).json()["number"] == 1


def test_a_key_used_for_another_event_is_a_conflict(client: TestClient) -> None:
    client.post(PATH, json={"completion_id": "a", "thumb": "up", "key": "k"})
    answer = client.post(PATH, json={"completion_id": "a", "thumb": "down", "key": "k"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "key_used_before")


def test_a_correction_needs_stored_texts(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "none.db") as store:
        register(store, "a", "one")
        answer = client_of(store).post(PATH, json={"completion_id": "a", "correction": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "texts_not_stored")
        assert "--store-prompts" in answer.json()["error"]["message"]
        assert client_of(store).post(PATH, json={"completion_id": "a", "thumb": "up"}).status_code == 200


def test_the_settings_say_what_is_stored(tmp_path: Path) -> None:
    settings = FeedbackSettings(store_texts=True, retention_days=30)
    with FeedbackStore(tmp_path / "a.db", settings) as store:
        assert client_of(store).get(PATH).json() == {
            "object": "feedback.settings",
            "enabled": True,
            "stores_texts": True,
            "redacts": True,
            "retention_days": 30,
        }
    off = client_of(None)
    assert off.get(PATH).json()["enabled"] is False
    assert (off.post(PATH, json={"completion_id": "a", "thumb": "up"}).json()["error"]["code"]) == "feedback_off"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json", "Origin": "http://evil.example"}, 403),
        ({"Content-Type": "application/json", "Host": "evil.example"}, 403),
        ({"Content-Type": "application/json", "Origin": "http://127.0.0.1"}, 200),
    ],
)
def test_only_pages_of_this_server_may_send_it(headers: dict[str, str], status: int, client: TestClient) -> None:
    body = b'{"completion_id": "a", "thumb": "up"}'
    assert client.post(PATH, content=body, headers=headers).status_code == status


def test_the_key_is_demanded_where_there_is_one(store: FeedbackStore) -> None:
    client = client_of(store, "secret")
    for method in ("GET", "POST"):
        assert client.request(method, PATH, json={}).status_code == 401
    assert client.get(PATH, headers={"Authorization": "Bearer secret"}).status_code == 200


SERVER = """
import sys, threading
from pathlib import Path
from tests.feedback.feedback_store import register
from tests.serving.page.page_server import page_server
with page_server(Path(sys.argv[1])) as served:
    register(served.store, "a", "")
    print(served.address, flush=True)
    threading.Event().wait()
"""


@pytest.mark.parametrize("acknowledged", [3, 60])
def test_acknowledged_thumbs_survive_the_death_of_the_server(acknowledged: int, tmp_path: Path) -> None:
    path, seen, enough = tmp_path / "feedback.db", set[str](), threading.Event()

    def post(poster: int, address: str) -> None:
        with httpx.Client() as client:
            for number in range(1_000):
                key = f"{poster}-{number}"
                try:
                    answer = client.post(address + PATH, json={"completion_id": "a", "thumb": "up", "key": key})
                except httpx.TransportError:
                    return  # it is dead
                assert answer.status_code == 200
                seen.add(key)
                if len(seen) >= acknowledged:
                    enough.set()

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        posters = [threading.Thread(target=post, args=(poster, address)) for poster in range(8)]
        for poster in posters:
            poster.start()
        assert enough.wait(60)
        server.send_signal(signal.SIGKILL)
        for poster in posters:
            poster.join()
    with FeedbackStore(path) as store:
        connection = sqlite3.connect(path)
        stored = [key for (key,) in connection.execute("SELECT key FROM events")]
        connection.close()
        assert len(seen) >= acknowledged and seen <= set(stored) and len(stored) == len(set(stored))
        assert all(store.record(NewEvent("a", "up", key=key)).repeated for key in stored)
