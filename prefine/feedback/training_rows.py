"""Feedback -> rows to train on. Every event becomes part of a row or is handed on with the reason why not."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from prefine.feedback.database import opened_for_reading
from prefine.feedback.judgements import CUT, REPLACED, WITHDRAWN, Answered, Event, Judgements, Unused
from prefine.feedback.preference_pairs import Pair, Pairs

Wanted: TypeAlias = Literal["preferences", "votes", "demonstrations", "prompts"]

_NO_VOTE = Unused("event", "is no vote on one answer")
_NO_DEMONSTRATION = Unused("event", "compares answers, and shows none to imitate")
_CORRECTED = Unused("answer", "was corrected; the corrected text is the one to learn")


@dataclass(frozen=True)
class FeedbackRow:
    """A row, or why an event gives none.

    Attributes:
        number: of the event that it comes from (of several, the last one); of a prompt, the completion's.
        value: the row's columns, conversations and answers as lists of turns; None where there is none.
        unused: the reason, then.
    """

    number: int
    value: dict[str, Any] | None = None
    unused: Unused | None = None


def feedback_rows(path: Path, wanted: Wanted | None = None) -> Iterator[FeedbackRow]:
    """What a feedback database gives, in the order of its events.

    Args:
        path: the database; a server may be writing it.
        wanted: what to read it as; None takes preferences if there are any, else votes.

    Raises:
        DataError: it is not a feedback database, or cannot be read.
    """
    with opened_for_reading(path) as connection:
        judgements = Judgements(connection)
        if wanted is None:
            wanted = "preferences" if Pairs(judgements).pairs else "votes"
        if wanted == "preferences":
            yield from _preferences(connection, judgements)
        elif wanted == "votes":
            yield from _votes(connection, judgements)
        elif wanted == "demonstrations":
            yield from _demonstrations(connection, judgements)
        else:
            yield from _prompts(connection, judgements)


def content_digest(path: Path) -> str:
    """SHA-256 of all that could be trained on. The file's own bytes change without that, as its log is written back.

    Raises:
        DataError: it is not a feedback database, or cannot be read.
    """
    digest = hashlib.sha256()
    for wanted in ("preferences", "votes", "demonstrations", "prompts"):
        for row in feedback_rows(path, wanted):
            if row.value is not None:
                digest.update(json.dumps([wanted, row.value]).encode() + b"\n")
    return digest.hexdigest()


def _preferences(connection: sqlite3.Connection, judgements: Judgements) -> Iterator[FeedbackRow]:
    found = Pairs(judgements)
    rows = [(pair.number, pair) for pair in found.pairs.values()]
    corrected = [each for each in judgements.completions.values() if each.correction is not None]
    waiting: list[tuple[int, Pair | Answered | Unused]] = [
        *rows,
        *((each.correction.number, each) for each in corrected if each.correction is not None),
        *found.unused.items(),
    ]
    for number, item in sorted(waiting, key=lambda each: each[0]):
        if isinstance(item, Unused):
            yield FeedbackRow(number, unused=item)
        elif isinstance(item, Pair):
            yield FeedbackRow(number, _pair_columns(connection, item))
        else:
            yield _correction_row(connection, item)


def _pair_columns(connection: sqlite3.Connection, pair: Pair) -> dict[str, Any]:
    columns, rejected = _texts(connection, pair.chosen), _texts(connection, pair.rejected)
    chosen = columns.pop("completion")
    return {
        **columns,
        "chosen": chosen,
        "rejected": rejected["completion"],
        "id": f"{columns['id']}>{rejected['id']}",
        "rejected_model": rejected["model"],
        "source": pair.rule,
    }


def _correction_row(connection: sqlite3.Connection, answered: Answered) -> FeedbackRow:
    event = answered.correction
    if event is None:
        raise TypeError("a completion without a correction")
    if answered.unreadable is not None:
        return FeedbackRow(event.number, unused=answered.unreadable)
    columns = _texts(connection, answered)
    given = columns.pop("completion")
    wanted = _turn(json.loads(event.text or '""'))
    if wanted == given:
        return FeedbackRow(event.number, unused=Unused("correction", "is the answer itself"))
    columns["id"] += "/corrected"
    return FeedbackRow(event.number, {**columns, "chosen": wanted, "rejected": given, "source": "correction"})


def _votes(connection: sqlite3.Connection, judgements: Judgements) -> Iterator[FeedbackRow]:
    for event in judgements.events:
        yield _vote(connection, judgements.completions[event.completion], event)


def _vote(connection: sqlite3.Connection, answered: Answered, event: Event) -> FeedbackRow:
    if event.kind not in ("up", "down", "withdrawn"):
        return FeedbackRow(event.number, unused=_NO_VOTE)
    if event is not answered.thumb:
        return FeedbackRow(event.number, unused=REPLACED)
    if event.kind == "withdrawn":
        return FeedbackRow(event.number, unused=WITHDRAWN)
    if answered.unreadable is not None:
        return FeedbackRow(event.number, unused=answered.unreadable)
    if answered.up and not answered.is_whole:
        return FeedbackRow(event.number, unused=CUT)
    return FeedbackRow(event.number, {**_texts(connection, answered), "label": answered.up})


def _demonstrations(connection: sqlite3.Connection, judgements: Judgements) -> Iterator[FeedbackRow]:
    for event in judgements.events:
        answered = judgements.completions[event.completion]
        if event.kind in ("preferred", "regenerated"):
            yield FeedbackRow(event.number, unused=_NO_DEMONSTRATION)
        elif event is answered.correction and answered.unreadable is None:
            columns = _texts(connection, answered)
            yield FeedbackRow(event.number, {**columns, "completion": _turn(json.loads(event.text or '""'))})
        elif event.kind == "correction":
            yield FeedbackRow(event.number, unused=answered.unreadable or REPLACED)
        elif answered.correction is not None:
            yield FeedbackRow(event.number, unused=_CORRECTED)
        else:
            yield _vote(connection, answered, event)


def _prompts(connection: sqlite3.Connection, judgements: Judgements) -> Iterator[FeedbackRow]:
    seen: set[bytes] = set()
    for each in judgements.completions.values():
        if each.conversation is None:
            yield FeedbackRow(each.number, unused=each.unreadable)
        elif each.conversation not in seen:
            seen.add(each.conversation)
            columns = _texts(connection, each)
            yield FeedbackRow(
                each.number, {name: columns[name] for name in ("prompt", "tools", "id") if name in columns}
            )


def _texts(connection: sqlite3.Connection, answered: Answered) -> dict[str, Any]:
    """The columns of a completion: prompt, completion, tools if there are any, id, model, run and run_hash if known."""
    identifier, choice, model, run, run_hash, messages, tools, answer = connection.execute(
        "SELECT id, choice, model, run, run_hash, messages, tools, answer FROM completions WHERE number = ?",
        (answered.number,),
    ).fetchone()
    return {
        "prompt": json.loads(messages),
        "completion": _turn(json.loads(answer)),
        **({"tools": json.loads(tools)} if tools else {}),
        "id": f"{identifier}/{choice}" if choice else identifier,
        "model": model,
        **({"run": run} if run else {}),
        **({"run_hash": run_hash} if run_hash else {}),
    }


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
