"""A server for the chat page: real guard, feedback and page, no model; answers are scripted by the question.

say TEXT      streams TEXT in small pieces
for ever      streams until the client leaves
cut           ends at the token limit
empty         an answer without text
break         an error in the middle of the stream
busy          429 with Retry-After
anything else "You said: …"
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from prefine.feedback.store import AnsweredRequest, FeedbackSettings, FeedbackStore
from prefine.serving.page.router import page_router
from prefine.serving.routes.feedback import feedback_router
from prefine.web.errors import ApiError, json_response
from prefine.web.guard import Guard
from prefine.web.handlers import install_handlers
from prefine.web.policy import access_policy

MODELS = ("dpo", "sft")


@dataclass
class PageServer:
    """A running one.

    Attributes:
        address: of the page.
        asked: the bodies of requests for chat completions.
        left: how many answers were stopped by the client's leaving.
        models: the names that it lists.
    """

    address: str
    store: FeedbackStore | None
    asked: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0
    models: tuple[str, ...] = MODELS


@contextlib.contextmanager
def page_server(
    database: Path | None,
    settings: FeedbackSettings | None = None,
    api_key: str | None = None,
    port: int = 0,
    pace_s: float = 0.002,
) -> Iterator[PageServer]:
    """Inside, the server answers on a port of this machine."""
    with contextlib.ExitStack() as stack:
        store = None if database is None else stack.enter_context(FeedbackStore(database, settings))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))
        served = PageServer(f"http://127.0.0.1:{listener.getsockname()[1]}", store)
        policy = access_policy("127.0.0.1", api_key, open_paths=("/", "/page/", "/health"))
        config = uvicorn.Config(Guard(_app(served, pace_s), policy), log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                threading.Event().wait(0.01)
            yield served
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def _app(served: PageServer, pace_s: float) -> FastAPI:
    app = FastAPI()
    install_handlers(app)
    app.include_router(page_router())
    app.include_router(feedback_router(served.store))
    numbers = itertools.count(1)

    @app.get("/v1/models")
    async def models() -> Response:
        named = [{"id": name, "object": "model", "kind": "language"} for name in served.models]
        return json_response({"object": "list", "data": [*named, {"id": "judge", "object": "model", "kind": "reward"}]})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        served.asked.append(body)
        if body["messages"][-1]["content"] == "busy":
            raise ApiError(429, "too many requests wait", kind="rate_limit_error", headers={"Retry-After": "7"})
        answer = _Answer(served, body, f"chatcmpl-{next(numbers)}", pace_s)
        return StreamingResponse(answer.frames(), media_type="text/event-stream")

    return app


class _Answer:
    def __init__(self, served: PageServer, body: dict[str, Any], identifier: str, pace_s: float) -> None:
        self._served = served
        self._body = body
        self._id = identifier
        self._pace_s = pace_s

    async def frames(self) -> AsyncIterator[str]:
        question = self._body["messages"][-1]["content"]
        yield self._frame({"role": "assistant", "content": ""})
        if question == "for ever":
            try:
                for number in itertools.count():
                    yield self._frame({"content": f"word {number} "})
                    await asyncio.sleep(0.02)
            finally:
                self._served.left += 1
        text = {"empty": "", "cut": "This answer has no"}.get(question, f"You said: {question}")
        text = question.removeprefix("say ") if question.startswith("say ") else text
        for start in range(0, len(text), 5):
            yield self._frame({"content": text[start : start + 5]})
            await asyncio.sleep(self._pace_s)
            if question == "break" and start > 5:
                yield f"data: {json.dumps({'error': {'message': 'The model failed.', 'code': 'internal_error'}})}\n\n"
                return
        finish = "length" if question == "cut" else "stop"
        if self._served.store is not None:
            self._served.store.register(self._answered(text, finish))
        yield self._frame({}, finish)
        yield (
            "data: "
            + json.dumps({"id": self._id, "choices": [], "usage": {"completion_tokens": len(text) // 4}})
            + "\n\n"
        )
        yield "data: [DONE]\n\n"

    def _frame(self, delta: dict[str, Any], finish: str | None = None) -> str:
        chunk = {"id": self._id, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        return f"data: {json.dumps(chunk)}\n\n"

    def _answered(self, text: str, finish: str) -> AnsweredRequest:
        return AnsweredRequest(
            id=self._id,
            model=self._body["model"],
            prompt_tokens=1,
            completion_tokens=len(text) // 4,
            finish_reason=finish,
            messages=self._body["messages"],
            answer=text,
        )
