"""Votes: what a ballot may say, and how a vote is written and taken back. Both are events; nothing is deleted."""

from __future__ import annotations

import json
import math
import sqlite3
from typing import Any

from prefine.annotation.assignments import give_back, lease_of, lend, plan_repeat, reopen
from prefine.annotation.items import is_encodable, read_item
from prefine.annotation.records import (
    BOTH_BAD,
    DOWN,
    RANKED,
    REWRITTEN,
    SKIP,
    TIE,
    UP,
    AnnotationItem,
    Ballot,
    CastVote,
    ProjectSettings,
)
from prefine.errors import PrefineError

MAX_NOTE_CHARACTERS = 10_000
MAX_TEXT_CHARACTERS = 100_000
_LONGEST_KEY = 100
_COLUMNS = (
    "v.number, v.item, a.name, v.kind, v.key, v.choice, v.ranking, v.text, v.text_of, v.strength, v.note, v.criteria,"
    " v.seconds, v.session, v.shown, v.repeat, v.at, EXISTS (SELECT 1 FROM undos u WHERE u.vote = v.number)"
)
SELECT_VOTES = f"SELECT {_COLUMNS} FROM votes v JOIN annotators a ON a.number = v.annotator"  # noqa: S608 - constants


class VoteError(PrefineError):
    """A vote that is not taken; `field` names what of the ballot, or "token" of the lease, is at fault."""


def write_vote(
    connection: sqlite3.Connection, settings: ProjectSettings, who: int, token: str, ballot: Ballot, now: float
) -> int:
    """Write a vote; returns its number, or that of an earlier one with this key. In a transaction of the caller's.

    A lease that has expired is still good for a vote while the annotator has no other: work that was done is kept.

    Raises:
        VoteError: the lease is not the annotator's, or the ballot is not allowed.
    """
    _require_name("key", ballot.key, fewest=8)
    before = connection.execute(
        "SELECT number, choice, ranking, text FROM votes WHERE annotator = ? AND key = ?", (who, ballot.key)
    ).fetchone()
    if before is not None:
        if before[1:] != (ballot.choice, json.dumps(ballot.ranking), ballot.text):
            raise VoteError("this key was used for another vote", "Load the page again.", field="key")
        return int(before[0])
    lease = lease_of(connection, who)
    if lease is None or lease.token != token:
        raise VoteError(
            "this task is not open any more: it was voted on, given back or handed to somebody else",
            "Load the page again for the next one.",
            field="token",
        )
    require_ballot(settings, read_item(connection, lease.item), ballot)
    cursor = connection.execute(
        "INSERT INTO votes (annotator, item, key, kind, choice, ranking, text, text_of, strength, note, criteria,"
        " seconds, session, shown, repeat, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(who, lease.item, ballot.key, settings.kind, ballot.choice, json.dumps(ballot.ranking)),
            *(ballot.text, ballot.text_of, ballot.strength, ballot.note, json.dumps(ballot.criteria)),
            *(float(ballot.seconds), ballot.session, json.dumps(lease.shown), lease.repeat, now),
        ),
    )
    give_back(connection, who)
    _count(connection, who, lease.item, ballot.choice, repeat=lease.repeat, by=1)
    if lease.repeat:
        connection.execute("DELETE FROM repeats WHERE annotator = ? AND item = ?", (who, lease.item))
    elif ballot.choice != SKIP:
        (firsts,) = connection.execute("SELECT firsts FROM annotators WHERE number = ?", (who,)).fetchone()
        plan_repeat(connection, settings, who, lease.item, firsts)
    return int(cursor.lastrowid or 0)


def undo_vote(connection: sqlite3.Connection, settings: ProjectSettings, who: int, now: float) -> CastVote | None:
    """Take the annotator's latest current vote back, and hand its item out again with the same sides.

    In a transaction of the caller's. None if there is no vote.
    """
    row = connection.execute(
        f"{SELECT_VOTES} WHERE v.annotator = ? AND NOT EXISTS (SELECT 1 FROM undos u WHERE u.vote = v.number)"  # noqa: S608
        " ORDER BY v.number DESC LIMIT 1",
        (who,),
    ).fetchone()
    if row is None:
        return None
    vote = vote_of(row)
    connection.execute("INSERT INTO undos (vote, at) VALUES (?, ?)", (vote.number, now))
    _count(connection, who, vote.item, vote.ballot.choice, repeat=vote.repeat, by=-1)
    if vote.repeat:  # it is due again, at once
        connection.execute("INSERT OR IGNORE INTO repeats VALUES (?, ?, 0)", (who, vote.item))
    else:
        connection.execute("DELETE FROM repeats WHERE annotator = ? AND item = ?", (who, vote.item))
        reopen(connection, vote.item)
    lend(connection, settings, who, vote.item, vote.shown, now, repeat=vote.repeat)
    return vote


def vote_of(row: tuple[Any, ...]) -> CastVote:
    """The vote of a row of SELECT_VOTES."""
    number, item, annotator, kind, key, choice, ranking, text, text_of, strength, note, criteria = row[:12]
    seconds, session, shown, repeat, at, undone = row[12:]
    groups = tuple(tuple(group) for group in json.loads(ranking))
    ballot = Ballot(
        key, choice, groups, text, text_of, strength, note, json.loads(criteria), seconds=seconds, session=session
    )
    return CastVote(
        number, item, annotator, kind, ballot, tuple(json.loads(shown)), bool(repeat), at, undone=bool(undone)
    )


