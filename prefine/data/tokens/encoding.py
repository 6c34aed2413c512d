"""Text to token ids; the caller decides which text may become a control token.

A tokenizer finds control tokens in any text, and may treat every text as the start of a sentence. Neither may happen to
a piece of a conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

# Texts that do not merge with what follows in almost every vocabulary; see `_tokenized`.
_ANCHORS = ("\n", "\t", ":")
PLAIN_TEXT = "."
"""Stands for any preceding text without control tokens, if only its presence matters."""

# A character that is in no vocabulary.
_UNWRITTEN = "\U0010fffd"
# The space in sentencepiece and byte-level vocabularies.
_WRITTEN_SPACES = " ▁Ġ"


def any_of(texts: Iterable[str], *choices: str) -> re.Pattern[str]:
    """A pattern that matches any of the texts, the longest first, or one of `choices`, which are patterns."""
    literal = [re.escape(text) for text in sorted(texts, key=len, reverse=True) if text]
    return re.compile("|".join([*literal, *choices]) or "(?!)")


class TextEncoder:
    """A tokenizer with control over control tokens.

    Args:
        tokenizer: a transformers tokenizer with an end-of-sequence token.

    Attributes:
        special: texts of the tokens that the tokenizer calls special, and its end of sequence.
        control: texts of all control tokens: the special ones, and added ones that are not flagged, such as role
            markers. Added white space, words and single characters are vocabulary, not control.
        control_ids: their ids, without the unknown token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # The template's control tokens are intended, whatever the tokenizer does with those in a user's text.
        splits = getattr(tokenizer, "split_special_tokens", False)
        self._options = {"add_special_tokens": False} | ({"split_special_tokens": False} if splits else {})
        flagged = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.special = frozenset(flagged | set(tokenizer.all_special_tokens) | {tokenizer.eos_token})
        added = set(tokenizer.get_added_vocab())
        spoken = {text for text in self.special if text.strip()}
        self.control = frozenset(spoken | {text for text in added - self.special if not _is_vocabulary(text)})
        structural = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token}
        unknown = set(self._raw_ids(_UNWRITTEN)) - set(tokenizer.convert_tokens_to_ids(sorted(structural - {None})))
        self.control_ids = frozenset(tokenizer.convert_tokens_to_ids(sorted(self.control))) - unknown
        self._control_pattern = any_of(self.control)
        self._adds_prefix = self._raw_ids("x") != self._raw_ids("\nx")[len(self._raw_ids("\n")) :]

    def ids(self, text: str, behind: str) -> list[int]:
        """Ids of a text in which control tokens are intended; it follows `behind`, which may be empty.

        Only their exact spelling counts. A tokenizer that lower-cases or folds wide characters first would also find
        them in similar texts.
        """
        ids: list[int] = []
        waiting = [text]
        while waiting:
            piece = waiting.pop()
            found = self._tokenized(piece, behind)
            halves = self._halves_of_lookalike(piece) if self._has_lookalike(found, piece) else None
            if halves is not None:
                waiting += reversed(halves)
                continue
            ids += found
            behind = piece or behind
        return ids

    def plain_ids(self, text: str, behind: str) -> list[int]:
        """Ids of a text none of which may become a control token."""
        ids: list[int] = []
        for piece in self._without_control(text):
            ids += self.ids(piece, behind)
            behind = PLAIN_TEXT
        return ids

    def vocabulary(self) -> str:
        """The complete definition of the tokenizer as one text: tokens, merges, normalisation."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return json.dumps(self._tokenizer.get_vocab(), sort_keys=True)
        if backend.truncation is not None or backend.padding is not None:  # left by an earlier call
            backend = type(backend).from_str(backend.to_str())
            backend.no_truncation()
            backend.no_padding()
        written: str = backend.to_str()
        return written

    def _without_control(self, text: str) -> Iterator[str]:
        """The text in pieces: each control token in it is split after its first character, until none is left."""
        match = self._control_pattern.search(text)
        if match is None:
            yield text
            return
        # A special token of one character cannot be split: it is dropped.
        cut = match.start() + (len(match.group()) > 1)
        yield from self._without_control(text[:cut])
        yield from self._without_control(text[max(cut, match.start() + 1) :])

    def _has_lookalike(self, ids: list[int], text: str) -> bool:
        """Whether more control tokens came out of a text than it spells."""
        became = sum(token in self.control_ids for token in ids)
        return became > 0 and became > sum(1 for _ in self._control_pattern.finditer(text))

    def _halves_of_lookalike(self, text: str) -> tuple[str, str] | None:
        """The text split inside the first piece that became a control token without being spelled as one."""
        if not self._tokenizer.is_fast:  # these tokenizers cannot tell which piece it was
            return None
        found = self._tokenizer(text, return_offsets_mapping=True, **self._options)
        for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            if token in self.control_ids and text[start:end].strip() not in self.control:
                # A single character cannot be split: it is dropped.
                return (text[: start + 1], text[start + 1 :]) if end - start > 1 else (text[:start], text[end:])
        return None

    def _tokenized(self, text: str, behind: str) -> list[int]:
        """Ids of a text as it is tokenized after another one.

        Sentencepiece tokenizers add a space to the start of a text, but not after other text. So an anchor is tokenized
        with the text, and its ids are removed.
        """
        if not text or not behind or not self._adds_prefix:
            return self._raw_ids(text)
        ended = max((text for text in self.control if behind.endswith(text)), key=len, default=None)
        for anchor in _ANCHORS if ended is None else (ended,):
            head, whole = self._raw_ids(anchor), self._raw_ids(anchor + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self._raw_ids(text)

    def _raw_ids(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._tokenizer(text, return_attention_mask=False, **self._options)["input_ids"]
        return ids


def _is_vocabulary(text: str) -> bool:
    """Whether an added token that is not special is ordinary text."""
    bare = text.strip().strip(_WRITTEN_SPACES)
    return len(bare) <= 1 or bare.isalnum()
