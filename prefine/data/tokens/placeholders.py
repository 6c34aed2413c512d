"""Stand-ins for texts that must not become control tokens while a conversation goes through a chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator

from prefine.errors import TemplateError

# Characters of a private-use plane. Where content already holds one of them, it is stood for in the same way.
FIRST_STAND_IN = 0xF5A00
MOST_STAND_INS = 4096
STAND_IN = f"[{chr(FIRST_STAND_IN)}-{chr(FIRST_STAND_IN + MOST_STAND_INS - 1)}]"
"""A pattern for any one of them."""

_SPLIT = re.compile(f"({STAND_IN})")


class StandIns:
    """Replaces texts by one character each, the same text always by the same one, and finds them again."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._places: dict[str, int] = {}

    def hide(self, pattern: re.Pattern[str], text: str) -> str:
        """The text with a stand-in for each match of the pattern.

        Raises:
            TemplateError: there are more different matches than stand-ins.
        """
        return pattern.sub(lambda match: self._stand_in(match.group()), text)

    def _stand_in(self, hidden: str) -> str:
        place = self._places.setdefault(hidden, len(self._texts))
        if place == len(self._texts):
            self._texts.append(hidden)
        if place >= MOST_STAND_INS:
            raise TemplateError(
                f"a conversation holds more than {MOST_STAND_INS} different control tokens as text",
                "Remove the record, or the control tokens from its text.",
            )
        return chr(FIRST_STAND_IN + place)

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """(piece, whether a stand-in stood for it) in order; no piece is empty."""
        for piece in _SPLIT.split(text) if self._texts else [text]:
            if _SPLIT.fullmatch(piece):
                yield self._texts[ord(piece) - FIRST_STAND_IN], True
            elif piece:
                yield piece, False