def require_ballot(settings: ProjectSettings, item: AnnotationItem, ballot: Ballot) -> None:
    """Refuse what a ballot must not say about an item.

    Raises:
        VoteError: with the field.
    """
    ids = [each.id for each in item.answers]
    allowed = _choices(settings, ids)
    if ballot.choice not in allowed:
        raise _refused("choice", ballot.choice, f"is not one of {', '.join(allowed)}")
    _require_name("session", ballot.session, fewest=0)
    if not (math.isfinite(ballot.seconds) and ballot.seconds >= 0):
        raise _refused("seconds", ballot.seconds, "is not a time")
    _require_ranking(settings, ids, ballot)
    _require_text(ids, ballot)
    _require_details(settings, ids, ballot)


def _choices(settings: ProjectSettings, ids: list[str]) -> list[str]:
    if settings.kind == "compare":
        return [*ids, *((TIE, BOTH_BAD) if settings.allow_ties else ()), SKIP]
    return [*{"rank": (RANKED,), "thumb": (UP, DOWN), "rewrite": (REWRITTEN,)}[settings.kind], SKIP]


def _require_ranking(settings: ProjectSettings, ids: list[str], ballot: Ballot) -> None:
    named = [each for group in ballot.ranking for each in group]
    if ballot.choice != RANKED:
        if named:
            raise _refused("ranking", named, f"does not belong to the choice {ballot.choice}")
    elif sorted(named) != sorted(ids):
        raise _refused("ranking", named, "does not hold every answer once")
    elif any(not group for group in ballot.ranking):
        raise _refused("ranking", ballot.ranking, "has an empty place")
    elif not settings.allow_ties and any(len(group) > 1 for group in ballot.ranking):
        raise _refused("ranking", ballot.ranking, "has a tie, which this project does not take")


def _require_text(ids: list[str], ballot: Ballot) -> None:
    if ballot.text is None:
        if ballot.choice == REWRITTEN:
            raise _refused("text", None, "is missing")
        if ballot.text_of is not None:
            raise _refused("text_of", ballot.text_of, "is given without text")
        return
    if ballot.choice == SKIP:
        raise _refused("text", ballot.text, "does not belong to a skip")
    if not ballot.text.strip():
        raise _refused("text", ballot.text, "is blank")
    _require_written("text", ballot.text, MAX_TEXT_CHARACTERS)
    if ballot.text_of not in ids:
        raise _refused("text_of", ballot.text_of, "is no answer of this item")


def _require_details(settings: ProjectSettings, ids: list[str], ballot: Ballot) -> None:
    if ballot.strength is not None and (ballot.strength not in (1, 2, 3) or ballot.choice not in ids):
        raise _refused("strength", ballot.strength, "is not 1, 2 or 3 of a choice of one answer")
    if ballot.note and not settings.allow_notes:
        raise _refused("note", ballot.note, "is given, and this project takes no notes")
    _require_written("note", ballot.note, MAX_NOTE_CHARACTERS)
    values = {"compare": [*ids, TIE], "rank": [*ids, TIE], "thumb": [UP, DOWN], "rewrite": []}[settings.kind]
    if ballot.criteria and ballot.choice == SKIP:
        raise _refused("criteria", [*ballot.criteria], "does not belong to a skip")
    for name, value in ballot.criteria.items():
        if name not in settings.criteria:
            raise _refused("criteria", name, "is no criterion of this project")
        if value not in values or (value == TIE and not settings.allow_ties):
            raise _refused(f"criteria.{name}", value, "cannot be chosen here")


def _require_name(field: str, text: str, *, fewest: int) -> None:
    if not fewest <= len(text) <= _LONGEST_KEY or not text.isascii():
        raise _refused(field, text, f"is not {fewest} to {_LONGEST_KEY} ASCII characters")


def _require_written(field: str, text: str, most: int) -> None:
    if len(text) > most:
        raise _refused(field, text, f"is longer than {most:,} characters")
    if not is_encodable(text):
        raise _refused(field, text, "has a lone surrogate (half of a character)")


def _refused(field: str, value: object, rule: str) -> VoteError:
    return VoteError(f"{str(value)[:60]!r} {rule}", "Load the page again.", field=field)


def _count(connection: sqlite3.Connection, who: int, item: int, choice: str, *, repeat: bool, by: int) -> None:
    """Count a vote, or one that was taken back (`by` is -1)."""
    first = 0 if repeat else by
    counts = 0 if repeat or choice == SKIP else by
    connection.execute("UPDATE annotators SET done = done + ?, firsts = firsts + ? WHERE number = ?", (by, first, who))
    if counts:
        (missing,) = connection.execute("SELECT missing FROM items WHERE number = ?", (item,)).fetchone()
        connection.execute("UPDATE items SET missing = ? WHERE number = ?", (missing - counts, item))
        change = max(0, missing - counts) - max(0, missing)  # votes beyond the overlap make up for no other item
        connection.execute("UPDATE totals SET missing = missing + ?", (change,))
