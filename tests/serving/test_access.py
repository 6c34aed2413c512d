"""Every route asks for the key and for its own host, whatever it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from prefine.serving.app import create_app
from prefine.web.policy import access_policy
from tests.serving.live import Live, make_service, running

KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def locked(tiny_model: Path, no_cache_outside: None) -> Iterator[Live]:
    with running(make_service([tiny_model]), api_key=KEY) as live:
        yield live


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """All methods and paths; a path's parameters are filled in."""
    found = [
        (method.upper(), re.sub(r"\{[^}]+\}", "tiny", path))
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    ]
    return [*found, ("GET", "/openapi.json"), ("GET", "/nowhere"), ("POST", "/nowhere")]


def all_routes(live: Live) -> list[tuple[str, str]]:
    found = routes(create_app(live.service, access_policy("127.0.0.1", None)))
    assert len(found) > 10
    return found


def ask(live: Live, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    body = "{}" if method == "POST" else None
    return live.http.request(method, path, content=body, headers={"content-type": "application/json", **headers})


def test_all_routes_but_health_ask_for_the_key(locked: Live) -> None:
    for method, path in all_routes(locked):
        for header in ({}, {"authorization": "Bearer wrong"}):
            status = ask(locked, method, path, header).status_code
            assert status == (200 if path == "/health" else 401), (method, path)
        with_key = ask(locked, method, path, {"authorization": f"Bearer {KEY}"})
        assert with_key.status_code not in (401, 403), (method, path)
        assert with_key.status_code < 500


def test_all_routes_refuse_other_hosts_and_origins(locked: Live) -> None:
    key = {"authorization": f"Bearer {KEY}"}
    for method, path in all_routes(locked):
        assert ask(locked, method, path, key | {"host": "evil.example"}).status_code == 403, path
        if method == "POST":
            assert ask(locked, method, path, key | {"origin": "http://evil.example"}).status_code == 403, path
            plain = locked.http.post(path, content="{}", headers=key | {"content-type": "text/plain"})
            assert plain.status_code == 415, path


def test_the_key_opens_the_server_to_openais_client(locked: Live) -> None:
    import openai

    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY) as client:
        assert [model.id for model in client.models.list().data] == ["tiny"]
    wrong = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()
