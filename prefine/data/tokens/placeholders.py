"""Placeholders for texts that must not become control tokens while a conversation is rendered."""

from __future__ import annotations

import re
from collections.abc import Iterator

from prefine.errors import TemplateError

# Characters of a private-use plane. If content already holds one of them, it is replaced in the same way.
FIRST_PLACEHOLDER = 0xF5A00
MOST_PLACEHOLDERS = 4096
PLACEHOLDER = f"[{chr(FIRST_PLACEHOLDER)}-{chr(FIRST_PLACEHOLDER + MOST_PLACEHOLDERS - 1)}]"
"""A pattern for any one of them."""

_SPLIT = re.compile(f"({PLACEHOLDER})")


class Placeholders:
    """Replaces each text by one character, the same for equal texts, and finds them again."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._places: dict[str, int] = {}

    def hide(self, pattern: re.Pattern[str], text: str) -> str:
        """The text with a placeholder for each match of the pattern.

        Raises:
            TemplateError: there are more different matches than placeholders.
        """
        return pattern.sub(lambda match: self._placeholder(match.group()), text)

    def _placeholder(self, hidden: str) -> str:
        place = self._places.setdefault(hidden, len(self._texts))
        if place == len(self._texts):
            self._texts.append(hidden)
        if place >= MOST_PLACEHOLDERS:
            raise TemplateError(
                f"a conversation holds more than {MOST_PLACEHOLDERS} different control tokens as text",
                "Remove the record, or the control tokens from its text.",
            )
        return chr(FIRST_PLACEHOLDER + place)

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """(piece, whether it was replaced) in order; no piece is empty."""
        for piece in _SPLIT.split(text) if self._texts else [text]:
            if _SPLIT.fullmatch(piece):
                yield self._texts[ord(piece) - FIRST_PLACEHOLDER], True
            elif piece:
                yield piece, False
