"""Texts without e-mail addresses, telephone numbers, card numbers and whatever patterns an operator adds.

Done before a text is stored, so that what was removed never reaches the disk. It errs on the side of removing too much:
an order number that reads like a telephone number goes, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import regex

from prefine.errors import RecipeError

BUDGET_S = 0.25
"""Time for all patterns on the texts of one completion, in seconds."""

_EMAIL = regex.compile(r"(?<![\w.+-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}\w{2,24}")
_CARD = regex.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
# 7 to 15 digits (ITU-T E.164) with usual separators between them.
_PHONE = regex.compile(r"(?<![\w@])(?:\+|\(\+?)?\d(?:[ .\-/()]{0,2}\d){6,14}(?![\w@])")
_PHONE_STARTS = regex.compile(r"\+|\(|0\d|\d{3}[ .\-/]\d{3}[ .\-/]\d{4}$|1[ .\-]\(?\d{3}\)?[ .\-]\d{3}[ .\-]\d{4}$")
# What names a turn's part rather than being said in it.
_NAMES = frozenset({"role", "type", "id", "tool_call_id"})


class RedactionTimeoutError(Exception):
    """The patterns took longer on a text than BUDGET_S; goes no further than the store, which then keeps no text."""


class Redactor:
    """Replaces what the patterns match by `[email]`, `[phone]`, `[card]` and `[redacted]`.

    Args:
        builtin: whether e-mail addresses, telephone numbers and card numbers (by Luhn's check digit) are replaced.
        patterns: regular expressions of the operator, in the syntax of the `regex` package, which is that of `re`.

    Raises:
        RecipeError: a pattern is not a regular expression, or matches the empty text.
    """

    def __init__(self, *, builtin: bool = True, patterns: Sequence[str] = ()) -> None:
        self._builtin = builtin
        self._own = [_compiled(pattern) for pattern in patterns]

    def redacted(self, value: Any) -> Any:
        """A JSON value in which every text is redacted, apart from roles, types and ids.

        Raises:
            RedactionTimeoutError: the operator's patterns need longer than BUDGET_S.
        """
        return self._value(value, monotonic() + BUDGET_S)

    def _value(self, value: Any, deadline: float) -> Any:
        if isinstance(value, str):
            return self._text(value, deadline)
        if isinstance(value, Mapping):
            return {
                name: item if name in _NAMES and isinstance(item, str) else self._value(item, deadline)
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._value(item, deadline) for item in value]
        return value

    def _text(self, text: str, deadline: float) -> str:
        for pattern in self._own:
            left = deadline - monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                text = pattern.sub("[redacted]", text, timeout=left)
            except TimeoutError:
                raise RedactionTimeoutError(pattern.pattern) from None
        if self._builtin:
            text = _EMAIL.sub("[email]", text)
            text = _CARD.sub(lambda match: "[card]" if _luhn(match[0]) else match[0], text)
            text = _PHONE.sub(lambda match: "[phone]" if _PHONE_STARTS.match(match[0]) else match[0], text)
        return text


def _compiled(pattern: str) -> regex.Pattern[str]:
    try:
        found = regex.compile(pattern)
        empty = found.match("") is not None
    except (regex.error, RecursionError, OverflowError) as error:
        raise RecipeError(
            f"--redact-pattern is {pattern[:60]!r}, which is not a regular expression: {error}", "Correct the pattern."
        ) from None
    if empty:
        raise RecipeError(
            f"--redact-pattern is {pattern[:60]!r}, which matches the empty text",
            "Write + for *, for example.",
        )
    return found


def _luhn(text: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    doubled = (2 * digit - 9 if digit > 4 else 2 * digit for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
