"""Streams as they are on the wire, and clients that leave in the middle of them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.models.tiny import save_folder
from tests.serving.live import Live, make_service, running, until

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 6, "stream": True}


def events(response: httpx.Response) -> list[tuple[str | None, str]]:
    """(event, data) of each frame; the frames are the whole body, each ended by an empty line."""
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.endswith("\n\n")
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        lines = block.split("\n")
        name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else None
        (data,) = lines
        assert data.startswith("data: ")
        found.append((name, data.removeprefix("data: ")))
    return found


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    *found, last = events(response)
    assert last == (None, "[DONE]")
    return [json.loads(data) for _, data in found]


def test_chunks_begin_with_the_role_and_end_with_the_reason(live: Live) -> None:
    found = chunks(live.post("/v1/chat/completions", CHAT | {"n": 2}))
    assert len({chunk["id"] for chunk in found}) == 1
    for index in (0, 1):
        own = [choice for chunk in found for choice in chunk["choices"] if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert own[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] in ("length", "stop")
    assert all("usage" not in chunk and chunk["choices"] for chunk in found)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_usage_comes_only_when_asked_for_and_without_choices(live: Live, path: str) -> None:
    body = CHAT if "chat" in path else {"prompt": "abc", "max_tokens": 6, "stream": True}
    assert all("usage" not in chunk for chunk in chunks(live.post(path, body)))
    *others, last = chunks(live.post(path, body | {"stream_options": {"include_usage": True}}))
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
    assert all(chunk["usage"] is None for chunk in others)


def test_a_response_stream_names_its_events(live: Live) -> None:
    found = events(live.post("/v1/responses", {"input": "hi", "max_output_tokens": 4, "stream": True}))
    assert all(name == json.loads(data)["type"] for name, data in found)
    assert found[-1][0] in ("response.incomplete", "response.completed")


@contextmanager
def failing(live: Live, after: int) -> Iterator[None]:
    """The model fails once, after so many steps."""
    (lane,) = live.service.worker._lanes.values()
    real, left = lane._make_writer().__class__.step, [after]

    def step(self: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("out of memory")
        return real(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(lane._writer), "step", step)
        yield


def test_an_error_in_the_middle_is_a_frame_and_then_the_stream_ends(live: Live) -> None:
    with failing(live, after=2):
        found = events(live.post("/v1/chat/completions", CHAT))
        assert live.get("/health").json()["status"] == "failing"
    error = json.loads(found[-1][1])["error"]
    assert error == {
        "message": "generation failed: RuntimeError; the server's log says more",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }
    assert len(found) >= 2  # what came before it
    with failing(live, after=2):
        last = events(live.post("/v1/responses", {"input": "hi", "stream": True}))[-1]
    assert last[0] == "error"
    assert json.loads(last[1])["code"] == "engine_error"
    assert live.chat().status_code == 200
    assert live.get("/health").json()["status"] == "ok"


def test_openais_client_raises_the_error_of_a_stream_and_of_a_response(live: Live, client: openai.OpenAI) -> None:
    settings: Any = {"model": "tiny", "messages": CHAT["messages"]}
    with failing(live, after=2), pytest.raises(openai.APIError, match="generation failed"):
        list(client.chat.completions.create(**settings, stream=True))
    with failing(live, after=2), pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(**settings)
    assert failed.value.code == "engine_error"
    assert live.chat().status_code == 200


def connected(live: Live) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def sent(live: Live, path: str, body: Any) -> socket.socket:
    """A connection on which a request was sent."""
    connection = connected(live)
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    return connection


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/generate"])
def test_a_client_that_leaves_frees_its_slot(live: Live, path: str, stream: bool) -> None:
    worker = live.service.worker
    body: dict[str, Any] = {"stream": stream} if path != "/generate" else {}
    body |= {
        "/v1/chat/completions": {"messages": CHAT["messages"], "max_tokens": 390},
        "/v1/responses": {"input": "hi", "max_output_tokens": 390},
    }.get(path, {"prompt": "hi", "max_tokens": 390})
    if path != "/v1/responses":
        body["logit_bias"] = {"257": -100}  # it does not end by itself
    steps = counted_steps(live)
    connection = sent(live, path, body)
    until(lambda: steps[0] >= 5)
    connection.close()
    until(lambda: worker.inbox.outstanding == 0)
    assert steps[0] < 300
    until(lambda: worker.state()["running"] == 0)


def counted_steps(live: Live) -> list[int]:
    """How many steps the server takes from here on, in the one entry of a list."""
    (lane,) = live.service.worker._lanes.values()
    count, step = [0], lane._writer.step

    def counting() -> Any:
        count[0] += 1
        return step()

    lane._writer.step = counting  # type: ignore[method-assign]
    return count


def test_a_client_that_leaves_while_it_waits_never_gets_a_slot(tiny_model: Path) -> None:
    with running(make_service([tiny_model], slots=1, max_tokens=400)) as live:
        body = {"prompt": "hi", "max_tokens": 390, "logit_bias": {"257": -100}}
        first = sent(live, "/v1/completions", body)
        until(lambda: live.service.worker.state()["running"] == 1)
        second = sent(live, "/v1/completions", body)
        until(lambda: live.service.worker.state()["waiting"] == 1)
        second.close()
        until(lambda: live.service.worker.state()["waiting"] == 0)
        first.close()
        until(lambda: live.service.worker.inbox.outstanding == 0)


def test_a_large_body_is_refused_while_health_answers(live: Live) -> None:
    connection = connected(live)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    connection.sendall(head + b"Content-Length: 67108864\r\n\r\n")
    answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in answer + connection.recv(4096)
    assert live.get("/health").status_code == 200
    connection.close()


def test_a_half_sent_request_holds_up_nobody(live: Live) -> None:
    half = [connected(live) for _ in range(20)]
    for place, connection in enumerate(half):
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n" if place % 2 else b"")
    assert live.chat().status_code == 200
    for connection in half:
        connection.close()


def test_a_model_that_writes_padded_batches_streams_and_is_left_as_others_are(
    tmp_path: Path, no_cache_outside: None
) -> None:
    folder = save_folder(tmp_path / "bloom", "bloom", n_layer=2, n_head=4, hidden_size=32, seq_length=512)
    service = make_service([folder], max_tokens=400)
    assert not service.models.language(None).loaded.packed.path.packed
    with running(service) as live:
        body = {"prompt": "hi", "max_tokens": 390, "logit_bias": {"257": -100}, "stream": True}
        whole = chunks(live.post("/v1/completions", {**body, "max_tokens": 20}))
        assert len(whole) > 2  # not all at the end of the batch
        connection = sent(live, "/v1/completions", body)
        assert connection.recv(100)
        begun = time.monotonic()
        connection.close()
        until(lambda: live.service.worker.inbox.outstanding == 0)
        until(lambda: live.service.worker.state()["running"] == 0)
        left_after = time.monotonic() - begun
        begun = time.monotonic()
        live.post("/v1/completions", {**body, "stream": False})
        assert left_after < (time.monotonic() - begun) / 2
