"""POST /v1/score: answers and what a reward model gives for them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from prefine.models.scoring.scorer import Question, Score
from prefine.serving.conversations import prompt_of
from prefine.serving.models import ServedReward
from prefine.serving.schema import ScoreBody
from prefine.serving.service import Service
from prefine.web.errors import ApiError, json_response


def score_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/score")
    async def score(request: Request, body: ScoreBody) -> Response:
        """Score answers to one conversation."""
        body.require_supported()
        model = service.models.reward(body.model)
        prompt = prompt_of(body.messages, body.tools)
        question = Question(prompt.prompt, tuple(body.completions), prompt.tools)
        scores = await asyncio.wrap_future(service.worker.inbox.call(lambda: _scored(model, question)))
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


def _scored(model: ServedReward, question: Question) -> list[Score]:
    """On the worker's thread, where everything on the models runs."""
    found: Any = next(iter(model.reward.score([question])), None)
    if found is None:
        problem = model.reward.problem(question)
        param = {"prompt": "messages", "completion": "completions"}.get(problem.field, problem.field)
        raise ApiError(400, f"{param}: {problem.reason}", param=param, code="invalid_value")
    scores: list[Score] = found
    return scores
