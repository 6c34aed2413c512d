"""A server on a free port of this machine, in a thread, with a tiny model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import APIRouter

from prefine.feedback.store import FeedbackStore
from prefine.recipe.sections import named_model
from prefine.serving.app import create_app
from prefine.serving.limits import Limits
from prefine.serving.models import load_models
from prefine.serving.service import Service
from prefine.web.policy import access_policy
from prefine.web.server import BoundedConnection, address_of, listening_socket


@dataclass
class Live:
    """A running server."""

    url: str
    service: Service
    server: uvicorn.Server
    http: httpx.Client

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def chat(self, said: str = "hello", **fields: Any) -> httpx.Response:
        fields = {"messages": [{"role": "user", "content": said}], "max_tokens": 8, **fields}
        return self.post("/v1/chat/completions", fields)


def make_service(names: Sequence[Path | str], feedback: FeedbackStore | None = None, **limits: Any) -> Service:
    """The service of these models, in float32 on the CPU."""
    paths = [str(name) for name in names]
    section = named_model(paths[0], device="cpu", dtype="float32")
    return Service(load_models(paths, section), Limits(**limits), feedback)


@contextmanager
def running(
    service: Service, routers: Sequence[APIRouter] = (), api_key: str | None = None, **policy: Any
) -> Iterator[Live]:
    """Serve until the block ends."""
    app = create_app(service, access_policy("127.0.0.1", api_key, **policy), routers)
    config = uvicorn.Config(app, http=BoundedConnection, ws="none", lifespan="on", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with listening_socket("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            until(lambda: server.started)
            with httpx.Client(base_url=address_of(sock), timeout=60) as client:
                yield Live(address_of(sock), service, server, client)
        finally:
            server.should_exit = True
            thread.join()


def until(holds: Any, seconds: float = 10.0) -> None:
    """Wait for something that comes soon."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.002)
