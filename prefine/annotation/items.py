"""Items: written into a project, read back, and put in the order in which they are handed out."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prefine.annotation.records import ANSWERS, AnnotationItem, JudgedAnswer, Kind, ProjectSettings, PromptTurn
from prefine.errors import DataError

_ID_BYTES = 8
_ROLES = ("system", "user", "assistant")


def insert_items(connection: sqlite3.Connection, settings: ProjectSettings, items: Iterable[AnnotationItem]) -> int:
    """Write items that are not there yet, and order all anew. In a transaction of the caller's. Returns how many.

    Raises:
        DataError: an item has no prompt, or more or fewer answers than the kind takes.
    """
    added = 0
    for item in items:
        _require(item, settings.kind)
        prompt = json.dumps([[turn.role, turn.content] for turn in item.prompt])
        cursor = connection.execute(
            "INSERT OR IGNORE INTO items (name, digest, prompt, category, missing) VALUES (?, ?, ?, ?, ?)",
            (item.name, _digest(prompt, item), prompt, item.category, settings.overlap),
        )
        if not cursor.rowcount:
            continue
        added += 1
        number = cursor.lastrowid
        if not item.name:
            connection.execute("UPDATE items SET name = ? WHERE number = ?", (str(number), number))
        connection.executemany(
            "INSERT INTO answers (id, item, place, text, model, run) VALUES (?, ?, ?, ?, ?, ?)",
            [
                (each.id or secrets.token_hex(_ID_BYTES), number, place, each.text, each.model, each.run)
                for place, each in enumerate(item.answers)
            ],
        )
    connection.execute("UPDATE totals SET items = items + ?, missing = missing + ?", (added, added * settings.overlap))
    if added:
        order_items(connection, settings)
    return added


def order_items(connection: sqlite3.Connection, settings: ProjectSettings) -> None:
    """Give every item its rank, by the settings' order. In a transaction of the caller's."""
    rows = connection.execute("SELECT number, category, priority FROM items").fetchall()
    chance = {number: hashlib.sha256(f"{settings.seed}:order:{number}".encode()).digest() for number, _, _ in rows}
    if settings.order == "given":
        ranked = [(number, number) for number, _, _ in rows]
    elif settings.order == "priority":
        rows.sort(key=lambda row: (-row[2], chance[row[0]]))
        ranked = [(rank, number) for rank, (number, _, _) in enumerate(rows)]
    else:
        rows.sort(key=lambda row: chance[row[0]])
        seen: Counter[str] = Counter()
        ranked = []
        for number, category, _ in rows:
            ranked.append((seen[category], number))
            seen[category] += 1
        # Within a round of the categories, by chance: else each annotator would begin with the oldest item's.
        ranked.sort(key=lambda each: (each[0], chance[each[1]]))
        ranked = [(rank, number) for rank, (_, number) in enumerate(ranked)]
    connection.executemany("UPDATE items SET rank = ? WHERE number = ?", ranked)
    connection.execute("UPDATE annotators SET begin_at = 0")


def read_item(connection: sqlite3.Connection, number: int) -> AnnotationItem:
    """An item.

    Raises:
        DataError: there is none of that number.
    """
    row = connection.execute("SELECT number, name, prompt, category FROM items WHERE number = ?", (number,)).fetchone()
    if row is None:
        raise DataError(f"no item {number} is in the project", "Load the page again.", field="item")
    return _item(row, connection.execute(_ANSWERS_OF, (number,)).fetchall())


def read_items(connection: sqlite3.Connection) -> Iterator[AnnotationItem]:
    """All items in the order of the import."""
    for row in connection.execute("SELECT number, name, prompt, category FROM items ORDER BY number"):
        yield _item(row, connection.execute(_ANSWERS_OF, (row[0],)).fetchall())


_ANSWERS_OF = "SELECT id, text, model, run FROM answers WHERE item = ? ORDER BY place"


def _item(row: tuple[Any, ...], answers: list[tuple[Any, ...]]) -> AnnotationItem:
    number, name, prompt, category = row
    turns = tuple(PromptTurn(role, content) for role, content in json.loads(prompt))
    return AnnotationItem(number, name, turns, category, tuple(JudgedAnswer(*each) for each in answers))


def _require(item: AnnotationItem, kind: Kind) -> None:
    name = item.name[:60] or "an item without a name"
    if not item.prompt or item.prompt[-1].role != "user" or any(turn.role not in _ROLES for turn in item.prompt):
        raise DataError(
            f"item {name!r}: its prompt does not end with a user's turn, or has turns of tools",
            "Give prompts of system, user and assistant turns.",
            field="prompt",
        )
    texts = [item.name, item.category, *(turn.content for turn in item.prompt)]
    for each in item.answers:
        texts += [each.text, each.model, each.run]
    if not all(map(is_encodable, texts)):
        raise DataError(f"item {name!a} has a lone surrogate (half of a character)", "Correct its texts.")
    fewest, most = ANSWERS[kind]
    if not fewest <= len(item.answers) <= most:
        wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise DataError(
            f"item {name!r} has {len(item.answers)} answers, and a project of kind {kind} takes {wanted}",
            "Leave such rows out, or make a project of another kind.",
            field="answers",
        )


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold a text; it cannot hold a lone surrogate (half of a character)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _digest(prompt: str, item: AnnotationItem) -> bytes:
    """Of all that an item holds but its name and its answers' ids: the same import again adds nothing."""
    answers = [[each.text, each.model, each.run] for each in item.answers]
    return hashlib.sha256(json.dumps([prompt, answers]).encode()).digest()
