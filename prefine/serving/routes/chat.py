"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from prefine.generation.writer import NewToken
from prefine.serving.answering import Answers, Ask, Choice, Piece, sampling_of
from prefine.serving.conversations import Conversation
from prefine.serving.forms import constraint_of
from prefine.serving.parts import in_parts
from prefine.serving.routes.replies import client_of, reply
from prefine.serving.schema import ChatBody
from prefine.serving.service import Service
from prefine.serving.sse import DONE, frame, while_connected
from prefine.serving.token_texts import TokenTexts
from prefine.web.errors import ApiError
from prefine.web.json_body import JsonRoute


def chat_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        """Answer a conversation."""
        body.require_supported()
        model = service.models.language(body.model)
        conversation = Conversation(body.messages, body.tools, body.tool_choice)
        ask = Ask(
            prompts=lambda prompter: [conversation.ids(prompter)],
            prompt_count=1,
            sampling=sampling_of(body),
            n=body.n,
            seed=body.seed,
            max_tokens=_max_tokens(body),
            client=client_of(request, body.user),
            streams=body.stream,
            top_logprobs=_top_logprobs(body),
            constraint=constraint_of(body.response_format, model),
        )
        answers = await while_connected(service.answers(model, ask), request.receive)
        texts = service.token_texts[model.id] if body.logprobs else None
        shape = ChatShape(answers, texts, body)
        service.register(shape.id, answers, conversation.prompt)
        return await reply(request, answers, shape.whole, shape.frames if body.stream else None)

    return router


def _max_tokens(body: ChatBody) -> int | None:
    given = {each for each in (body.max_tokens, body.max_completion_tokens) if each is not None}
    if len(given) > 1:
        raise ApiError(
            400,
            f"max_completion_tokens: is {body.max_completion_tokens}, and max_tokens is {body.max_tokens}; send one",
            param="max_completion_tokens",
            code="invalid_value",
        )
    return given.pop() if given else None


def _top_logprobs(body: ChatBody) -> int:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs: true", param="top_logprobs", code="invalid_value")
    return body.top_logprobs or 0


class ChatShape:
    """A chat completion as OpenAI's clients read it, whole or in chunks.

    Args:
        answers: being generated.
        texts: of tokens, where log-probabilities were asked for.
        body: the request's.
    """

    def __init__(self, answers: Answers, texts: TokenTexts | None, body: ChatBody) -> None:
        self._answers = answers
        self._texts = texts
        self._body = body
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self._about = {
            "id": self.id,
            "created": int(time.time()),
            "model": answers.model.id,
            "system_fingerprint": answers.model.fingerprint,
        }

    async def whole(self) -> dict[str, Any]:
        """The response."""
        choices = [await self._choice(choice) for choice in await self._answers.whole()]
        return {**self._about, "object": "chat.completion", "choices": choices, "usage": self._answers.usage()}

    async def frames(self) -> AsyncIterator[str]:
        """The chunks: each choice's role, its text, its end; then usage, where asked for."""
        for choice in self._answers.choices:
            yield self._chunk([await self._delta(choice, {"role": "assistant", "content": ""})])
        async for piece in self._answers.pieces():
            if piece.text or (piece.tokens and self._texts is not None):
                yield self._chunk([await self._delta(piece.choice, {"content": piece.text}, piece)])
            if piece.last:
                yield self._chunk([await self._delta(piece.choice, {}, finish=piece.choice.finish_reason)])
        if self._body.stream_options.include_usage:
            yield self._chunk([], usage=self._answers.usage())
        yield DONE

    async def _choice(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": await self._logprobs(choice, choice.tokens),
            "finish_reason": choice.finish_reason,
        }

    async def _delta(
        self, choice: Choice, delta: dict[str, Any], piece: Piece | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        logprobs = None if piece is None else await self._logprobs(choice, piece.tokens)
        return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    async def _logprobs(self, choice: Choice, tokens: Sequence[NewToken]) -> dict[str, Any] | None:
        """Of all tokens but the one that ends the turn, as in OpenAI's API."""
        if self._texts is None:
            return None
        said: list[dict[str, Any]] = []
        async for some in in_parts(tokens):
            said += [self._texts.chat_logprob(new) for new in some if new.token not in choice.ends]
        return {"content": said, "refusal": None}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> str:
        chunk = {**self._about, "object": "chat.completion.chunk", "choices": choices}
        if self._body.stream_options.include_usage:
            chunk["usage"] = usage
        return frame(chunk)
