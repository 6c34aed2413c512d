"""Answers are registered for feedback before a client has the whole of them, so that a thumb finds its answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from prefine.data.row_columns import said_of
from prefine.errors import PrefineError
from prefine.feedback.store import AnsweredRequest, FeedbackStore
from prefine.models.loading.location import ADAPTER_WEIGHTS
from prefine.records import Prompt
from prefine.runs.atomic import sha256_of_file
from prefine.serving.answering import Choice
from prefine.serving.models import ServedModel

log = logging.getLogger("prefine")

OnEnd = Callable[[Choice], Awaitable[None]]


class Registration:
    """Registers the answers of a server's language models.

    Args:
        store: see FeedbackStore.
        models: all that can answer; the hash of each one's own weights is taken once.
    """

    def __init__(self, store: FeedbackStore, models: Iterable[ServedModel]) -> None:
        self._store = store
        self._hashes = {model.id: _weights_hash(model) for model in models}

    def of(self, identifier: str, model: ServedModel, prompt: Prompt | None) -> OnEnd:
        """What registers each choice of a completion at its end.

        A store that cannot be written costs the feedback on the answer, not the answer.

        Args:
            identifier: of the completion.
            model: that answers.
            prompt: the conversation; None for a text completion.
        """

        def register(choice: Choice) -> None:
            said = {} if prompt is None else said_of(prompt)
            answered = AnsweredRequest(
                id=identifier,
                choice=choice.index,
                model=model.id,
                run=str(Path(model.name).absolute()) if Path(model.name).is_dir() else model.name,
                run_hash=self._hashes[model.id] or None,
                prompt_tokens=len(choice.prompt),
                completion_tokens=len(choice.tokens),
                finish_reason=choice.finish_reason,
                messages=said.get("prompt"),
                answer=choice.text,
                tools=said.get("tools", ()),
            )
            self._store.register(answered)

        async def on_end(choice: Choice) -> None:
            try:
                await asyncio.to_thread(register, choice)
            except PrefineError as error:
                log.warning("feedback on %s cannot be taken: %s", identifier, error)

        return on_end


def _weights_hash(model: ServedModel) -> str:
    """SHA-256 of the adapter's weights, of a model without an adapter that of the base's."""
    folder = model.loaded.location.adapter
    if folder is not None and (folder / ADAPTER_WEIGHTS).is_file():
        return sha256_of_file(folder / ADAPTER_WEIGHTS)
    return model.loaded.base_sha256
