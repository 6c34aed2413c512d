"""POST /v1/responses: the newer form of OpenAI's API, text in and text out. Nothing is stored."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from prefine.generation.sampling import Sampling
from prefine.serving.answering import Answers, Ask, least_top_p
from prefine.serving.conversations import Conversation
from prefine.serving.forms import constraint_of
from prefine.serving.routes.replies import client_of, reply
from prefine.serving.schema import ResponsesBody
from prefine.serving.service import Service
from prefine.serving.sse import frame, while_connected
from prefine.web.errors import ApiError
from prefine.web.json_body import JsonRoute


def responses_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/responses")
    async def responses(request: Request, body: ResponsesBody) -> Response:
        """Answer a conversation."""
        body.require_supported()
        model = service.models.language(body.model)
        conversation = Conversation(_messages(body))
        ask = Ask(
            prompts=lambda prompter: [conversation.ids(prompter)],
            prompt_count=1,
            sampling=Sampling(1, body.temperature, top_p=least_top_p(body.top_p)),
            n=1,
            seed=None,
            max_tokens=body.max_output_tokens,
            client=client_of(request, body.user),
            streams=body.stream,
            constraint=constraint_of(_format(body), model),
        )
        answers = await while_connected(service.answers(model, ask), request.receive)
        shape = ResponseShape(answers, body)
        service.register(shape.id, answers, conversation.prompt)
        return await reply(request, answers, shape.whole, shape.frames if body.stream else None, shape.error_frame)

    return router


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    system = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    if isinstance(body.input, str):
        return [*system, {"role": "user", "content": body.input}]
    for place, item in enumerate(body.input):
        kind = item.get("type", "message")
        if kind != "message":
            found = repr(kind[:40]) if isinstance(kind, str) else "not a text"
            raise ApiError(
                400,
                f"input[{place}].type: is {found}, and this server reads messages only",
                param=f"input[{place}].type",
                code="unsupported_parameter",
            )
    return [*system, *body.input]


def _format(body: ResponsesBody) -> dict[str, Any]:
    """As chat completions have it, where the schema is an object of its own."""
    found = body.text.get("format")
    if not isinstance(found, dict):
        return {}
    if found.get("type") != "json_schema":
        return found
    return {"type": "json_schema", "json_schema": {name: value for name, value in found.items() if name != "type"}}


class ResponseShape:
    """A response as OpenAI's clients read it, whole or as events.

    Args:
        answers: being generated; one choice.
        body: the request's.
    """

    def __init__(self, answers: Answers, body: ResponsesBody) -> None:
        self._answers = answers
        self._body = body
        self.id = f"resp_{secrets.token_hex(16)}"
        self._message_id = f"msg_{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._number = 0

    async def whole(self) -> dict[str, Any]:
        """The response."""
        await self._answers.whole()
        return self._response(self._end)

    async def frames(self) -> AsyncIterator[str]:
        """The events, in OpenAI's order."""
        part = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
        yield self._event("response.content_part.added", **part, part=self._text(""))
        async for piece in self._answers.pieces():
            if piece.text:
                yield self._event("response.output_text.delta", **part, delta=piece.text, logprobs=[])
        text = self._answers.choices[0].text
        yield self._event("response.output_text.done", **part, text=text, logprobs=[])
        yield self._event("response.content_part.done", **part, part=self._text(text))
        item = self._item(self._end, [self._text(text)])
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{self._end}", response=self._response(self._end))

    def error_frame(self, error: ApiError) -> str:
        """The event that ends a stream which failed."""
        return self._event("error", message=error.message, code=error.code, param=error.param)

    @property
    def _end(self) -> str:
        return "incomplete" if self._answers.choices[0].finish_reason == "length" else "completed"

    def _event(self, kind: str, **fields: Any) -> str:
        number, self._number = self._number, self._number + 1
        return frame({"type": kind, "sequence_number": number, **fields}, kind)

    def _text(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, status: str) -> dict[str, Any]:
        going, cut = status == "in_progress", status == "incomplete"
        body = self._body
        output = [] if going else [self._item(status, [self._text(self._answers.choices[0].text)])]
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._answers.model.id,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": body.text.get("format") or {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": body.top_p,
            "metadata": body.metadata,
            "usage": None if going else self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        usage = self._answers.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
