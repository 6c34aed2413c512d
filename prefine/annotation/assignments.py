"""Who gets which item next: leases, overlap, hidden repeats, order. Every question is a look-up in an index.

An annotator has at most one lease. An item is free for an annotator who has not judged it while fewer votes and other
annotators' leases are on it than the overlap. Items come in the order of their rank. `annotators.begin_at` is the rank
before which nothing can be free for that annotator, so that what was judged long ago is not looked at again.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import sqlite3
from dataclasses import dataclass

from prefine.annotation.items import read_item
from prefine.annotation.records import ProjectSettings, Task

# A repeat comes after so many further items at least, and at most twice as many.
_FEWEST_BETWEEN = 10
_FREE = """
    SELECT i.rank, i.number,
        EXISTS (
            SELECT 1 FROM votes v WHERE v.annotator = :who AND v.item = i.number
            AND NOT EXISTS (SELECT 1 FROM undos u WHERE u.vote = v.number)
        ),
        i.missing > (
            SELECT COUNT(*) FROM leases l
            WHERE l.item = i.number AND l.annotator <> :who AND l.expires > :now AND NOT l.repeat
        )
    FROM items i INDEXED BY items_open WHERE i.missing > 0 AND i.rank >= :begin ORDER BY i.rank, i.number
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """An item that is handed to an annotator."""

    item: int
    token: str
    shown: tuple[str, ...]
    repeat: bool
    expires: float


def next_task(connection: sqlite3.Connection, settings: ProjectSettings, who: int, now: float) -> Task | None:
    """The annotator's open task again, or a new one; None if nothing is left. In a transaction of the caller's."""
    lease = lease_of(connection, who)
    if lease is not None and (lease.repeat or _may_keep(connection, who, lease, now)):
        if lease.expires <= now:
            connection.execute("UPDATE leases SET expires = ? WHERE annotator = ?", (_end(settings, now), who))
    else:
        lease = _new_lease(connection, settings, who, now)
    if lease is None:
        return None
    done, total = _counts(connection, who)
    item = read_item(connection, lease.item)
    return Task(item, lease.token, lease.shown, lease.repeat, done, max(total, done + 1))


def lease_of(connection: sqlite3.Connection, who: int) -> Lease | None:
    """The annotator's lease, expired or not."""
    row = connection.execute(
        "SELECT item, token, shown, repeat, expires FROM leases WHERE annotator = ?", (who,)
    ).fetchone()
    return None if row is None else Lease(row[0], row[1], tuple(json.loads(row[2])), bool(row[3]), row[4])


def give_back(connection: sqlite3.Connection, who: int) -> None:
    """End the annotator's lease; a repeat that was handed out stays due."""
    connection.execute("DELETE FROM leases WHERE annotator = ?", (who,))


def lend(
    connection: sqlite3.Connection,
    settings: ProjectSettings,
    who: int,
    item: int,
    shown: tuple[str, ...],
    now: float,
    *,
    repeat: bool,
) -> Lease:
    """Hand an item to an annotator, instead of what the annotator had."""
    lease = Lease(item, secrets.token_urlsafe(24), shown, repeat, _end(settings, now))
    connection.execute(
        "INSERT OR REPLACE INTO leases (annotator, item, token, shown, repeat, expires) VALUES (?, ?, ?, ?, ?, ?)",
        (who, item, lease.token, json.dumps(shown), repeat, lease.expires),
    )
    return lease


def plan_repeat(connection: sqlite3.Connection, settings: ProjectSettings, who: int, item: int, firsts: int) -> None:
    """After an annotator's first vote on an item, the `firsts`-th: whether it comes again, and when."""
    if int(firsts * settings.repeats) > int((firsts - 1) * settings.repeats):
        chance = _chance(settings, "repeat", who, item)
        after = firsts + chance.randint(_FEWEST_BETWEEN, 2 * _FEWEST_BETWEEN)
        connection.execute("INSERT OR IGNORE INTO repeats VALUES (?, ?, ?)", (who, item, after))


