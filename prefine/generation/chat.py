"""A chat with a model, with streamed answers."""

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

# A decoder's output for an incomplete character.
_INCOMPLETE = "\ufffd"


class Talk:
    """One conversation with a model.

    If the model's context is full, the model answers without the oldest turns; they stay in the conversation.

    Args:
        loaded: the model.
        system: the first system turn, or None.
        sampling: settings; the first answer uses the seed, each further answer the next number.

    Attributes:
        sampling: settings of the next answer; max_new_tokens is fixed.
        unseen: number of the oldest turns that did not fit into the context of the latest answer.
        cut: whether the latest answer reached max_new_tokens.

    Raises:
        RecipeError: max_new_tokens leaves no room in the model's context.
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
        """The system turn's text; None without one."""
        return self._opening[0].content if self._opening else None

    def set_system(self, system: str | None) -> None:
        """Set the system turn for the next answers; None removes it.

        Raises:
            DataError: it is not valid text.
        """
        self._opening = () if system is None else (_turn("system", system),)
        self.unseen = 0

    def forget(self) -> None:
        """Start a new conversation; the system turn stays."""
        self._turns = ()
        self.unseen = 0

    def undo(self) -> bool:
        """Remove the latest question and its answer; returns False if there is none."""
        taken = self._turns[-2:]
        self._turns = self._turns[:-2]
        self.unseen = 0
        return bool(taken)

    def answer(self, question: str) -> Generator[str, None, None]:
        """Add a user turn; yields a piece of the answer, often empty, after every generated token.

        An answer is kept if the token limit cuts it or its iterator is closed early.

        Raises:
            DataError: the turn is not valid text, or does not fit into the model's context.
            TemplateError: the chat template refuses the conversation. After any error, no turn is kept.
        """
        asked = (*self._turns, _turn("user", question))
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
        if answer:  # a blank answer is not kept, as templates refuse blank turns
            self._turns = (*asked, Message(role="assistant", content=answer))

    def _written(self, ids: list[int]) -> Generator[str, None, None]:
        """Yields the answer so far, up to its last complete character, after every step."""
        tokens: list[int] = []
        stops = self._loaded.template.stop_ids
        number = self._writer.add(Request(ids, self.sampling, stops, lambda new: tokens.append(new.token)))
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
            self._writer.cancel(number)  # the caller may have closed the iterator
            while self._writer.busy:
                self._writer.step()

    def _prompt(self, turns: Conversation) -> list[int]:
        """The prompt's token ids; without the oldest turns if the context is full."""
        while True:
            ids = self._loaded.template.prompt_ids((*self._opening, *turns[self.unseen :]))
            if len(ids) <= self._room:
                return ids
            if len(turns) - self.unseen < 3:
                raise DataError(
                    f"the prompt has {len(ids):,} tokens, but the model's context has room for {self._room:,} "
                    "besides the answer",
                    "Shorten it, or start prefine chat with a smaller --max-new-tokens.",
                )
            self.unseen += 2


def _turn(role: Role, content: str) -> Message:
    try:
        return Message(role=role, content=content)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DataError(f"the {role} turn {rule}", "Give it as text.") from None
