"""A conversation with a model, its answers streamed as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from prefine.evaluation.sample import room_for_prompts
from prefine.models.engine import writer_for
from prefine.models.load import LoadedModel
from prefine.models.sampling import Sampling
from prefine.models.writer import Request
from prefine.records import Message

# What a decoder gives for a character of which not all bytes are there yet.
_INCOMPLETE = "\ufffd"


class Talk:
    """Keeps the turns of one conversation; the oldest are forgotten when the model's context is full.

    Args:
        loaded: the model.
        system: a system turn to begin with, or None.
        sampling: how it writes; its seed is that of the first answer, and each has its own, counted up.

    Raises:
        RecipeError: max_new_tokens fill the model's context.
    """

    def __init__(self, loaded: LoadedModel, system: str | None, sampling: Sampling) -> None:
        self._loaded = loaded
        self._opening = () if system is None else (Message(role="system", content=system),)
        self._turns: tuple[Message, ...] = ()
        self._writer = writer_for(loaded.packed, loaded.tokenizer, 1)
        self._sampling = sampling
        self._room = room_for_prompts(loaded.packed, sampling.max_new_tokens)

    def forget(self) -> None:
        """Begin anew."""
        self._turns = ()

    def answer(self, said: str) -> Iterator[str]:
        """Say something; yields the answer piece by piece. An answer cut by the token limit is kept as it is."""
        self._turns = (*self._turns, Message(role="user", content=said))
        text = ""
        for whole in self._written(self._prompt()):
            piece, text = whole[len(text) :], whole
            yield piece
        self._sampling = replace(self._sampling, seed=self._sampling.seed + 1)
        text = text.strip()
        # A model that says nothing leaves no turn: templates have no place for a blank one.
        self._turns = (*self._turns, Message(role="assistant", content=text)) if text else self._turns[:-1]

    def _written(self, ids: list[int]) -> Iterator[str]:
        """All of the answer so far, each time it has grown by whole characters."""
        tokens: list[int] = []
        stops = self._loaded.template.stop_ids
        number = self._writer.add(Request(ids, self._sampling, stops, lambda token, _: tokens.append(token)))
        text = ""
        try:
            while self._writer.busy:
                done = self._writer.step()
                whole = self._loaded.tokenizer.decode([t for t in tokens if t not in stops], skip_special_tokens=True)
                if len(whole) > len(text) and (done or not whole.endswith(_INCOMPLETE)):
                    text = whole
                    yield text
        finally:
            self._writer.cancel(number)  # whoever listens may have left
            while self._writer.busy:
                self._writer.step()

    def _prompt(self) -> list[int]:
        while True:
            ids = self._loaded.template.prompt_ids((*self._opening, *self._turns))
            if len(ids) <= self._room or len(self._turns) < 3:
                return ids[-self._room :]
            self._turns = self._turns[2:]
