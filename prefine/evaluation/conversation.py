"""A conversation with a model, its answers streamed as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from prefine.evaluation.sample import generation_settings
from prefine.models.forward import standard_attention
from prefine.models.load import LoadedModel
from prefine.records import Message


class Talk:
    """Keeps the turns of one conversation; the oldest are forgotten when the model's context is full.

    Args:
        loaded: the model.
        system: a system turn to begin with, or None.
        temperature: 0 is greedy.
        max_new_tokens: longest answer.
        seed: of the sampling.
    """

    def __init__(
        self, loaded: LoadedModel, system: str | None, temperature: float, max_new_tokens: int, seed: int
    ) -> None:
        self._loaded = loaded
        self._opening = () if system is None else (Message(role="system", content=system),)
        self._turns: tuple[Message, ...] = ()
        self._settings = generation_settings(loaded.template, max_new_tokens, temperature)
        torch.manual_seed(seed)

    def forget(self) -> None:
        """Begin anew."""
        self._turns = ()

    def answer(self, said: str) -> Iterator[str]:
        """Say something; yields the answer piece by piece. An answer cut by the token limit is kept as it is."""
        from transformers import TextIteratorStreamer

        self._turns = (*self._turns, Message(role="user", content=said))
        streamer = TextIteratorStreamer(self._loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
        pieces = []
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self._generate, self._prompt(), streamer)
            writing.add_done_callback(lambda _: streamer.end())  # a failure ends the stream too
            for piece in streamer:
                pieces.append(piece)
                yield piece
            writing.result()
        text = "".join(pieces).strip()
        # A model that says nothing leaves no turn: templates have no place for a blank one.
        self._turns = (*self._turns, Message(role="assistant", content=text)) if text else self._turns[:-1]

    def _prompt(self) -> list[int]:
        limit = getattr(self._loaded.packed.causal.config, "max_position_embeddings", None) or 1 << 20
        room = limit - self._settings["max_new_tokens"]
        while True:
            ids = self._loaded.template.prompt_ids((*self._opening, *self._turns))
            if len(ids) <= room or len(self._turns) < 3:
                return ids[-max(room, 1) :]
            self._turns = self._turns[2:]

    @torch.no_grad()
    def _generate(self, ids: list[int], streamer: Any) -> None:
        model = self._loaded.packed
        row = torch.tensor([ids], device=model.device)
        mask = torch.ones_like(row)
        with standard_attention(model) as generator, model.autocast():
            generator.generate(input_ids=row, attention_mask=mask, use_cache=True, streamer=streamer, **self._settings)
