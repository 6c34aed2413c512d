"""Conversations to token ids: the only place that renders a chat template.

A prompt (everything up to the start of the assistant's answer) and an answer (its text and the end of turn) are
tokenized separately, in the same way in every stage, so that an answer's tokens do not depend on what follows and a
prompt's do not depend on its answer. Special tokens come from the template alone: `add_special_tokens` is always off.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prefine.data.tokens.encoding import PLAIN_TEXT, TextEncoder, any_of
from prefine.data.tokens.placeholders import PLACEHOLDER, Placeholders
from prefine.data.tokens.probing import REMEDY, TemplateProbe, does_not_continue
from prefine.data.tokens.rendering import Renderer
from prefine.data.tokens.shielding import Shield, Shielded
from prefine.data.tokens.trees import TokenTree
from prefine.data.tokens.vocabulary import require_embedded
from prefine.errors import RefusedRowError, TemplateError
from prefine.records import Conversation, Demonstration, Message, Preference

Tools = tuple[dict[str, Any], ...]
# Characters before an answer in which its start is searched.
_LONGEST_OPENING = 64


@dataclass(frozen=True)
class _Turn:
    """An assistant turn as text.

    Attributes:
        opened: everything before it.
        said: the learned part: up to and with its end of turn.
        ends: whether the template writes an end of turn; if not, the end-of-sequence token ends it.
    """

    opened: str
    said: str
    ends: bool

    @property
    def done(self) -> str:
        """The conversation up to and with the end of this turn."""
        return self.opened + self.said


def _end_of_unusual(turn: str, special: re.Pattern[str]) -> int:
    """End of the content in a turn with an unusual closing."""
    starts = [match.start() for match in special.finditer(turn)]
    return starts[-1] if starts else len(turn.rstrip())


def _up_to_end(turn: str, closing: str, ends: Sequence[re.Pattern[str]]) -> tuple[str, bool]:
    """An assistant turn up to and with its end of turn, and whether the template writes one.

    The end of turn is the first control token after the content.
    """
    said = len(turn) - len(closing) if turn.endswith(closing) else _end_of_unusual(turn, ends[0])
    end = next(filter(None, (pattern.search(turn, said) for pattern in ends)), None)
    return (turn[:said], False) if end is None else (turn[: end.end()], True)


def _require_written(field: str, said: str, opened: str, turn: str) -> None:
    """Raise RefusedRowError unless the rendered turn contains all of its content.

    White space does not count, as templates trim it and add some around reasoning. If a template opens answers with a
    tag (`<think>`), the content may start inside it.
    """
    bare = _without_space(said)
    opening = _without_space(opened[-_LONGEST_OPENING:])
    if bare not in opening[max(0, len(opening) - len(bare) + 1) :] + _without_space(turn):
        raise RefusedRowError(
            field,
            "has text that the chat template leaves out",
            "Remove that text from the data (such as reasoning in <think> tags), or use a model whose chat template "
            "writes it.",
        )


def _without_space(text: str) -> str:
    return "".join(text.split())


def _require_usable(tokenizer: Any) -> None:
    """Raise TemplateError for a tokenizer without a chat template or an end-of-sequence token."""
    if tokenizer.chat_template is None:
        raise TemplateError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template", REMEDY, field="model.chat_template"
        )
    if tokenizer.eos_token_id is None:
        raise TemplateError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token",
            "Set eos_token in its tokenizer_config.json; without one the model cannot learn to stop.",
            field="model.name",
        )


class ChatTemplate:
    """A tokenizer's chat template with exact control over what becomes a control token.

    Args:
        tokenizer: a transformers tokenizer with a chat template and an end-of-sequence token.
        declared_ends: ids that end an answer according to the model's files (models/loading/stops.py). Ids of plain
            text do not count: an answer may contain them.

    Attributes:
        traits: what the template writes.
        control_ids: ids of all control tokens.
        turn_end: the id that ends an assistant's turn in this template.
        turn_ends: it and the tokenizer's end-of-sequence token.
        stop_ids: ids that end a generated answer: turn_ends and the declared ones.

    Raises:
        TemplateError: the tokenizer has no chat template, no end-of-sequence token, or a template that prefine cannot
            split into prompt and answer. Methods raise it for a row that the template does not render, a
            RefusedRowError where the field is known.
    """

    def __init__(self, tokenizer: Any, declared_ends: Collection[int] = ()) -> None:
        _require_usable(tokenizer)
        self.tokenizer = tokenizer
        self._rows: int | None = None
        self._renderer = Renderer(tokenizer)
        self._encoder = TextEncoder(tokenizer)
        self.control_ids = self._encoder.control_ids
        # A special token is preferred as the end of a turn.
        self._ends = (any_of(self._encoder.special), any_of(self._encoder.control))
        self.traits = TemplateProbe(self._renderer, self._encoder.control).traits()
        declared = self.control_ids & set(declared_ends)
        structural = self.traits.markers | set(tokenizer.convert_ids_to_tokens(sorted(declared)))
        self._shield = Shield(
            self.traits,
            anywhere=any_of(self._encoder.control, PLACEHOLDER),
            in_answers=any_of(self._encoder.special | structural, PLACEHOLDER),
        )
        ask = (Message(role="user", content="x"),)
        self.turn_end = self.answer_ids(ask, "x")[-1]
        self.turn_ends = frozenset({tokenizer.eos_token_id, self.turn_end})
        self.stop_ids = self.turn_ends | declared

    def require_rows(self, rows: int) -> None:
        """Refuse, now and in all later encoding, tokens beyond an embedding of `rows` rows.

        Raises:
            ModelError: the template or the tokenizer's padding needs such a token.
        """
        self._rows = rows
        structural = {*self.turn_ends, self.tokenizer.pad_token_id} - {None}
        require_embedded([*structural, *self.prompt_ids((Message(role="user", content="x"),))], rows, self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides token ids: template, vocabulary, merges, added and special tokens.

        Not of the padding token, unless the template writes it: a model with score heads gets another one at load (see
        prefine.models.loading.heads).
        """
        template = self.tokenizer.chat_template
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        if "pad_token" not in str(template):
            special.pop("pad_token", None)
        decides = [template, special, self._encoder.vocabulary()]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def prompt_ids(
        self, messages: Conversation, tools: Tools = (), *, check: Callable[[str], None] | None = None
    ) -> list[int]:
        """Token ids of a conversation up to the start of the assistant's answer.

        Args:
            messages: ends with a user turn or a tool's result.
            tools: definitions of tools for the assistant.
            check: called with the whole text before it is tokenized.
        """
        asked = self._shield.conversation(messages, tools, "prompt")
        opened = self._renderer.render(asked.turns, opened=True, tools=asked.tools)
        if check is not None:
            check("".join(piece for piece, _ in asked.stand_ins.pieces(opened)))
        return self._encode(opened, asked.stand_ins)

    def answer_ids(self, prompt: Conversation, answer: str, tools: Tools = ()) -> list[int]:
        """Token ids of the assistant's next turn after `prompt`: its text, then the end of turn."""
        (ids,) = self.answers_tree(prompt, (answer,), tools=tools).answers
        return list(ids)

    def preference_tree(self, record: Preference, row: int) -> TokenTree:
        """A pair as a tree: prompt, then chosen, then rejected."""
        said = {"chosen": record.chosen, "rejected": record.rejected}
        return self.answers_tree(record.prompt, said.values(), row, tools=record.tools, fields=tuple(said))

    def answers_tree(
        self,
        prompt: Conversation,
        answers: Iterable[str],
        row: int = 0,
        *,
        closed: bool = False,
        tools: Tools = (),
        fields: Sequence[str] = (),
    ) -> TokenTree:
        """Answers to one prompt as a tree.

        If the template prefills answers (see TemplateTraits) but does not write that prefill into conversations, the
        prompt is without it: answers are learned and scored as in a conversation.

        Args:
            prompt: ends with a user turn or a tool's result.
            answers: texts, possibly empty.
            row: see TokenTree.
            closed: close the answers exactly as the template does, without an end of turn that it does not write, and
                with a line break that it writes.
            tools: definitions of tools for the assistant.
            fields: the answers' fields in the record, if they are to be learned; each must then be rendered completely.
                Without fields they are taken as the template renders them, for scoring.

        Raises:
            RefusedRowError: the template drops a part of an answer that is to be learned.
        """
        asked = self._shield.conversation(prompt, tools, "prompt")
        said = [self._shield.answer(text, asked.stand_ins) for text in answers]
        opened, turns = self._continued(asked, [[*asked.turns, turn] for turn in said])
        for field, turn, text in zip(fields, said, turns, strict=bool(fields)):
            _require_written(field, turn["content"], opened, text)
        texts = [(turn, True) if closed else self._up_to_its_end(turn) for turn in turns]
        ids = tuple(self._turn_ids(text, ends, opened, asked.stand_ins) for text, ends in texts)
        return TokenTree(self._encode(opened, asked.stand_ins), ids, (None,) * len(ids), row)

    def demonstration_tree(self, record: Demonstration, row: int) -> TokenTree:
        """A demonstration as a tree with one answer, supervised on its learned turns; see `learned`."""
        return self.learned(record, row)[0]

    def learned(self, record: Demonstration, row: int = 0) -> tuple[TokenTree, int]:
        """A demonstration as a tree with one answer, and the number of turns that should be learned but cannot be.

        A turn can be learned if the template renders it in the whole conversation as it does when it is the last turn.
        If the template changes earlier turns once later ones follow (some drop past reasoning), they are context. The
        last turn can always be learned.
        """
        talk = self._shield.conversation(record.messages, record.tools, "messages")
        turns = {index: self._turn(talk, record, index) for index in record.learned_turns}
        *earlier, last = turns.values()
        kept = [turn for turn in earlier if last.opened.startswith(turn.done)] + [last]
        ids: list[int] = []
        counts: list[bool] = []
        for turn, following in zip(kept, [*kept[1:], None], strict=True):
            own = self._turn_ids(turn.said, turn.ends, turn.opened, talk.stand_ins)
            between = []
            if following is not None:
                done = len(turn.done)
                between = self._encode(following.opened[done:], talk.stand_ins, following.opened[:done])
            ids += own + between
            counts += [True] * len(own) + [False] * len(between)
        tree = TokenTree(self._encode(kept[0].opened, talk.stand_ins), (ids,), (counts,), row)
        return tree, len(turns) - len(kept)

    def _turn(self, talk: Shielded, record: Demonstration, index: int) -> _Turn:
        """A turn as the template renders it when it is the last one."""
        before = Shielded(talk.turns[:index], talk.tools, talk.stand_ins)
        opened, (turn,) = self._continued(before, [talk.turns[: index + 1]])
        given, key = talk.turns[index], self.traits.reasoning_key
        if record.messages[index].reasoning and key:
            _require_written(f"messages[{index}].reasoning", given[key], opened, turn)
        if record.messages[index].content.strip():
            _require_written(f"messages[{index}].content", given["content"], opened, turn)
        return _Turn(opened, *self._up_to_its_end(turn))

    def _continued(self, asked: Shielded, wholes: Sequence[list[dict[str, Any]]]) -> tuple[str, list[str]]:
        """The text before assistant turns, and the text of each, as in conversations.

        Args:
            asked: the turns before them.
            wholes: the same with one assistant turn each.
        """
        opened = self._renderer.render(asked.turns, opened=True, tools=asked.tools)
        texts = [self._renderer.render(turns, opened=False, tools=asked.tools) for turns in wholes]
        for before in dict.fromkeys((opened, opened.removesuffix(self.traits.prefill))):
            if all(text.startswith(before) for text in texts):
                return before, [text[len(before) :] for text in texts]
        raise does_not_continue()

    def _up_to_its_end(self, turn: str) -> tuple[str, bool]:
        return _up_to_end(turn, self.traits.closing, self._ends)

    def _turn_ids(self, said: str, ends: bool, opened: str, stand_ins: Placeholders) -> list[int]:
        """Ids of a turn; without an end of turn it gets the end of sequence, or the model would not learn to stop."""
        return self._encode(said, stand_ins, opened) + ([] if ends else [self.tokenizer.eos_token_id])

    def _encode(self, text: str, stand_ins: Placeholders, behind: str = "") -> list[int]:
        ids: list[int] = []
        for piece, hidden in stand_ins.pieces(text):
            ids += (self._encoder.plain_ids if hidden else self._encoder.ids)(piece, behind)
            behind = PLAIN_TEXT if hidden else piece
        if self._rows is not None:
            require_embedded(ids, self._rows, self.tokenizer)
        return ids
