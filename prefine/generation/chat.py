"""A conversation with a model, its answers streamed as they are written."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from pydantic import ValidationError

from prefine.errors import DataError
from prefine.generation.answers import room_for_prompts
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Request
from prefine.models.loading.load import LoadedModel
from prefine.records import Conversation, Message, Role

# What a decoder gives for a character of which not all bytes are there yet.
_INCOMPLETE = "\ufffd"


class Talk:
    """Keeps the turns of one conversation.

    Where the model's context is full, it answers without the oldest turns; they are kept all the same.

    Args:
        loaded: the model.
        system: a system turn to begin with, or None.
        sampling: how it writes; its seed is that of the first answer, and each has its own, counted up.

    Attributes:
        sampling: how the next answer is written; its max_new_tokens stay as they are.
        unseen: so many of the oldest turns did not fit into the context of the latest answer.
        cut: whether the latest answer ended because it reached max_new_tokens.

    Raises:
        RecipeError: max_new_tokens fill the model's context.
    """

    def __init__(self, loaded: LoadedModel, system: str | None, sampling: Sampling) -> None:
        self._loaded = loaded
        self._opening: Conversation = ()
        self._turns: Conversation = ()
        self._writer = writer_for(loaded.packed, loaded.tokenizer, 1)
        self.sampling = sampling
        self.unseen = 0
        self.cut = False
        self._room = room_for_prompts(loaded.packed, sampling.max_new_tokens)
        self.set_system(system)

    @property
    def messages(self) -> Conversation:
        """All turns, the system turn included."""
        return (*self._opening, *self._turns)

    @property
    def system(self) -> str | None:
        """The system turn's text."""
        return self._opening[0].content if self._opening else None

    def set_system(self, system: str | None) -> None:
        """Have this system turn from the next answer on; None: no system turn.

        Raises:
            DataError: it is no text.
        """
        self._opening = () if system is None else (_turn("system", system),)
        self.unseen = 0

    def forget(self) -> None:
        """Begin anew; the system turn stays."""
        self._turns = ()
        self.unseen = 0

    def undo(self) -> bool:
        """Take back the latest question and its answer; False where there is none."""
        taken = self._turns[-2:]
        self._turns = self._turns[:-2]
        self.unseen = 0
        return bool(taken)

    def answer(self, said: str) -> Generator[str, None, None]:
        """Say something; yields a piece of the answer, often an empty one, after every step of the model.

        An answer cut by the token limit is kept as it is, and so is one whose iterator is closed before its end.

        Raises:
            DataError: what was said is no text, or does not fit into the model's context.
            TemplateError: the chat template refuses the conversation. As with every error, no turn is kept.
        """
        asked = (*self._turns, _turn("user", said))
        ids = self._prompt(asked)
        text = ""
        try:
            with closing(self._written(ids)) as written:
                for whole in written:
                    piece, text = whole[len(text) :], whole
                    yield piece
        except GeneratorExit:
            self._keep(asked, text)
            raise
        self._keep(asked, text)

    def _keep(self, asked: Conversation, answer: str) -> None:
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        answer = answer.strip()
        if answer:  # a model that says nothing leaves no turn: templates have no place for a blank one
            self._turns = (*asked, Message(role="assistant", content=answer))

    def _written(self, ids: list[int]) -> Generator[str, None, None]:
        """All of the answer so far, up to its last whole character, after every step."""
        tokens: list[int] = []
        stops = self._loaded.template.stop_ids
        number = self._writer.add(Request(ids, self.sampling, stops, lambda token, _: tokens.append(token)))
        text = ""
        self.cut = False
        try:
            while self._writer.busy:
                done = self._writer.step()
                self.cut = any(result.finish == "length" for _, result in done)
                whole = self._loaded.tokenizer.decode([t for t in tokens if t not in stops], skip_special_tokens=True)
                if len(whole) > len(text) and (done or not whole.endswith(_INCOMPLETE)):
                    text = whole
                yield text
        finally:
            self._writer.cancel(number)  # whoever listens may have left
            while self._writer.busy:
                self._writer.step()

    def _prompt(self, turns: Conversation) -> list[int]:
        """The prompt's token ids, without the oldest turns where the context is full."""
        while True:
            ids = self._loaded.template.prompt_ids((*self._opening, *turns[self.unseen :]))
            if len(ids) <= self._room:
                return ids
            if len(turns) - self.unseen < 3:
                raise DataError(
                    f"what was said is a prompt of {len(ids):,} tokens, but the model's context leaves "
                    f"{self._room:,} for it beside the answer",
                    "Say less, or start prefine chat with a smaller --max-new-tokens.",
                )
            self.unseen += 2


def _turn(role: Role, content: str) -> Message:
    try:
        return Message(role=role, content=content)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DataError(f"the {role} turn {rule}", "Write it as text.") from None
