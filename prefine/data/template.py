"""Conversations to token ids: the only place that renders a chat template.

A prompt (everything up to where the assistant starts to write) and an answer (its text and the end of turn) are
tokenized apart, the same way in every stage, so that an answer's tokens do not depend on what follows and a prompt's
do not depend on its answer. Special tokens come from the template alone: `add_special_tokens` is always off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any

from prefine.data.batch import TokenTree
from prefine.data.encoding import PLAIN_TEXT, TextEncoder, any_of
from prefine.data.rendering import Renderer
from prefine.data.stand_ins import FIRST_STAND_IN, STAND_IN, StandIns
from prefine.data.vocabulary import require_embedded
from prefine.errors import TemplateError
from prefine.records import Conversation, Demonstration, Message, Preference

# Offered, never chosen silently: a base model has no chat template, and which one it gets is the user's decision.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)
_REMEDY = "Set model.chat_template to 'plain' (User: ... Assistant: ...) or to a Jinja file."
# What users and assistants say while a template is tried out: characters that no template writes by itself.
_ASKED, _SAID, _INSTRUCTED = (chr(FIRST_STAND_IN + place) for place in range(3))


class ChatTemplate:
    """A tokenizer's chat template with exact control over what becomes a control token.

    Args:
        tokenizer: a transformers tokenizer with a chat template and an end-of-sequence token.
        declared_ends: ids that the model's files declare to end an answer (models/stops.py). Those of plain text do
            not count: an answer may hold them.

    Attributes:
        control_ids: ids of all control tokens.
        turn_end: the id that ends an assistant's turn in this template.
        turn_ends: it and the tokenizer's end-of-sequence token.
        stop_ids: ids at which an answer ends, wherever one is written: turn_ends and the declared ones.

    Raises:
        TemplateError: the tokenizer has no chat template, no end-of-sequence token, or a template that prefine cannot
            split into prompt and answer.
    """

    def __init__(self, tokenizer: Any, declared_ends: Collection[int] = ()) -> None:
        if tokenizer.chat_template is None:
            raise TemplateError(
                f"model.chat_template: the tokenizer of {tokenizer.name_or_path!r} has no chat template", _REMEDY
            )
        if tokenizer.eos_token_id is None:
            raise TemplateError(
                f"model.name: the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token",
                "Set eos_token in its tokenizer_config.json; without one the model cannot learn to stop.",
            )
        self.tokenizer = tokenizer
        self._rows: int | None = None
        self._renderer = Renderer(tokenizer)
        self._encoder = TextEncoder(tokenizer)
        self.control_ids = self._encoder.control_ids
        # A token that is special ends a turn rather than one that nobody flagged.
        self._ends = (any_of(self._encoder.special), any_of(self._encoder.control))
        self._closing = self._closing_of_a_turn()
        self._loses_system = self._leaves_out_the_system_turn()
        self._any_control = any_of(self._encoder.control, STAND_IN)
        declared = self.control_ids & set(declared_ends)
        # An assistant's <think> or tool tags are its own words; what opens or ends a turn never is.
        self._not_for_assistants = any_of(
            self._encoder.special | self._role_markers() | set(tokenizer.convert_ids_to_tokens(sorted(declared))),
            STAND_IN,
        )
        ask = (Message(role="user", content="x"),)
        self.turn_end = self.answer_ids(ask, "x")[-1]
        self.turn_ends = frozenset({tokenizer.eos_token_id, self.turn_end})
        self.stop_ids = self.turn_ends | declared

    def require_rows(self, rows: int) -> None:
        """Refuse, now and in everything encoded later, tokens that an embedding of so many rows does not have.

        Raises:
            ModelError: the template or the tokenizer's padding needs one.
        """
        self._rows = rows
        structural = {*self.turn_ends, self.tokenizer.pad_token_id} - {None}
        require_embedded([*structural, *self.prompt_ids((Message(role="user", content="x"),))], rows, self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides token ids: template, vocabulary, merges, added and special tokens.

        Not of the padding token, unless the template writes it: a model with score heads gets another one as it is
        loaded (see prefine.models.heads).
        """
        template = self.tokenizer.chat_template
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        if "pad_token" not in str(template):
            special.pop("pad_token", None)
        decides = [template, special, self._encoder.vocabulary()]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def prompt_ids(self, messages: Conversation) -> list[int]:
        """Token ids of a conversation that ends with a user turn, up to where the assistant starts to write."""
        stand_ins = StandIns()
        return self._encode(self._render(self._shielded(messages, stand_ins), opened=True), stand_ins)

    def answer_ids(self, prompt: Conversation, answer: str) -> list[int]:
        """Token ids of the assistant's next turn after `prompt`: its text, then the end of turn."""
        stand_ins = StandIns()
        *asked, said = self._shielded((*prompt, Message(role="assistant", content=answer)), stand_ins)
        return self._answer_ids(asked, said, self._render(asked, opened=True), stand_ins)

    def preference_tree(self, record: Preference, row: int) -> TokenTree:
        """A pair as a tree: prompt, then chosen, then rejected."""
        return self.answers_tree(record.prompt, (record.chosen, record.rejected), row)

    def answers_tree(
        self, prompt: Conversation, answers: Iterable[str], row: int = 0, *, closed: bool = False
    ) -> TokenTree:
        """Answers to one prompt as a tree.

        Args:
            prompt: ends with a user turn.
            answers: texts; an empty one is an answer that says nothing.
            row: see TokenTree.
            closed: take the answers as the template closes them, neither more (an end of turn that it does not write)
                nor less (a line break behind it).
        """
        stand_ins = StandIns()
        asked = self._shielded(prompt, stand_ins)
        opened = self._render(asked, opened=True)
        said = [{"role": "assistant", "content": self._hidden("assistant", text, stand_ins)} for text in answers]
        ids = tuple(self._answer_ids(asked, turn, opened, stand_ins, closed=closed) for turn in said)
        return TokenTree(self._encode(opened, stand_ins), ids, (None,) * len(ids), row)

    def demonstration_tree(self, record: Demonstration, row: int) -> TokenTree:
        """A demonstration as a tree with one answer, in which the supervised assistant turns count.

        Where the template rewrites earlier turns when later ones follow (some drop past reasoning), only the last
        assistant turn can be learned as it will be seen, and only it is supervised.
        """
        learned = [
            index
            for index, message in enumerate(record.messages)
            if message.role == "assistant" and index >= record.supervise_from
        ]
        stand_ins = StandIns()
        messages = self._shielded(record.messages, stand_ins)
        opened = {index: self._render(messages[:index], opened=True) for index in learned}
        turns = {index: self._turn(messages[: index + 1], opened[index]) for index in learned}
        whole = all(opened[later].startswith(opened[earlier] + turns[earlier]) for earlier, later in pairwise(learned))
        learned = learned if whole else learned[-1:]
        ids: list[int] = []
        counts: list[bool] = []
        for index, following in zip(learned, [*learned[1:], None], strict=True):
            turn, closing = self._encode_turn(turns[index], opened[index], stand_ins)
            between = []
            if following is not None:
                done = len(opened[index]) + len(turns[index]) - len(closing)
                between = self._encode(opened[following][done:], stand_ins, opened[following][:done])
            ids += turn + between
            counts += [True] * len(turn) + [False] * len(between)
        return TokenTree(self._encode(opened[learned[0]], stand_ins), (ids,), (counts,), row)

    def _answer_ids(
        self,
        asked: list[dict[str, str]],
        said: dict[str, str],
        opened: str,
        stand_ins: StandIns,
        *,
        closed: bool = False,
    ) -> list[int]:
        turn = self._turn([*asked, said], opened)
        return self._encode(turn, stand_ins, opened) if closed else self._encode_turn(turn, opened, stand_ins)[0]

    def _turn(self, messages: Sequence[dict[str, str]], opened: str) -> str:
        """What the template writes for the last assistant turn, after the text of its prompt."""
        whole = self._render(messages, opened=False)
        if not whole.startswith(opened):
            raise TemplateError(
                "model.chat_template: the text of a conversation does not begin with the text of its prompt",
                "Use a template whose add_generation_prompt writes exactly what precedes an assistant turn.",
            )
        return whole[len(opened) :]

    def _encode_turn(self, turn: str, opened: str, stand_ins: StandIns) -> tuple[list[int], str]:
        """Ids of an assistant turn up to and with its end of turn, and the text the template writes behind it.

        The end of turn is the first control token after the content; where the template writes none, the
        end-of-sequence token is added, for otherwise the model never learns to stop.
        """
        said = len(turn) - len(self._closing) if turn.endswith(self._closing) else self._end_of_unusual(turn)
        closing = turn[said:]
        end = next(filter(None, (pattern.search(closing) for pattern in self._ends)), None)
        if end is None:
            return [*self._encode(turn[:said], stand_ins, opened), self.tokenizer.eos_token_id], closing
        said += end.end()
        return self._encode(turn[:said], stand_ins, opened), turn[said:]

    def _end_of_unusual(self, turn: str) -> int:
        """Where the content ends in a turn that closes otherwise than others do."""
        starts = [match.start() for match in self._ends[0].finditer(turn)]
        return starts[-1] if starts else len(turn.rstrip())

    def _encode(self, text: str, stand_ins: StandIns, behind: str = "") -> list[int]:
        ids: list[int] = []
        for piece, hidden in stand_ins.pieces(text):
            ids += (self._encoder.plain_ids if hidden else self._encoder.ids)(piece, behind)
            behind = PLAIN_TEXT if hidden else piece
        if self._rows is not None:
            require_embedded(ids, self._rows, self.tokenizer)
        return ids

    def _shielded(self, messages: Iterable[Message], stand_ins: StandIns) -> list[dict[str, str]]:
        """The messages for the template, with stand-ins for what must not become a control token."""
        shielded = []
        for message in messages:
            if message.role == "system" and self._loses_system:
                raise TemplateError("model.chat_template: the template leaves out system turns", _REMEDY)
            shielded.append({"role": message.role, "content": self._hidden(message.role, message.content, stand_ins)})
        return shielded

    def _hidden(self, role: str, said: str, stand_ins: StandIns) -> str:
        hidden = self._not_for_assistants if role == "assistant" else self._any_control
        return stand_ins.hide(hidden, said)

    def _render(self, messages: Sequence[dict[str, str]], *, opened: bool) -> str:
        return self._renderer.render(messages, opened=opened)

    # --- Trying the template out -------------------------------------------------------------------------------------

    def _closing_of_a_turn(self) -> str:
        """What the template writes behind an assistant's text.

        Raises:
            TemplateError: it does not write what was said, or not behind the prompt.
        """
        opened = self._render([_turn_of("user", _ASKED)], opened=True)
        turn = self._turn([_turn_of("user", _ASKED), _turn_of("assistant", _SAID)], opened)
        for role, said, text in (("user", _ASKED, opened), ("assistant", _SAID, turn)):
            if said not in text:
                raise TemplateError(f"model.chat_template: the template leaves out what the {role} says", _REMEDY)
        return turn.rpartition(_SAID)[2]

    def _leaves_out_the_system_turn(self) -> bool:
        """Whether a system turn vanishes; a template that refuses one says so when it is given one."""
        try:
            return _INSTRUCTED not in self._render(_WITH_SYSTEM, opened=True)
        except TemplateError:
            return False

    def _role_markers(self) -> set[str]:
        """Control tokens that the template writes around turns, an assistant's own words left out."""
        written = ""
        for conversation in (_WITH_SYSTEM, _TURN_BY_TURN[:1], _TURN_BY_TURN):
            try:
                written += self._render(conversation, opened=True).rpartition(_SAID)[2]
            except TemplateError:  # without a system turn, or for one question only
                continue
        return {text for text in self._encoder.control if text in written}


def _turn_of(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


_WITH_SYSTEM = [_turn_of("system", _INSTRUCTED), _turn_of("user", _ASKED)]
_TURN_BY_TURN = [_turn_of("user", _ASKED), _turn_of("assistant", _SAID), _turn_of("user", _ASKED)]