def reopen(connection: sqlite3.Connection, item: int) -> None:
    """Let the search of those who have not judged an item begin at it again: a vote on it was taken back."""
    (rank,) = connection.execute("SELECT rank FROM items WHERE number = ?", (item,)).fetchone()
    connection.execute(
        "UPDATE annotators SET begin_at = :rank WHERE begin_at > :rank AND NOT EXISTS ("
        " SELECT 1 FROM votes v WHERE v.annotator = annotators.number AND v.item = :item"
        " AND NOT EXISTS (SELECT 1 FROM undos u WHERE u.vote = v.number))",
        {"rank": rank, "item": item},
    )


def _new_lease(connection: sqlite3.Connection, settings: ProjectSettings, who: int, now: float) -> Lease | None:
    give_back(connection, who)
    (firsts,) = connection.execute("SELECT firsts FROM annotators WHERE number = ?", (who,)).fetchone()
    item = _due_repeat(connection, who, firsts)
    repeat = item is not None
    if item is None:
        item = _free_item(connection, who, now)
    if item is None:  # nothing new: what is to be repeated comes early
        item = _due_repeat(connection, who, None)
        repeat = item is not None
    if item is None:
        return None
    answers = [each for (each,) in connection.execute("SELECT id FROM answers WHERE item = ? ORDER BY place", (item,))]
    _chance(settings, "sides", who, item, repeat).shuffle(answers)
    return lend(connection, settings, who, item, tuple(answers), now, repeat=repeat)


def _free_item(connection: sqlite3.Connection, who: int, now: float) -> int | None:
    """The first free item. What nobody can make free for this annotator again, but an undo, is passed for good."""
    (begin,) = connection.execute("SELECT begin_at FROM annotators WHERE number = ?", (who,)).fetchone()
    passed, all_passed, found = begin, True, None
    for rank, number, judged, has_room in connection.execute(_FREE, {"who": who, "now": now, "begin": begin}):
        if not judged and has_room:
            found = number
            passed = rank if all_passed else passed
            break
        all_passed = all_passed and bool(judged)
        passed = rank + 1 if all_passed else passed
    if passed > begin:
        connection.execute("UPDATE annotators SET begin_at = ? WHERE number = ?", (passed, who))
    return found


def _due_repeat(connection: sqlite3.Connection, who: int, firsts: int | None) -> int | None:
    """The item whose repeat is due after so many first votes; of all that are planned the first one if that is None."""
    row = connection.execute(
        "SELECT item FROM repeats WHERE annotator = ? AND after <= ? ORDER BY after, item LIMIT 1",
        (who, firsts if firsts is not None else 2**62),
    ).fetchone()
    return None if row is None else int(row[0])


def _may_keep(connection: sqlite3.Connection, who: int, lease: Lease, now: float) -> bool:
    """Whether a lease holds: it has not expired, or nobody else has taken the item meanwhile."""
    if lease.expires > now:
        return True
    (missing,) = connection.execute("SELECT missing FROM items WHERE number = ?", (lease.item,)).fetchone()
    (others,) = connection.execute(
        "SELECT COUNT(*) FROM leases WHERE item = ? AND annotator <> ? AND expires > ? AND NOT repeat",
        (lease.item, who, now),
    ).fetchone()
    return bool(missing > others)


def _counts(connection: sqlite3.Connection, who: int) -> tuple[int, int]:
    """How many tasks the annotator has done, and how many there will be at most."""
    items, missing = connection.execute("SELECT items, missing FROM totals").fetchone()
    done, firsts = connection.execute("SELECT done, firsts FROM annotators WHERE number = ?", (who,)).fetchone()
    (due,) = connection.execute("SELECT COUNT(*) FROM repeats WHERE annotator = ?", (who,)).fetchone()
    return done, done + max(0, min(missing, items - firsts)) + due


def _end(settings: ProjectSettings, now: float) -> float:
    return now + 60 * settings.lease_minutes


def _chance(settings: ProjectSettings, *of: object) -> random.Random:
    """Random numbers that depend on the seed and on what they are for."""
    name = ":".join(map(str, (settings.seed, *of)))
    return random.Random(hashlib.sha256(name.encode()).digest())  # noqa: S311 - no secret: answers' ids are random
