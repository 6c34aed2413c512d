"""From a request to its answers: prompts are made, sequences queued, and their tokens become text.

Routes differ in what they read and in the shape of what they send; what is between is here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prefine.generation.json_constraint import JsonConstraint
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Generated, NewToken, Request
from prefine.serving.fair_queue import Client
from prefine.serving.inbox import Inbox, Places
from prefine.serving.models import ServedModel
from prefine.serving.parts import in_parts
from prefine.serving.prompter import Prompter
from prefine.serving.schema import SamplingBody
from prefine.serving.text_stream import TextStream
from prefine.serving.tickets import Event, Ticket
from prefine.web.errors import ApiError

_LEAST_TOP_P = 1e-6
_SEED_BITS = 62
# One of them is about a hundred bytes of JSON.
_MOST_LOGPROBS = 2**19


@dataclass(frozen=True)
class Ask:
    """What a route asks for.

    Attributes:
        prompts: makes the prompts' ids, on the prompter's thread.
        prompt_count: how many it makes.
        sampling: temperature and what else the request says; max_new_tokens and seed are set for each choice.
        n: choices for each prompt.
        seed: of the first choice, each has its own, counted up; None draws one.
        max_tokens: of an answer; None: as many as there is room for.
        client: whose turn it takes.
        streams: whether pieces are wanted as they come.
        top_logprobs: the likeliest tokens to give at each place.
        prompt_logprobs: whether the prompt's are wanted.
        constraint: makes what holds an answer to a form, on the prompter's thread; each choice gets a copy.
    """

    prompts: Callable[[Prompter], list[list[int]]]
    prompt_count: int
    sampling: Sampling
    n: int
    seed: int | None
    max_tokens: int | None
    client: Client
    streams: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    constraint: Callable[[Prompter], JsonConstraint] | None = None


def sampling_of(body: SamplingBody) -> Sampling:
    """A request's settings; its length and seed are set later."""
    return Sampling(
        max_new_tokens=1,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=least_top_p(body.top_p),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        stop=tuple(body.stop),
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=tuple((int(token), bias) for token, bias in body.logit_bias.items()),
    )


def least_top_p(top_p: float) -> float:
    """0 is in OpenAI's range: only the likeliest token is left, as with the smallest share above it."""
    return max(top_p, _LEAST_TOP_P)


@dataclass
class Choice:
    """One answer while it comes.

    Attributes:
        index: its place in the response.
        prompt: its prompt's ids.
        ends: ids that end it.
        text: what has been given of it.
        tokens: what has come.
        generated: the whole, at its end.
    """

    index: int
    prompt: Sequence[int]
    ends: Collection[int]
    stream: TextStream
    text: str = ""
    tokens: list[NewToken] = field(default_factory=list)
    generated: Generated | None = None

    @property
    def finish_reason(self) -> Literal["stop", "length"] | None:
        """None until its end."""
        if self.generated is None:
            return None
        return "length" if self.generated.finish == "length" else "stop"

    def take(self, new: NewToken) -> Piece:
        """The piece of the answer that a token adds."""
        self.tokens.append(new)
        text = self.stream.push(new.token)
        self.text += text
        return Piece(self, text, (new,))

    async def end(self, generated: Generated) -> Piece:
        """The piece of the answer that is missing at its end: all of it, where no stream was asked for."""
        before = len(self.tokens)
        tops = generated.top_logprobs or ((),) * len(generated.tokens)
        missing = [NewToken(*each) for each in zip(generated.tokens, generated.logprobs, tops, strict=True)][before:]
        texts = []
        async for some in in_parts(missing):
            texts += [self.stream.push(new.token) for new in some]
        text = "".join(texts) + self.stream.finish()
        self.generated = generated
        self.tokens += missing
        self.text += text
        return Piece(self, text, missing)


@dataclass(frozen=True)
class Piece:
    """What a step adds to a choice: text that is certain, and tokens."""

    choice: Choice
    text: str
    tokens: Sequence[NewToken]

    @property
    def last(self) -> bool:
        """Whether the choice ends here."""
        return self.choice.generated is not None


