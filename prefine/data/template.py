"""Conversations to token ids: the only place that renders a chat template.

A prompt (everything up to where the assistant starts to write) and an answer (its text and the end of turn) are
tokenized apart, the same way in every stage, so that an answer's tokens do not depend on what follows and a prompt's
do not depend on its answer. Special tokens come from the template alone: `add_special_tokens` is always off.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from prefine.data.batch import TokenTree
from prefine.errors import TemplateError
from prefine.records import Conversation, Demonstration, Message, Preference

# Offered, never chosen silently: a base model has no chat template, and which one it gets is the user's decision.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)

# A control token's text inside content is replaced by one character of this range while the template is rendered. The
# range is in a private-use plane; if content already holds such a character, it is replaced in the same way.
_FIRST_STAND_IN = 0xF5A00
_STAND_INS = 4096
_STAND_IN_RANGE = f"[{chr(_FIRST_STAND_IN)}-{chr(_FIRST_STAND_IN + _STAND_INS - 1)}]"
_STAND_IN_SPLIT = re.compile(f"({_STAND_IN_RANGE})")


def _any_of(texts: Iterable[str], *, shielded: bool = False) -> re.Pattern[str]:
    """A pattern that matches any of the texts, the longest first; `shielded` adds the stand-in characters."""
    choices = [re.escape(text) for text in sorted(texts, key=len, reverse=True) if text]
    return re.compile("|".join([*choices, _STAND_IN_RANGE] if shielded else choices or ["(?!)"]))


class ChatTemplate:
    """A tokenizer's chat template with exact control over what becomes a control token.

    Args:
        tokenizer: a transformers tokenizer with a chat template and an end-of-sequence token.

    Attributes:
        control_ids: ids of all control tokens.
        stop_ids: ids that end an assistant's turn.

    Raises:
        TemplateError: the tokenizer has no chat template, no end-of-sequence token, or a template that prefine cannot
            split into prompt and answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.chat_template is None:
            raise TemplateError(
                f"model.chat_template: the tokenizer of {tokenizer.name_or_path!r} has no chat template",
                "Set model.chat_template to 'plain' (User: ... Assistant: ...) or to a Jinja file.",
            )
        if tokenizer.eos_token_id is None:
            raise TemplateError(
                f"model.name: the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token",
                "Set eos_token in its tokenizer_config.json; without one the model cannot learn to stop.",
            )
        self.tokenizer = tokenizer
        decoder = tokenizer.added_tokens_decoder
        special = {token.content for token in decoder.values() if token.special} | set(tokenizer.all_special_tokens)
        # Runs of white space in the added vocabulary (GPT-NeoX, Phi) are ordinary text, not control.
        control = {text for text in special | set(tokenizer.get_added_vocab()) if text.strip()}
        self.control_ids = frozenset(tokenizer.convert_tokens_to_ids(sorted(control)))
        self._control_pattern = _any_of(control)
        self._end_pattern = _any_of(special | {tokenizer.eos_token})
        # An assistant's <think> or tool tags are its own words; what opens or ends a turn never is.
        opening = self._render([{"role": "user", "content": "x"}], opened=True)
        markers = {text for text in control if text in opening}
        self._patterns = {"assistant": _any_of((special & control) | markers, shielded=True)}
        self._any_control = _any_of(control, shielded=True)
        ask = (Message(role="user", content="x"),)
        self.stop_ids = frozenset({tokenizer.eos_token_id, self.answer_ids(ask, "x")[-1]})

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides token ids: template, vocabulary, merges, added tokens."""
        state = hashlib.sha256(str(self.tokenizer.chat_template).encode())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        state.update((backend.to_str() if backend is not None else repr(self.tokenizer.get_vocab())).encode())
        return state.hexdigest()

    def prompt_ids(self, messages: Conversation) -> list[int]:
        """Token ids of a conversation that ends with a user turn, up to where the assistant starts to write."""
        stand_ins = _StandIns(self)
        return self._encode(self._render(stand_ins.apply(messages), opened=True), stand_ins)

    def answer_ids(self, prompt: Conversation, answer: str) -> list[int]:
        """Token ids of the assistant's next turn after `prompt`: its text, then the end of turn."""
        stand_ins = _StandIns(self)
        said = stand_ins.apply((*prompt, Message(role="assistant", content=answer)))
        return self._encode_turn(self._turn(said), said[-1]["content"], stand_ins)[0]

    def preference_tree(self, record: Preference, row: int) -> TokenTree:
        """A pair as a tree: prompt, then chosen, then rejected."""
        answers = tuple(self.answer_ids(record.prompt, text) for text in (record.chosen, record.rejected))
        return TokenTree(self.prompt_ids(record.prompt), answers, (None, None), row)

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
        stand_ins = _StandIns(self)
        messages = stand_ins.apply(record.messages)
        opened = {index: self._render(messages[:index], opened=True) for index in learned}
        turns = {index: self._turn(messages[: index + 1]) for index in learned}
        whole = all(opened[later].startswith(opened[earlier] + turns[earlier]) for earlier, later in pairwise(learned))
        learned = learned if whole else learned[-1:]
        ids: list[int] = []
        counts: list[bool] = []
        for index, following in zip(learned, [*learned[1:], None], strict=True):
            turn, closing = self._encode_turn(turns[index], messages[index]["content"], stand_ins)
            between = []
            if following is not None:
                done = len(opened[index]) + len(turns[index])
                between = self._encode(closing + opened[following][done:], stand_ins)
            ids += turn + between
            counts += [True] * len(turn) + [False] * len(between)
        return TokenTree(self._encode(opened[learned[0]], stand_ins), (ids,), (counts,), row)

    def _turn(self, messages: Sequence[dict[str, str]]) -> str:
        """What the template writes for the last assistant turn, after the generation prompt."""
        before = self._render(messages[:-1], opened=True)
        after = self._render(messages, opened=False)
        if not after.startswith(before):
            raise TemplateError(
                "model.chat_template: the text of a conversation does not begin with the text of its prompt",
                "Use a template whose add_generation_prompt writes exactly what precedes an assistant turn.",
            )
        return after[len(before) :]

    def _encode_turn(self, turn: str, content: str, stand_ins: _StandIns) -> tuple[list[int], str]:
        """Ids of an assistant turn up to and with its end of turn, and the text the template writes behind it.

        The end of turn is the first control token after the content; where the template writes none, the
        end-of-sequence token is added, for otherwise the model never learns to stop.
        """
        found = turn.rfind(content.strip())
        said = found + len(content.strip()) if found >= 0 else 0
        end = self._end_pattern.search(turn, said)
        if end is not None:
            return self._encode(turn[: end.end()], stand_ins), turn[end.end() :]
        said = said or len(turn.rstrip())
        return [*self._encode(turn[:said], stand_ins), self.tokenizer.eos_token_id], turn[said:]

    def _encode(self, text: str, stand_ins: _StandIns) -> list[int]:
        ids: list[int] = []
        for piece, was_control in stand_ins.split(text):
            ids += self._plain_ids(piece) if was_control else self._ids(piece)
        return ids

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of a control token's text as ordinary text: split after its first character, until none is left."""
        match = self._control_pattern.search(text)
        if match is None:
            return self._ids(text)
        if len(match.group()) == 1:
            # A one-character control token has no other spelling: its character is left out.
            return self._plain_ids(text[: match.start()]) + self._plain_ids(text[match.end() :])
        cut = match.start() + 1
        return self._plain_ids(text[:cut]) + self._plain_ids(text[cut:])

    def _render(self, messages: Sequence[dict[str, str]], *, opened: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opened)
        except Exception as error:  # a template is a program: whatever it raises is its own
            raise TemplateError(
                f"model.chat_template: rendering failed ({type(error).__name__}: {str(error).splitlines()[0]})",
                "Check that the template accepts these roles (a system turn, say), or set model.chat_template.",
            ) from error
        return text

    def shield_pattern(self, role: str) -> re.Pattern[str]:
        """Texts that must not become control tokens when a message of this role says them."""
        return self._patterns.get(role, self._any_control)


