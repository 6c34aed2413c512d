"""POST /v1/score: answers and what a reward model gives for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from prefine.models.scoring.scorer import Question, Score
from prefine.serving.conversations import prompt_of
from prefine.serving.fair_queue import Client
from prefine.serving.models import ServedReward
from prefine.serving.routes.replies import client_of
from prefine.serving.schema import ScoreBody
from prefine.serving.service import Service
from prefine.serving.sse import ClientGoneError, while_connected
from prefine.web.errors import ApiError, json_response
from prefine.web.json_body import JsonRoute

# Scored at once, while generation waits.
_ANSWERS_A_JOB = 4


def score_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/score")
    async def score(request: Request, body: ScoreBody) -> Response:
        """Score answers to one conversation."""
        body.require_supported()
        model = service.models.reward(body.model)
        prompt = await asyncio.to_thread(prompt_of, body.messages, body.tools)
        answers = [body.completions[at : at + _ANSWERS_A_JOB] for at in range(0, len(body.completions), _ANSWERS_A_JOB)]
        questions = [Question(prompt.prompt, tuple(some), prompt.tools) for some in answers]
        client = client_of(request, None)
        try:
            scores = await while_connected(
                service.in_time(_in_turn(service, model, questions, client)), request.receive
            )
        except ClientGoneError:
            return Response(status_code=499)
        data = [
            {
                "object": "score",
                "index": index,
                "score": each.score,
                "disagreement": each.disagreement,
                "tokens": each.tokens,
            }
            for index, each in enumerate(scores)
        ]
        return json_response({"object": "list", "model": model.id, "data": data})

    return router


async def _in_turn(service: Service, model: ServedReward, questions: Sequence[Question], client: Client) -> list[Score]:
    """The scores of all answers; between two questions others have their turn."""
    scores: list[Score] = []
    for question in questions:
        job = service.worker.inbox.call(partial(_scored, model, question), client)
        found: list[Score] = await asyncio.wrap_future(job)
        scores += found
    return scores


def _scored(model: ServedReward, question: Question) -> list[Score]:
    """On the worker's thread, where everything on the models runs."""
    found: Any = next(iter(model.reward.score([question])), None)
    if found is None:
        problem = model.reward.problem(question)
        param = {"prompt": "messages", "completion": "completions"}.get(problem.field, problem.field)
        raise ApiError(400, f"{param}: {problem.reason}", param=param, code="invalid_value")
    scores: list[Score] = found
    return scores
