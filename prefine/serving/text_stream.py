"""Tokens to text while they come: what is sent is never taken back.

A token may end inside a character, and a stop text may be spread over tokens: both are held back until it is clear what
they become. Answers that are not streamed go the same way, so that both are the same text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

# What a decoder writes for a character of which not all bytes are there.
_INCOMPLETE = "\ufffd"
# A character has at most four bytes: after so many tokens without a whole one, they are no text.
_MOST_PENDING = 16


class TextStream:
    """Decodes one answer.

    Args:
        tokenizer: transformers'; used by one thread at a time.
        ends: ids that end the answer, which are no text.
        stops: the text ends before the first of these.

    Attributes:
        stopped: whether a stop text has come.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int], stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._stops = tuple(stops)
        self._ids: list[int] = []
        # Ids before _read are in the text. They are decoded again from _start on, as decoders look at neighbours.
        self._start = 0
        self._read = 0
        self._known = ""  # the text of ids[_start:_read]
        self._held = ""  # may become a stop text
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; returns the text that is certain now, often none."""
        if self.stopped or token in self._ends:
            return ""
        self._ids.append(token)
        text = self._decoded()
        incomplete = text.endswith(_INCOMPLETE)
        if incomplete and len(self._ids) - self._read <= _MOST_PENDING:
            return ""
        new = text.removesuffix(_INCOMPLETE)[len(self._known) :] if incomplete else text[len(self._known) :]
        if new:
            self._start, self._read = self._read, len(self._ids)
            known = self._decoded()
            self._known = known.removesuffix(_INCOMPLETE) if incomplete else known
        return self._certain(new)

    def finish(self) -> str:
        """The rest of the text, when no more tokens come."""
        if self.stopped:
            return ""
        certain = self._certain(self._decoded()[len(self._known) :])
        held, self._held = self._held, ""
        return certain if self.stopped else certain + held

    def _decoded(self) -> str:
        ids = self._ids[self._start :]
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _certain(self, new: str) -> str:
        """Of what is held and new, what no stop text can begin in; the rest is held."""
        if not self._stops:
            return new
        text = self._held + new
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        cut = len(text) - self._longest_beginning(text)
        self._held = text[cut:]
        return text[:cut]

    def _longest_beginning(self, text: str) -> int:
        """How many of the last characters may be the beginning of a stop text."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        return next(
            (size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in self._stops)), 0
        )
