"""Layouts: the columns by which a row is recognised, and how it becomes records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefine.data.reading.rows import RowError, kind_of
from prefine.data.records.turns import is_blank, prompt_turns, said_text
from prefine.records import Conversation, Message, Record
from prefine.row_rules import PairRule

SYSTEM_COLUMNS = ("system", "system_prompt")
COMMON_COLUMNS = frozenset({"id", "extra", "history", "tools", "functions", *SYSTEM_COLUMNS})
"""Read in every layout."""


class LeftOut(RowError):  # noqa: N818 - the row is valid
    """A valid row without anything for the wanted kind of record, such as a thumb down when answers are imitated."""


@dataclass(frozen=True)
class RowView:
    """A row as a layout reads it.

    Attributes:
        value: its columns.
        common: fields that records of every kind have.
        pairs: which pairs several ranked answers give.
    """

    value: Mapping[str, Any]
    common: Mapping[str, Any]
    pairs: PairRule = "best_worst"

    def __getitem__(self, column: str) -> Any:
        """The value of a column; None if there is none."""
        return self.value.get(column)

    def first(self, *columns: str) -> str:
        """The first of these columns that has a value; else the first that exists."""
        with_value = (name for name in columns if self.value.get(name) is not None)
        there = (name for name in columns if name in self.value)
        return next(with_value, None) or next(there, columns[0])

    def conversation(self, turns: list[Message]) -> Conversation:
        """The turns as a conversation: after the turns of `history`, opened by the system column if there is one.

        Raises:
            RowError: an invalid `history` or system column, or two different system turns.
        """
        own_system = turns[:1] if turns and turns[0].role == "system" else []
        turns = [*own_system, *_earlier_turns(self.value.get("history")), *turns[len(own_system) :]]
        for column in SYSTEM_COLUMNS:
            value = self.value.get(column)
            if is_blank(value):
                continue
            instruction = said_text(value, column)
            if not turns or turns[0].role != "system":
                turns = [Message(role="system", content=instruction), *turns]
            elif turns[0].content != instruction:
                raise RowError(column, "differs from the system turn of the conversation")
        return tuple(turns)


def _earlier_turns(value: Any) -> list[Message]:
    """The turns of a `history` column: pairs of a question and an answer, or a chat list. They are context."""
    if is_blank(value):
        return []
    if not isinstance(value, list):
        raise RowError("history", f"is {kind_of(value)}, not a list of pairs of a question and an answer")
    if all(isinstance(each, dict) for each in value):
        return prompt_turns(value, "history")
    turns: list[Message] = []
    for index, pair in enumerate(value):
        field = f"history[{index}]"
        if not (isinstance(pair, list) and len(pair) == 2):
            raise RowError(field, "is not a pair of a question and an answer")
        turns.append(Message(role="user", content=said_text(pair[0], f"{field}[0]")))
        turns.append(Message(role="assistant", content=said_text(pair[1], f"{field}[1]")))
    return turns


@dataclass(frozen=True)
class Shape:
    """A layout of rows.

    Attributes:
        name: for messages.
        needs: columns that must have a value; "a or b" is met by either.
        build: the records in a row that has them.
        may_have: further columns it reads.
        may_be_null: needed columns whose null is a valid value.
        when: a further condition on the row.
    """

    name: str
    needs: tuple[str, ...]
    build: Callable[[RowView], Sequence[Record]]
    may_have: frozenset[str] = frozenset()
    may_be_null: frozenset[str] = frozenset()
    when: Callable[[Mapping[str, Any]], bool] | None = None

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.needs)})"

    @cached_property
    def _needs(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(need.split(" or ")) for need in self.needs)

    @cached_property
    def columns(self) -> frozenset[str]:
        """All columns it reads, besides those of every layout."""
        return frozenset(name for names in self._needs for name in names) | self.may_have

    @property
    def turns_column(self) -> str:
        """The column of turns, for errors."""
        return self._needs[0][0]

    def fits(self, value: Mapping[str, Any]) -> bool:
        """Whether a row has this shape by its values; a null column counts as missing."""
        for names in self._needs:
            for name in names:
                if value.get(name) is not None or (name in self.may_be_null and name in value):
                    break
            else:
                return False
        return self.when is None or self.when(value)

    def fits_names(self, value: Mapping[str, Any]) -> bool:
        """Whether a row would have this shape if its null columns had values."""
        return all(any(name in value for name in names) for names in self._needs) and (
            self.when is None or self.when(value)
        )

    def lacks_a_value(self, value: Mapping[str, Any]) -> bool:
        """Whether a row has all columns of this shape, and values in some of them besides the first."""
        others = [name for names in self._needs[1:] for name in names]
        return self.fits_names(value) and any(value.get(name) is not None for name in others)

    def taken(self, value: Mapping[str, Any]) -> frozenset[str]:
        """The columns of a row that this shape reads; others are kept in the record's `extra`."""
        used = (next((name for name in names if value.get(name) is not None), names[0]) for names in self._needs)
        return self.may_have.union(used)


def extra_of(value: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """Columns that no field of the record takes."""
    kept = {name: item for name, item in value.items() if name not in taken and name not in COMMON_COLUMNS}
    own = value.get("extra")
    if own is None:
        return kept
    return {**own, **kept} if isinstance(own, dict) else {**kept, "extra": own}
