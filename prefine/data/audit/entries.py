"""The audit's view of a record: where it is, what was asked, and what was answered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from prefine.data.audit.personal import masked
from prefine.data.reading.rows import printable
from prefine.data.records.row_flags import plain_name
from prefine.data.records.selection import Place
from prefine.json_reading import JsonError, parse_json
from prefine.records import Completion, Conversation, Demonstration, Preference, Record, Vote

_EXCERPT_CHARACTERS = 160
_LOOKED_AT = 2_000
_SPACE = re.compile(r"\s+")
_ANNOTATOR_COLUMNS = frozenset(
    (
        *("annotator", "annotator_id", "annotator_name", "annotated_by", "labeler", "labeler_id", "labeller"),
        *("labeller_id", "rater", "rater_id", "worker", "worker_id", "workerid", "crowd_worker", "evaluator"),
        *("evaluator_id", "reviewer", "reviewer_id", "judge", "voter", "voter_id", "user_id"),
    )
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of an audited source.

    Attributes:
        number: of the record, from 0.
        place: file and line of its row.
        row: the columns of that row, as they were read.
        prompt: the turns before the answer, without system turns, as one text. It is what texts are compared by.
        system: system turns and reasoning, as one text.
        tools: definitions and calls of tools.
        answers: (chosen, rejected), (completion,), (the last answer,) of a demonstration, or none of a prompt.
        annotator: who judged it, if a column says so.
    """

    number: int
    place: Place
    record: Record
    row: Mapping[str, Any]
    prompt: str
    system: str
    tools: tuple[Mapping[str, Any], ...]
    answers: tuple[str, ...]
    annotator: str | None

    @property
    def text(self) -> str:
        """Everything that is said, as one text. Numbers do not go on over the empty lines between its parts."""
        return "\n\n".join((self.system, self.prompt, *self.answers, *_texts_in(self.tools)))


def entry_of(number: int, place: Place, record: Record, row: Mapping[str, Any]) -> Entry:
    """The entry of a record that was read from a row."""
    turns = record.messages if isinstance(record, Demonstration) else record.prompt
    asked = turns[:-1] if isinstance(record, Demonstration) else turns
    return Entry(
        number=number,
        place=place,
        record=record,
        row=row,
        prompt="\n".join(turn.content for turn in asked if turn.role != "system"),
        system=_system(turns),
        tools=(*record.tools, *(call for turn in turns for call in turn.tool_calls)),
        answers=_answers(record),
        annotator=_annotator(row),
    )


def _system(turns: Conversation) -> str:
    said = [turn.content for turn in turns if turn.role == "system"]
    return "\n".join([*said, *(turn.reasoning for turn in turns if turn.reasoning is not None)])


def _texts_in(values: tuple[Any, ...]) -> Iterator[str]:
    """Keys, texts and numbers in JSON values, in any order. A call's arguments may be the text of a JSON value."""
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            try:
                waiting.append(parse_json(value))
            except JsonError:
                yield value
        elif isinstance(value, str | int | float):
            yield str(value)


def _answers(record: Record) -> tuple[str, ...]:
    match record:
        case Preference():
            return record.chosen, record.rejected
        case Vote() | Completion():
            return (record.completion,)
        case Demonstration():
            return (record.messages[-1].content,)
    return ()


def _annotator(row: Mapping[str, Any]) -> str | None:
    for name, value in row.items():
        if _names_an_annotator(name) and isinstance(value, str | int) and value != "":
            return str(value)
    return None


@lru_cache(maxsize=1_000)
def _names_an_annotator(column: str) -> bool:
    return plain_name(column) in _ANNOTATOR_COLUMNS


def at(place: Place) -> str:
    """A place as text."""
    return f"{printable(place[0])}:{place[1]}"


def excerpt_of(text: str) -> str:
    """The start of a text on one line, with personal data masked."""
    line = printable(_SPACE.sub(" ", masked(text[:_LOOKED_AT])).strip())
    return line if len(line) <= _EXCERPT_CHARACTERS else line[: _EXCERPT_CHARACTERS - 1].rstrip() + "…"


def shown(entry: Entry) -> str:
    """A record in one line: the end of its prompt's start and its answers."""
    parts = [f"“{excerpt_of(entry.prompt)}”" if entry.prompt else ""]
    names = ("chosen", "rejected") if len(entry.answers) == 2 else ("answer",)
    parts += [f"{name}: “{excerpt_of(answer)}”" for name, answer in zip(names, entry.answers, strict=False)]
    return " · ".join(part for part in parts if part)
