"""Lengths in tokens against the context: estimated from characters, or counted by a tokenizer."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from dataclasses import asdict

from prefine.data.audit.entries import Entry, at, shown
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, by_share, unchecked
from prefine.data.lengths import EvenSample, Lengths, lengths_of
from prefine.formatting import percent, plural, whole
from prefine.records import Record

MOST_COUNTED = 5_000
"""Records that are tokenized."""
# With today's tokenizers a token has about 4 characters of English text, 1.5 of other scripts; each turn of a chat
# template adds about 5.
_ASCII_CHARACTERS = 4.0
_OTHER_CHARACTERS = 1.5
_TURN_TOKENS = 5

TokenCount = Callable[[Record], int | None]
"""Tokens of a record's prompt and longest answer together; None if the chat template refuses it."""


def estimated_tokens(entry: Entry) -> tuple[int, int]:
    """Tokens of the prompt, with system turns and tools, and of the longest answer, estimated from characters."""
    record = entry.record
    turns = len(getattr(record, "messages", ())) or len(getattr(record, "prompt", ())) + bool(entry.answers)
    tools = "".join(json.dumps(each, ensure_ascii=False) for each in entry.tools)
    answer = _estimated(max(entry.answers, key=len, default="")) + _TURN_TOKENS * bool(entry.answers)
    whole = sum(map(_estimated, (entry.system, entry.prompt, tools))) + _TURN_TOKENS * turns
    return whole - _TURN_TOKENS * bool(entry.answers), answer


def _estimated(text: str) -> int:
    ascii_characters = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return round(ascii_characters / _ASCII_CHARACTERS + (len(text) - ascii_characters) / _OTHER_CHARACTERS)


class TokenLengths:
    """Compares lengths with the context.

    Args:
        context: the most tokens of a prompt and an answer together.
        count: counts the tokens of a sampled record; None estimates them.
        model: whose tokenizer counts.

    Attributes:
        longest_prompt: tokens of the longest prompt, with system turns and tools, estimated.
    """

    def __init__(self, context: int, count: TokenCount | None = None, model: str = "") -> None:
        self._context = context
        self._count = count
        self._model = model
        self._estimates = array("l")
        self.longest_prompt = 0
        self._counted: EvenSample[int | None] = EvenSample(MOST_COUNTED)
        self._examples: list[AuditExample] = []
        self._over = 0

    def add(self, entry: Entry) -> None:
        """Take a record."""
        prompt, answer = estimated_tokens(entry)
        estimate = prompt + answer
        self.longest_prompt = max(self.longest_prompt, prompt)
        if self._count is None:
            self._note(entry, estimate)
        elif self._counted.wants(len(self._estimates)):
            counted = self._count(entry.record)
            self._counted.add(counted)
            if counted is not None:
                self._note(entry, counted)
        self._estimates.append(estimate)

    @property
    def lengths(self) -> Lengths | None:
        """Of all records, estimated."""
        return lengths_of(self._estimates) if self._estimates else None

    def finding(self) -> AuditFinding:
        """Of all records, or of those that were counted."""
        check, title = "token_lengths", "Token lengths"
        counted = [each for each in self._counted.values if each is not None]
        values = self._estimates if self._count is None else counted
        if not values:
            return unchecked(check, title, "No record could be counted: the chat template refuses them.")
        found, over = lengths_of(values), sum(value > self._context for value in values)
        how = "estimated from characters" if self._count is None else f"by the tokenizer of {self._model}"
        says = (
            f"Prompt and longest answer have a median of {whole(found.median)} tokens, 95 % have at most "
            f"{whole(found.at_95_percent)}, the longest {whole(found.maximum)} ({how}). "
        )
        says += (
            f"{plural(over, 'record')} of {len(values):,} ({percent(over / len(values), 1)}) exceed the context of "
            f"{self._context:,}."
            if over
            else f"All fit the context of {self._context:,}."
        )
        refused = len(self._counted.values) - len(counted)
        if refused:
            says += f" The chat template refuses {plural(refused, 'record')}; prefine data check says why."
        remedy = (
            "Raise data.max_length_tokens (--max-length-tokens here): longer rows are cut, or left out if nothing to "
            "learn is left."
            if over
            else ""
        )
        if self._count is None and over:
            remedy += " Count exactly with --model."
        figures = {"estimated": self._count is None, "context": self._context, **asdict(found)}
        severity = by_share(over, len(values), medium=0.05, high=0.25)
        return AuditFinding(check, title, severity, says, over, len(values), "records", remedy, self._examples, figures)

    def _note(self, entry: Entry, tokens: int) -> None:
        if tokens > self._context and len(self._examples) < MOST_EXAMPLES:
            self._examples.append(AuditExample([at(entry.place)], shown(entry), f"{tokens:,} tokens"))
