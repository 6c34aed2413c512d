"""POST /generate and /tokenize: for tools that know no chat."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from prefine.records import Message, Prompt
from prefine.serving.answering import Ask, sampling_of
from prefine.serving.conversations import Conversation
from prefine.serving.prompter import Prompter
from prefine.serving.routes.replies import client_of, reply
from prefine.serving.schema import GenerateBody, TokenizeBody
from prefine.serving.service import Service
from prefine.serving.sse import while_connected
from prefine.web.errors import ApiError, json_response
from prefine.web.json_body import JsonRoute


def simple_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/generate")
    async def generate(request: Request, body: GenerateBody) -> Response:
        """Answer one question; with n above 1, `texts` has all answers."""
        body.require_supported()
        model = service.models.language(body.model)
        if not body.prompt.strip():
            raise ApiError(400, "prompt: is blank", param="prompt", code="invalid_value")
        prompt = Prompt(prompt=(Message(role="user", content=body.prompt),))
        ask = Ask(
            prompts=lambda prompter: [prompter.conversation_ids(prompt)],
            prompt_count=1,
            sampling=sampling_of(body),
            n=body.n,
            seed=body.seed,
            max_tokens=body.max_tokens,
            client=client_of(request, body.user),
        )
        answers = await while_connected(service.answers(model, ask), request.receive)

        async def whole() -> dict[str, Any]:
            choices = await answers.whole()
            return {
                "text": choices[0].text,
                "texts": [choice.text for choice in choices],
                "finish_reason": choices[0].finish_reason,
                "model": model.id,
                "usage": answers.usage(),
            }

        return await reply(request, answers, whole, None)

    @router.post("/tokenize")
    async def tokenize(request: Request, body: TokenizeBody) -> Response:
        """Ids of a text or a conversation."""
        body.require_supported()
        model = service.models.language(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "prompt: send either prompt or messages", param="prompt", code="invalid_value")

        def ids(prompter: Prompter) -> list[int]:
            if body.messages is not None:
                return Conversation(body.messages, body.tools).ids(prompter)
            return prompter.text_ids(body.prompt or "", add_special_tokens=body.add_special_tokens)

        work = service.prompter(model).run(ids, client_of(request, None))
        found = await while_connected(service.in_time(work), request.receive)
        return json_response({"count": len(found), "max_model_len": service.prompter(model).context, "tokens": found})

    return router
