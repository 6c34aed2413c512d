"""Sessions: ids that cannot be read from the disk, cookies that scripts and other sites cannot use, CSRF tokens."""

from __future__ import annotations

from http.cookies import SimpleCookie
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response

from prefine.web import sessions as module
from prefine.web.errors import ApiError
from prefine.web.sessions import LIFETIME_S, TOKEN_HEADER, Sessions


def request(cookie: str = "", token: str = "", scheme: str = "http", port: int = 8123) -> Request:
    headers = {"cookie": cookie, TOKEN_HEADER: token, "host": f"localhost:{port}"}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items() if value]
    server = ("127.0.0.1", port)
    return Request(
        {"type": "http", "method": "POST", "path": "/", "scheme": scheme, "server": server, "headers": encoded}
    )


def begun(sessions: Sessions, name: str = "anna", cookie: str = "") -> tuple[str, str]:
    """The cookie and the token of a session that has begun."""
    session = sessions.begin(name, request(cookie), response := Response())
    morsel = next(iter(SimpleCookie(response.headers["set-cookie"]).values()))
    return f"{morsel.key}={morsel.value}", session.form_token


def refused(sessions: Sessions, asked: Request) -> str | None:
    try:
        sessions.required(asked)
    except ApiError as error:
        return f"{error.status} {error.code}"
    return None


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
def test_the_cookie_is_for_this_site_and_no_script(scheme: str, secure: bool) -> None:
    Sessions().begin("anna", request(scheme=scheme), response := Response())
    morsel = SimpleCookie(response.headers["set-cookie"])["prefine-session-8123"]
    assert morsel["httponly"] and morsel["samesite"] == "strict" and morsel["path"] == "/"
    assert bool(morsel["secure"]) == secure
    assert int(morsel["max-age"]) == LIFETIME_S and len(morsel.value) >= 40
    assert "anna" not in morsel.value


def test_a_session_names_its_person_and_changes_need_its_token() -> None:
    sessions = Sessions()
    (anna, token), (ben, other) = begun(sessions), begun(sessions, "ben")
    found = sessions.of(request(anna))
    assert found is not None and found.name == "anna"
    assert sessions.required(request(anna, token)).name == "anna"
    assert sessions.required(request(ben, other)).name == "ben"
    assert refused(sessions, request(anna)) == "403 wrong_csrf_token"
    assert refused(sessions, request(anna, other)) == "403 wrong_csrf_token"
    assert refused(sessions, request(anna, "ÿ")) == "403 wrong_csrf_token"
    assert refused(sessions, request("", token)) == "401 no_session"
    assert refused(sessions, request("prefine-session-8123=x", token)) == "401 no_session"
    assert sessions.of(request(anna, port=8124)) is None  # another server of this machine has its own cookie


def test_a_session_ends_by_itself_by_logging_out_and_by_the_next_one() -> None:
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    old, _ = begun(sessions)
    cookie, token = begun(sessions, "ben", old)
    assert sessions.of(request(old)) is None  # an id from before logging in is of no use
    now[0] = LIFETIME_S - 1
    assert refused(sessions, request(cookie, token)) is None
    now[0] = LIFETIME_S
    assert refused(sessions, request(cookie, token)) == "401 no_session"
    cookie, token = begun(sessions)
    sessions.end(request(cookie), response := Response())
    assert "Max-Age=0" in response.headers["set-cookie"]
    assert refused(sessions, request(cookie, token)) == "401 no_session"


def test_a_server_that_starts_again_knows_them_and_its_file_holds_no_id(tmp_path: Path) -> None:
    path = tmp_path / "sessions.json"
    cookie, token = begun(Sessions(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert cookie.partition("=")[2] not in path.read_text() and token not in path.read_text()
    again = Sessions(path)
    assert again.required(request(cookie, token)).name == "anna"
    again.end(request(cookie), Response())
    assert refused(Sessions(path), request(cookie, token)) == "401 no_session"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"name": "x"}}', b"\xff"])
def test_a_damaged_file_costs_sessions_only(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sessions.json"
    path.write_bytes(content)
    sessions = Sessions(path)
    assert sessions.of(request("prefine-session-8123=a")) is None
    cookie, token = begun(sessions)
    assert Sessions(path).required(request(cookie, token)).name == "anna"


def test_the_oldest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SESSIONS", 3)
    sessions = Sessions()
    cookies = [begun(sessions)[0] for _ in range(5)]
    assert [sessions.of(request(cookie)) is not None for cookie in cookies] == [False, False, True, True, True]
