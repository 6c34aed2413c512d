"""POST /v1/completions: raw prompts, as text or token ids, with their own log-probabilities where asked for."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from prefine.serving.answering import Answers, Ask, Choice, Piece, sampling_of
from prefine.serving.parts import json_text_in_parts
from prefine.serving.prompter import Prompter
from prefine.serving.routes.replies import client_of, reply
from prefine.serving.schema import CompletionBody
from prefine.serving.service import Service
from prefine.serving.sse import DONE, frame, framed, while_connected
from prefine.serving.token_texts import TextPlace, TokenTexts
from prefine.web.errors import ApiError
from prefine.web.json_body import JsonRoute


def completions_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions")
    async def completions(request: Request, body: CompletionBody) -> Response:
        """Continue prompts."""
        body.require_supported()
        model = service.models.language(body.model)
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(400, "max_tokens: is 0, which needs echo: true", param="max_tokens", code="invalid_value")

        def prompts(prompter: Prompter) -> list[list[int]]:
            return [_ids(prompter, prompt, body.add_special_tokens) for prompt in body.prompt]

        ask = Ask(
            prompts=prompts,
            prompt_count=len(body.prompt),
            sampling=sampling_of(body),
            n=body.n,
            seed=body.seed,
            max_tokens=body.max_tokens,
            client=client_of(request, body.user),
            streams=body.stream,
            top_logprobs=body.logprobs or 0,
            prompt_logprobs=body.echo and (body.logprobs is not None or body.max_tokens == 0),
        )
        answers = await while_connected(service.answers(model, ask), request.receive)
        shape = CompletionShape(answers, service.token_texts[model.id], body)
        if body.max_tokens:
            service.register(shape.id, answers, None)
        return await reply(request, answers, shape.whole, shape.frames if body.stream else None)

    return router


def _ids(prompter: Prompter, prompt: str | list[int], add_special_tokens: bool) -> list[int]:
    if isinstance(prompt, str):
        return prompter.text_ids(prompt, add_special_tokens=add_special_tokens)
    if not prompt:
        raise ApiError(400, "prompt: has no token ids", param="prompt", code="invalid_value")
    return prompt


class CompletionShape:
    """A text completion as OpenAI's clients read it, whole or in chunks.

    Args:
        answers: being generated.
        texts: of tokens.
        body: the request's.
    """

    def __init__(self, answers: Answers, texts: TokenTexts, body: CompletionBody) -> None:
        self._answers = answers
        self._texts = texts
        self._body = body
        # Of each choice that has begun: where the next token's text begins.
        self._places: dict[int, TextPlace] = {}
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self._about = {
            "id": self.id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": answers.model.id,
            "system_fingerprint": answers.model.fingerprint,
        }

    async def whole(self) -> dict[str, Any]:
        """The response."""
        choices = [await self._choice(choice) for choice in await self._answers.whole()]
        return {**self._about, "choices": choices, "usage": self._answers.usage()}

    async def frames(self) -> AsyncIterator[str]:
        """The chunks, an echoed prompt in the first of its choice; then usage.

        Where an echoed prompt's log-probabilities are wanted, each choice is one chunk.
        """
        body = self._body
        in_one = body.echo and body.logprobs is not None
        async for piece in self._answers.pieces():
            if in_one and piece.last:
                whole = self._chunk([await self._choice(piece.choice)])
                yield framed(await json_text_in_parts(whole))
            elif not in_one and (piece.last or piece.text or (piece.tokens and body.logprobs is not None)):
                yield frame(self._chunk([await self._part(piece)]))
        if body.stream_options.include_usage:
            yield frame(self._chunk([], self._answers.usage()))
        yield DONE

    async def _choice(self, choice: Choice) -> dict[str, Any]:
        logprobs = None
        if self._body.logprobs is not None:
            tokens = self._texts.said_tokens(choice.tokens, choice.ends)
            if self._body.echo and choice.generated is not None:
                before = choice.generated.prompt_logprobs
                tokens = self._texts.sent_tokens(self._sent(choice), choice.prompt, before) + tokens
            logprobs = await self._texts.text_logprobs(tokens, TextPlace())
        return {
            "index": choice.index,
            "text": self._echo(choice) + choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    async def _part(self, piece: Piece) -> dict[str, Any]:
        choice, logprobs = piece.choice, None
        echo = "" if choice.index in self._places else self._echo(choice)
        place = self._places.setdefault(choice.index, TextPlace(len(echo)))
        if self._body.logprobs is not None:
            logprobs = await self._texts.text_logprobs(self._texts.said_tokens(piece.tokens, choice.ends), place)
        return {
            "index": choice.index,
            "text": echo + piece.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    def _echo(self, choice: Choice) -> str:
        """The prompt as it was sent, or its tokens' text."""
        if not self._body.echo:
            return ""
        sent = self._sent(choice)
        return sent if isinstance(sent, str) else self._texts.joined(sent)

    def _sent(self, choice: Choice) -> str | list[int]:
        return self._body.prompt[choice.index // self._body.n]

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        chunk = {**self._about, "choices": choices}
        if self._body.stream_options.include_usage:
            chunk["usage"] = usage
        return chunk
