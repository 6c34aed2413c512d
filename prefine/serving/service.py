"""A server's parts, as routes find them: models, the worker, and what is between a request and its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from prefine.feedback.store import FeedbackStore
from prefine.generation.engine import writer_for
from prefine.generation.writer import Request, Writer
from prefine.models.forward.active_adapter import using_adapter
from prefine.models.forward.fused import packed_weights
from prefine.models.forward.packed import embedding_rows
from prefine.models.shared_base import has_adapter
from prefine.records import Prompt
from prefine.serving.answering import Answers, Ask, Choice, requests_of
from prefine.serving.limits import Limits
from prefine.serving.memory import context_within, room_of, scoring_room
from prefine.serving.metrics import ServerMetrics
from prefine.serving.models import Models, ServedModel, ServedReward
from prefine.serving.prompter import Prompter, own_tokenizer
from prefine.serving.registration import Registration
from prefine.serving.text_stream import TextStream
from prefine.serving.tickets import timed_out
from prefine.serving.token_texts import TokenTexts
from prefine.serving.worker import Worker
from prefine.web.errors import ApiError

T = TypeVar("T")


class AdapterSwitch:
    """Makes one model's adapter the active one; where there is one model only, it always is."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models
        self._needed = len(models) > 1 and any(has_adapter(each.loaded.packed.model) for each in models.values())
        self._active = ExitStack()

    def __call__(self, model: str) -> None:
        """Make the adapter of the model with this id active, and no other."""
        if self._needed:
            served = self._models[model]
            self._active.close()
            self._active.enter_context(using_adapter(served.loaded.packed.model, served.adapter))


class Service:
    """What a server's routes use.

    Args:
        models: what it offers.
        limits: see Limits.
        feedback: where answers are registered, so that people can say what they think of them; None: nowhere.
    """

    def __init__(self, models: Models, limits: Limits, feedback: FeedbackStore | None = None) -> None:
        self.models = models
        self.limits = limits
        self.metrics = ServerMetrics()
        self._registration = None if feedback is None else Registration(feedback, models.languages.values())
        languages = models.languages
        # Nothing changes weights while they are served: what is made of them once is shared by all writers.
        self._kept = next((packed_weights(each.loaded.packed.model) for each in languages.values()), None)
        rooms = {
            name: room_of(served.loaded.packed, len(languages), limits.prefix_tokens)
            for name, served in languages.items()
        }
        self._scoring_rooms = {name: scoring_room(served.reward.network) for name, served in models.rewards.items()}
        writers = {name: self._writer_of(served) for name, served in languages.items()}
        self.worker = Worker(writers, limits, AdapterSwitch(languages), rooms)
        self.metrics.watch(self.worker)
        self._prompters = {
            name: Prompter(
                served.loaded.template,
                name,
                context_within(served.loaded.packed, rooms[name], limits.context),
                limits.slots + limits.max_queue,
            )
            for name, served in languages.items()
        }
        # The event loop's own copies: a tokenizer is used by one thread.
        self._tokenizers = {name: own_tokenizer(served.loaded.template) for name, served in languages.items()}
        self.token_texts = {name: TokenTexts(tokenizer) for name, tokenizer in self._tokenizers.items()}

    def prompter(self, model: ServedModel) -> Prompter:
        """What makes a model's prompts."""
        return self._prompters[model.id]

    def scoring_room(self, model: ServedReward) -> int:
        """Tokens of prompts and answers that a reward model may score at once."""
        return self._scoring_rooms[model.id]

    async def in_time(self, work: Awaitable[T]) -> T:
        """The result of some work, which is cancelled where it takes longer than a request may.

        Raises:
            ApiError: 504 where it did.
        """
        try:
            async with asyncio.timeout(self.limits.request_timeout_s):
                return await work
        except TimeoutError:
            raise timed_out(self.limits.request_timeout_s) from None

    async def answers(self, model: ServedModel, ask: Ask) -> Answers:
        """Make the prompts and queue their sequences.

        Raises:
            ApiError: the queue is full; a prompt is too long; the server shuts down.
            PrefineError: a prompt cannot be made.
        """
        count = ask.prompt_count * ask.n
        inbox, most = self.worker.inbox, self.limits.slots + self.limits.max_queue
        if count > most:
            raise ApiError(
                400,
                f"n: {ask.n} choices of {ask.prompt_count} prompts are {count} sequences, and this server takes "
                f"{most} at once; send them in several requests",
                param="n",
            )
        places = inbox.reserve(model.id, count, ask.client)
        try:
            requests = await self.in_time(self.prompter(model).run(partial(self._prepared, model, ask), ask.client))
            answers = Answers(inbox, model, self._choices(model, requests), ask.n)
            answers.submit(places, requests, streams=ask.streams)
        except BaseException:
            inbox.release(places)
            raise
        return answers

    def register(self, identifier: str, answers: Answers, prompt: Prompt | None) -> None:
        """Let feedback on these answers be taken under the completion's id.

        Args:
            identifier: as clients get it.
            answers: not begun yet.
            prompt: the conversation; None for a text completion.
        """
        if self._registration is not None:
            answers.on_end = self._registration.of(identifier, answers.model, prompt)

    def close(self) -> None:
        """End all threads; what runs may finish within the limit."""
        self.worker.close(self.limits.shutdown_timeout_s)
        for prompter in self._prompters.values():
            prompter.close()

    def _prepared(self, model: ServedModel, ask: Ask, prompter: Prompter) -> list[Request]:
        prompts = ask.prompts(prompter)
        rows = embedding_rows(model.loaded.packed.causal)
        biased = [token for token, _ in ask.sampling.logit_bias]
        for param, ids in (("prompt", chain.from_iterable(prompts)), ("logit_bias", biased)):
            if (beyond := next((token for token in ids if token >= rows), None)) is not None:
                raise ApiError(
                    400,
                    f"{param}: has token id {beyond}, and the model's are below {rows}",
                    param=param,
                    code="invalid_value",
                )
        return requests_of(ask, model, prompter, prompts, self.limits.max_tokens)

    def _choices(self, model: ServedModel, requests: list[Request]) -> list[Choice]:
        tokenizer, ends = self._tokenizers[model.id], model.loaded.template.stop_ids
        return [
            Choice(index, request.prompt, ends, TextStream(tokenizer, ends, request.sampling.stop))
            for index, request in enumerate(requests)
        ]

    def _writer_of(self, served: ServedModel) -> Callable[[], Writer]:
        tokenizer: Any = own_tokenizer(served.loaded.template)
        return partial(
            writer_for,
            served.loaded.packed,
            tokenizer,
            self.limits.slots,
            prefix_tokens=self.limits.prefix_tokens,
            prefill_tokens=self.limits.prefill_tokens,
            kept=self._kept,
        )
