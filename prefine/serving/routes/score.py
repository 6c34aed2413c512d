"""POST /v1/score: answers and what a reward model gives for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

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

T = TypeVar("T")
# Encoded at once, and tokens of answers with their prompts that are scored at once, while generation waits.
_ANSWERS_A_JOB = 4
_TOKENS_A_JOB = 2048


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
    """The scores of all answers; between two jobs others have their turn."""

    async def on_worker(job: Callable[[], T]) -> T:
        return await asyncio.wrap_future(service.worker.inbox.call(job, client))

    scores: list[Score] = []
    room = service.scoring_room(model)
    for question in questions:
        lengths = await on_worker(partial(_lengths, model, question))
        _require_room(lengths, room, len(scores))
        for part in within(lengths, min(room, _TOKENS_A_JOB)):
            some = replace(question, answers=question.answers[part.start : part.stop])
            scores += await on_worker(partial(_scored, model, some))
    return scores


def within(lengths: Sequence[int], most: int) -> Iterator[range]:
    """Places of neighbours with at most so many tokens together; one that has more is alone."""
    start = used = 0
    for place, length in enumerate(lengths):
        if place > start and used + length > most:
            yield range(start, place)
            start, used = place, 0
        used += length
    if lengths:
        yield range(start, len(lengths))


def _require_room(lengths: Sequence[int], room: int, before: int) -> None:
    for place, length in enumerate(lengths):
        if length > room:
            raise ApiError(
                400,
                f"completions: number {before + place + 1} has {length:,} tokens with its prompt, and the memory that "
                f"is free on this server holds {room:,} to score; shorten it",
                param="completions",
                code="context_length_exceeded",
            )


def _lengths(model: ServedReward, question: Question) -> list[int]:
    """On the worker's thread, as the model's tokenizer is used there."""
    found = model.reward.lengths(question)
    if found is None:
        raise _refused(model, question)
    return found


def _scored(model: ServedReward, question: Question) -> list[Score]:
    """On the worker's thread, where everything on the models runs."""
    found = next(iter(model.reward.score([question])), None)
    if found is None:
        raise _refused(model, question)
    return found


def _refused(model: ServedReward, question: Question) -> ApiError:
    problem = model.reward.problem(question)
    param = {"prompt": "messages", "completion": "completions"}.get(problem.field, problem.field)
    return ApiError(400, f"{param}: {problem.reason}", param=param, code="invalid_value")
