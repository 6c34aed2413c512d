"""What the guard lets through, and what every response says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from prefine.web.errors import ApiError
from prefine.web.guard import SECURITY_HEADERS, Guard
from prefine.web.policy import access_policy

JSON = {"content-type": "application/json"}
LIMIT = 1000


async def echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


async def fail(request: Request) -> Response:
    raise ValueError((await request.body()).decode())


ROUTES = [Route("/echo", echo, methods=["GET", "POST"]), Route("/fail", fail, methods=["POST"]), Route("/health", echo)]


def app(**settings: Any) -> Starlette:
    settings = {"api_key": None, "max_body_bytes": LIMIT, **settings}
    guard = Middleware(Guard, policy=access_policy("127.0.0.1", **settings))  # type: ignore[arg-type]
    return Starlette(routes=ROUTES, middleware=[guard])


def ask(method: str = "POST", path: str = "/echo", guard: Starlette | None = None, **options: Any) -> httpx.Response:
    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app=guard or app())
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


def code(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return str(error["code"])


def test_json_passes() -> None:
    response = ask(content=b'{"a": 1}', headers=JSON | {"origin": "http://127.0.0.1:8000"})
    assert (response.status_code, response.text) == (200, '{"a": 1}')


@pytest.mark.parametrize(
    ("status", "expected", "headers"),
    [
        (403, "host_not_allowed", JSON | {"host": "evil.com"}),
        (403, "origin_not_allowed", JSON | {"origin": "http://evil.com"}),
        (403, "origin_not_allowed", JSON | {"origin": "null"}),
        (415, "unsupported_media_type", {"content-type": "text/plain"}),
        (415, "unsupported_media_type", {"content-type": "application/x-www-form-urlencoded"}),
        (415, "unsupported_media_type", {"content-type": "multipart/form-data; boundary=x"}),
        (415, "unsupported_media_type", {}),
    ],
)
def test_what_a_page_of_another_site_can_send_is_refused(status: int, expected: str, headers: dict[str, str]) -> None:
    response = ask(content=b"{}", headers=headers)
    assert (response.status_code, code(response)) == (status, expected)


def test_reading_needs_no_origin() -> None:
    assert ask("GET", headers={"origin": "http://evil.com"}).status_code == 200


def test_two_host_headers_are_refused() -> None:
    sent = [("host", "127.0.0.1:8000"), ("host", "evil.com")]
    assert ask("GET", headers=sent).status_code == 403


def test_the_key_is_asked_for_on_all_paths_but_the_open_ones() -> None:
    guard = app(api_key="right-key")
    for path in ("/echo", "/nowhere", "/fail"):
        refused = ask(path=path, guard=guard, content=b"{}", headers=JSON)
        assert (refused.status_code, code(refused), refused.headers["www-authenticate"]) == (
            401,
            "invalid_api_key",
            "Bearer",
        )
    assert ask("GET", "/health", guard).status_code == 200
    assert ask("GET", "/echo", guard, headers={"authorization": "Bearer right-key"}).status_code == 200


def test_a_large_body_is_refused_by_its_length_before_it_is_read() -> None:
    async def never() -> dict[str, Any]:
        raise AssertionError("the body was read")

    messages = asyncio.run(called(app(), {"content-length": str(64 * 1024**2)}, never))
    assert messages[0]["status"] == 413
    assert (b"connection", b"close") in messages[0]["headers"]


def test_a_large_body_of_unknown_length_is_read_no_further_than_the_limit() -> None:
    read = 0

    async def endless() -> dict[str, Any]:
        nonlocal read
        read += 100
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    messages = asyncio.run(called(app(), {"transfer-encoding": "chunked"}, endless))
    assert messages[0]["status"] == 413
    assert LIMIT < read <= LIMIT + 100


def test_a_body_that_does_not_arrive_ends_the_request() -> None:
    async def stuck() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    messages = asyncio.run(called(app(body_timeout_s=0.05), {"content-length": "10"}, stuck))
    assert messages[0]["status"] == 408


def test_a_client_that_leaves_within_its_body_gets_nothing() -> None:
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert asyncio.run(called(app(), {"content-length": "10"}, gone)) == []


def test_a_client_that_does_not_read_is_left() -> None:
    async def request() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def stuck(message: Any) -> None:
        await asyncio.sleep(60)

    scope = scope_of({"content-length": "2"})
    asyncio.run(asyncio.wait_for(app(write_timeout_s=0.05)(scope, request, stuck), 5))


@pytest.mark.parametrize(
    "response",
    [
        lambda: ask("GET"),
        lambda: ask(headers={"host": "evil.com"}),
        lambda: ask(path="/nowhere", content=b"{}", headers=JSON),
        lambda: ask(path="/fail", content=b"{}", headers=JSON),
    ],
)
def test_every_response_has_the_security_headers(response: Callable[[], httpx.Response]) -> None:
    headers = response().headers
    assert {name: headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "access-control-allow-origin" not in headers
    assert "unsafe" not in headers["content-security-policy"]


def test_a_fault_is_an_error_without_its_text_which_is_not_logged_either(caplog: pytest.LogCaptureFixture) -> None:
    response = ask(path="/fail", content=b'"hunter2"', headers=JSON)
    assert (response.status_code, code(response)) == (500, "internal_error")
    assert "hunter2" not in response.text + caplog.text
    assert "ValueError" in caplog.text
    assert "in fail" in caplog.text


def test_web_sockets_are_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(app(), access_policy("127.0.0.1", None))
    asyncio.run(guard({"type": "websocket", "headers": []}, send, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_an_error_quotes_half_a_character_without_breaking() -> None:
    assert b"\\udcff" in bytes(ApiError(400, "it is '\udcff'").response().body)


def scope_of(headers: dict[str, str]) -> dict[str, Any]:
    sent = {"host": "127.0.0.1", "content-type": "application/json", **headers}
    return {
        "type": "http",
        "method": "POST",
        "path": "/echo",
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "query_string": b"",
    }


async def called(guard: Starlette, headers: dict[str, str], receive: Any) -> list[Any]:
    """What an application sends in answer to a POST."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await asyncio.wait_for(guard(scope_of(headers), receive, send), 5)
    return sent