class _StandIns:
    """Replaces control tokens inside content by stand-ins while a template is rendered, and finds them again."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._texts: list[str] = []

    def apply(self, messages: Iterable[Message]) -> list[dict[str, str]]:
        return [{"role": m.role, "content": self._shield(m)} for m in messages]

    def _shield(self, message: Message) -> str:
        return self._template.shield_pattern(message.role).sub(self._stand_in, message.content)

    def _stand_in(self, match: re.Match[str]) -> str:
        self._texts.append(match.group())
        if len(self._texts) > _STAND_INS:
            raise TemplateError(
                f"a conversation holds more than {_STAND_INS} control tokens as text",
                "Remove the record, or the control tokens from its text.",
            )
        return chr(_FIRST_STAND_IN + len(self._texts) - 1)

    def split(self, text: str) -> list[tuple[str, bool]]:
        """(piece, whether it is content that a stand-in stood for), in order."""
        if not self._texts:
            return [(text, False)]
        pieces: list[tuple[str, bool]] = []
        for piece in _STAND_IN_SPLIT.split(text):
            if _STAND_IN_SPLIT.fullmatch(piece):
                pieces.append((self._texts[ord(piece) - _FIRST_STAND_IN], True))
            elif piece:
                pieces.append((piece, False))
        return pieces
