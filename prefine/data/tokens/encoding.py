"""Text to token ids, where the caller decides which text may become a control token.

A tokenizer looks for its control tokens in whatever text it is given, and may begin every text as if it stood at the
start of a sentence. Neither must happen to a piece of a conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

# Texts that merge with nothing behind them in almost every vocabulary; see `_tokenized`.
_ANCHORS = ("\n", "\t", ":")
PLAIN_TEXT = "."
"""Stands for any text without control tokens, where only that something stands before a text matters."""

# A character that no vocabulary holds.
_UNWRITTEN = "\U0010fffd"
# How sentencepiece and byte-level vocabularies write a space.
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
        control: texts of all control tokens: the special ones, and added ones such as role markers that nobody
            flagged. Added white space, words and single characters are vocabulary, not control.
        control_ids: their ids. Where text that the vocabulary lacks becomes a token of its own, that one is none.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # The template's control tokens are meant as such, whatever the tokenizer does with a user's.
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
        """Ids of a text in which control tokens are meant; it stands behind `behind`, which may be empty.

        Only their exact spelling counts. A tokenizer that lower-cases or folds wide characters first would also
        find them in texts that merely look alike.
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
        """Everything the tokenizer was made with, as one text: tokens, merges, what it does to text before."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return json.dumps(self._tokenizer.get_vocab(), sort_keys=True)
        if backend.truncation is not None or backend.padding is not None:  # left behind by some earlier call
            backend = type(backend).from_str(backend.to_str())
            backend.no_truncation()
            backend.no_padding()
        written: str = backend.to_str()
        return written

    def _without_control(self, text: str) -> Iterator[str]:
        """The text in pieces, each control token in it cut behind its first character, until none is left."""
        match = self._control_pattern.search(text)
        if match is None:
            yield text
            return
        # A special token of one character has no other spelling: it is left out.
        cut = match.start() + (len(match.group()) > 1)
        yield from self._without_control(text[:cut])
        yield from self._without_control(text[max(cut, match.start() + 1) :])

    def _has_lookalike(self, ids: list[int], text: str) -> bool:
        """Whether more of a text became control tokens than is spelled as one."""
        became = sum(token in self.control_ids for token in ids)
        return became > 0 and became > sum(1 for _ in self._control_pattern.finditer(text))

    def _halves_of_lookalike(self, text: str) -> tuple[str, str] | None:
        """The text cut inside the first piece that became a control token without being spelled as one."""
        if not self._tokenizer.is_fast:  # these cannot say which piece it was
            return None
        found = self._tokenizer(text, return_offsets_mapping=True, **self._options)
        for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            if token in self.control_ids and text[start:end].strip() not in self.control:
                # Of a single character no half is left: it has no other spelling.
                return (text[: start + 1], text[start + 1 :]) if end - start > 1 else (text[:start], text[end:])
        return None

    def _tokenized(self, text: str, behind: str) -> list[int]:
        """Ids of a text as they are behind another one.

        Sentencepiece tokenizers open a text with a space that is not there. Behind other text they do not, so an
        anchor is tokenized with the text, and its ids are taken off again.
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
    """Whether an added token that is not special is a piece of ordinary text."""
    bare = text.strip().strip(_WRITTEN_SPACES)
    return len(bare) <= 1 or bare.isalnum()
