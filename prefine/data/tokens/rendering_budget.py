"""Limits on a template's rendering: CPU time, characters, digits of numbers."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

# CPU time of one rendering. A chat template takes milliseconds even for long conversations.
_MAX_SECONDS = 2.0
# The clock is read once in this many iterations and calls, as reading takes longer than an iteration.
_ROUNDS_A_LOOK = 16
_MAX_BITS = 4096
_NUMBER = re.compile(r"\d{4,}")


class OverBudgetError(Exception):
    """A rendering was stopped; the text continues a sentence after "the template"."""


class Budget:
    """The remaining budget of a rendering. Each method raises OverBudgetError before a limit is exceeded.

    Args:
        size: characters and list entries that may be written or built.
    """

    def __init__(self, size: int) -> None:
        self.begin(size)

    def begin(self, size: int) -> None:
        """Start a rendering that may write `size` characters."""
        self._limit = size
        self._spent = 0
        self._deadline = time.thread_time() + _MAX_SECONDS

    def spend(self) -> None:
        """Count a loop iteration or a call."""
        self._spent += 1
        if self._spent % _ROUNDS_A_LOOK == 0 and time.thread_time() > self._deadline:
            raise OverBudgetError(f"computed for more than {_MAX_SECONDS:g} s")

    def measured(self, value: Any) -> Any:
        """The value, if its text is within the limit."""
        if type(value) is not str:  # a text is measured when it is built
            self.size(value)
        return value

    def size(self, value: Any) -> int:
        """The length of a value as text: lists and dicts with shared entries are longer as text than in memory."""
        waiting, size = [value], 0
        while waiting:
            self.require(size := size + 1)
            each = waiting.pop()
            if isinstance(each, str):
                self.require(size := size + len(each))
            elif isinstance(each, list | tuple):
                self.require(len(each) + size)
                waiting += each
            elif isinstance(each, dict):
                self.require(2 * len(each) + size)
                waiting += [*each, *each.values()]
        return size

    def require(self, size: int) -> None:
        if size > self._limit:
            raise OverBudgetError(f"writes more than {self._limit:,} characters")

    def require_number(self, argument: Any) -> None:
        if isinstance(argument, int):
            self.require(abs(argument))

    def require_bits(self, bits: int) -> None:
        if bits > _MAX_BITS:
            raise OverBudgetError(f"computes a number of more than {_MAX_BITS:,} bits")

    def require_widths(self, spec: str) -> None:
        for digits in _NUMBER.findall(spec):
            self.require(int(digits[:18]))

    def require_format(self, spec: str, values: Any) -> None:
        """Check `spec % values`: no width may come from a variable or be too large."""
        if re.search(r"%[^a-zA-Z%]*\*", spec):
            raise OverBudgetError("takes the width of a text from a variable")
        for found in re.findall(r"%[^a-zA-Z%]*", spec):
            self.require_widths(found)
        self.require(len(spec) + spec.count("%") * self.size(values))

    def require_method(self, name: str, text: str, arguments: Sequence[Any]) -> None:
        """Check a call of a text's method that can make it longer."""
        if name == "replace" and len(arguments) > 1:
            old, new = str(arguments[0]), str(arguments[1])
            self.require(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
        if name == "join":
            for argument in arguments:
                if isinstance(argument, list | tuple | dict | str):
                    self.measured(argument)
                    self.require((len(text) + 1) * len(argument))
        if name == "expandtabs":
            self.require(len(text) + text.count("\t") * max([8, *(n for n in arguments if isinstance(n, int))]))
        if name == "translate":
            raise OverBudgetError("calls translate, which prefine cannot measure")
