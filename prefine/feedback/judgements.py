"""What the events of a feedback database come to: for every completion its last thumb, its last correction, its rivals.

Texts stay in the database. Here a conversation and an answer are hashes, so that a large database fits into memory.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from prefine.feedback.database import kept_since
from prefine.feedback.store import NO_CONVERSATION, NOT_ASKED, NOT_REDACTED, EventKind

_COMPLETE = "stop"
_NO_TEXTS = {
    NOT_ASKED: "were not stored, as the server ran without --store-prompts",
    NOT_REDACTED: "were not stored, as redacting them took too long",
    NO_CONVERSATION: "were not stored, as the prompt of a text completion is no conversation",
}


class Event(NamedTuple):
    """One event as it is stored. `other` is the number of another completion."""

    number: int
    completion: int
    kind: EventKind
    text: str | None
    other: int | None


class Unused(NamedTuple):
    """Why an event becomes no row: `reason` reads on from `field`."""

    field: str
    reason: str


CUT = Unused("answer", "was cut before the model ended it, so its end is not one to learn")
REPLACED = Unused("event", "was replaced by a later one")
WITHDRAWN = Unused("thumb", "was taken back")


@dataclass
class Answered:
    """A completion without its texts.

    Attributes:
        number: its own, in the database.
        without_texts: why it has no texts; None where it has.
        conversation, answer: hashes; None without texts.
        is_whole: whether the model ended the answer itself, so that its end may be learned.
        gone_on_with: whether a later conversation holds the answer and goes on.
        thumb, correction: the last event of that kind.
        superseded: earlier ones.
    """

    number: int
    without_texts: str | None
    is_whole: bool
    conversation: bytes | None = None
    answer: bytes | None = None
    gone_on_with: bool = False
    thumb: Event | None = None
    correction: Event | None = None
    superseded: list[Event] = field(default_factory=list)

    @property
    def up(self) -> bool:
        """Whether its thumb is up."""
        return self.thumb is not None and self.thumb.kind == "up"

    @property
    def down(self) -> bool:
        """Whether its thumb is down."""
        return self.thumb is not None and self.thumb.kind == "down"

    @property
    def unreadable(self) -> Unused | None:
        """Why nothing of it can become a row, if so."""
        return None if self.without_texts is None else Unused("texts", _NO_TEXTS[self.without_texts])


class Judgements:
    """All completions with their events, and the events between two of them.

    Args:
        connection: of a feedback database, in a transaction.

    Attributes:
        completions: by number, in order; those past the retention time are left out, with their events.
        events: all, in order.
        comparisons: events that say one completion is better than another one.
        regenerations: events that say a completion was asked for in the place of another one.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.completions: dict[int, Answered] = {}
        since = kept_since(connection)
        continued: set[tuple[bytes, bytes]] = set()
        for number, without, reason, messages, tools, answer in connection.execute(
            "SELECT number, without_texts, finish_reason, messages, tools, answer FROM completions WHERE at >= ?"
            " ORDER BY number",
            (since,),
        ):
            found = Answered(number, without, reason == _COMPLETE)
            if without is None:
                turns = json.loads(messages)
                found.conversation, found.answer = _hash_of(turns, tools), _hash(json.loads(answer))
                if len(turns) > 2 and turns[-2].get("role") == "assistant":
                    continued.add((_hash_of(turns[:-2], tools), _hash(_said(turns[-2]))))
            self.completions[number] = found
        for found in self.completions.values():
            found.gone_on_with = (found.conversation, found.answer) in continued
        self.events = [
            Event(*row)
            for row in connection.execute("SELECT number, completion, kind, text, other FROM events ORDER BY number")
            if row[1] in self.completions and (row[4] is None or row[4] in self.completions)
        ]
        self.comparisons = [event for event in self.events if event.kind == "preferred"]
        self.regenerations = [event for event in self.events if event.kind == "regenerated"]
        for event in self.events:
            self._take(event)

    def _take(self, event: Event) -> None:
        about = self.completions[event.completion]
        if event.kind in ("up", "down", "withdrawn"):
            about.superseded += [about.thumb] if about.thumb else []
            about.thumb = event
        elif event.kind == "correction":
            about.superseded += [about.correction] if about.correction else []
            about.correction = event

    def by_conversation(self) -> dict[bytes, list[Answered]]:
        """The completions with texts, those that answer the same conversation together."""
        found: dict[bytes, list[Answered]] = defaultdict(list)
        for each in self.completions.values():
            if each.conversation is not None:
                found[each.conversation].append(each)
        return found


def _hash_of(turns: Sequence[Mapping[str, Any]], tools: str | None) -> bytes:
    return _hash([[turn.get("role"), _said(turn)] for turn in turns], tools)


def _said(turn: Mapping[str, Any]) -> Any:
    """A turn's content; blocks of text as the one text that they are."""
    content = turn.get("content")
    if isinstance(content, list) and all(isinstance(block, dict) and block.get("type") == "text" for block in content):
        return "".join(str(block.get("text", "")) for block in content)
    return content


def _hash(*values: Any) -> bytes:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()[:16]