class Answers:
    """The choices of one request, being generated.

    Attributes:
        on_end: awaited with each choice that has ended, before its last piece is handed on.
    """

    def __init__(self, inbox: Inbox, model: ServedModel, choices: Sequence[Choice], n: int) -> None:
        self.model = model
        self.choices = choices
        self.on_end: Callable[[Choice], Awaitable[None]] | None = None
        self._inbox = inbox
        self._n = n
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._tickets: Sequence[Ticket] = ()

    def submit(self, places: Places, requests: Sequence[Request], *, streams: bool) -> None:
        """Queue the sequences in places that were reserved."""
        self._tickets = self._inbox.submit(places, requests, self._listen, wants_tokens=streams)

    def _listen(self, ticket: Ticket, event: Event) -> None:
        self._events.put_nowait((ticket.index, event))

    async def pieces(self) -> AsyncIterator[Piece]:
        """What comes, choice by choice as it comes, until all have ended.

        Raises:
            ApiError: one of them failed.
        """
        going = len(self.choices)
        while going:
            index, event = await self._events.get()
            if isinstance(event, ApiError):
                raise event
            choice = self.choices[index]
            if isinstance(event, Generated):
                self._require_form(index)
                piece = await choice.end(event)
            else:
                piece = choice.take(event)
            going -= piece.last
            if piece.last and self.on_end is not None:
                await self.on_end(piece.choice)
            yield piece

    def _require_form(self, index: int) -> None:
        constraint = self._tickets[index].request.constraint
        if isinstance(constraint, JsonConstraint) and constraint.failed is not None:
            raise ApiError(
                500,
                f"the answer could not be held to the form: {constraint.failed}; simplify the schema",
                kind="server_error",
                param="response_format",
                code="form_failed",
            )

    async def whole(self) -> Sequence[Choice]:
        """All choices at their end.

        Raises:
            ApiError: one of them failed.
        """
        async for _ in self.pieces():
            pass
        return self.choices

    def cancel(self) -> None:
        """Give up what has not ended."""
        left = [ticket for ticket in self._tickets if not ticket.ended]
        if left:
            self._inbox.cancel(left)

    def usage(self) -> dict[str, Any]:
        """Token counts; each prompt counts once, however many choices it has."""
        firsts = self.choices[:: self._n]
        prompt = sum(len(choice.prompt) for choice in firsts)
        completion = sum(len(choice.tokens) for choice in self.choices)
        cached = sum(choice.generated.cached_tokens for choice in firsts if choice.generated is not None)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def checked_length(context: int, prompt: Sequence[int], asked: int | None, most: int) -> int:
    """How many tokens an answer may have.

    Raises:
        ApiError: 400 with context_length_exceeded where prompt and answer do not fit the context; 400 where
            more is asked for than the server allows.
    """
    room = context - len(prompt)
    if asked is not None and asked > most:
        raise ApiError(
            400,
            f"max_tokens: is {asked}, and this server generates at most {most}; ask for less, or start it with "
            "--max-tokens",
            param="max_tokens",
            code="max_tokens_too_large",
        )
    if room < (1 if asked is None else asked):
        answer = "" if asked is None else f" and {asked} for the answer"
        raise ApiError(
            400,
            f"the context is {context} tokens, and {len(prompt)} were sent{answer}; shorten the prompt"
            + ("" if asked is None else ", or ask for fewer tokens"),
            param="messages",
            code="context_length_exceeded",
        )
    return min(room, most) if asked is None else asked


def requests_of(
    ask: Ask, model: ServedModel, prompter: Prompter, prompts: Sequence[Sequence[int]], most: int
) -> list[Request]:
    """A sequence for each choice of each prompt.

    Raises:
        ApiError: see `checked_length`.
    """
    seed = secrets.randbits(_SEED_BITS) if ask.seed is None else ask.seed
    form = None if ask.constraint is None else ask.constraint(prompter)
    requests = []
    for prompt in prompts:
        length = checked_length(prompter.context, prompt, ask.max_tokens, most)
        for choice in range(ask.n):
            requests.append(
                Request(
                    prompt,
                    replace(ask.sampling, max_new_tokens=length, seed=seed + choice),
                    model.loaded.template.stop_ids,
                    top_logprobs=ask.top_logprobs,
                    prompt_logprobs=ask.prompt_logprobs,
                    constraint=None if form is None else form.copy(),
                )
            )
    require_few_logprobs(requests)
    return requests


def require_few_logprobs(requests: Sequence[Request]) -> None:
    """Refuse to give more log-probabilities than fit a response.

    Raises:
        ApiError: there would be more.
    """
    count = sum(
        (request.sampling.max_new_tokens + len(request.prompt) * request.prompt_logprobs) * (1 + request.top_logprobs)
        for request in requests
        if request.top_logprobs or request.prompt_logprobs
    )
    if count > _MOST_LOGPROBS:
        raise ApiError(
            400,
            f"logprobs: there would be up to {count:,} log-probabilities in the answers, and at most "
            f"{_MOST_LOGPROBS:,} are given; ask for fewer tokens, choices or likeliest tokens",
            param="logprobs",
            code="invalid_value",
        )
