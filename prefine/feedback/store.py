"""What people said about answers, kept so that an acknowledged event survives any crash.

The server registers every answer that it gives. An event (a thumb, a corrected text, a preferred or a regenerated
answer) refers to one of them. Events are appended and never changed; the last one holds.

Durability: `record` returns only after the event is on the disk (synchronous=FULL: SQLite flushes its log at every
commit). Registrations are committed without a flush of their own, which costs a tenth of that; the flush of an event
covers those before it, and a process that is killed loses neither.
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, get_args

from prefine.errors import DataError, PrefineError, RecipeError
from prefine.feedback.database import (
    DAY_S,
    FEEDBACK_FILE,
    database_errors,
    kept_since,
    open_for_writing,
    set_retention,
)
from prefine.feedback.redaction import RedactionTimeoutError, Redactor
from prefine.sqlite_file import BUSY_TIMEOUT_MS

log = logging.getLogger("prefine")

EventKind: TypeAlias = Literal["up", "down", "withdrawn", "correction", "preferred", "regenerated"]
EVENT_KINDS = get_args(EventKind)

# Why a completion has no texts, as the column `without_texts` says it.
NOT_ASKED = "not asked"
NOT_REDACTED = "not redacted"
NO_CONVERSATION = "no conversation"

_BETWEEN_PURGES_S = 3_600.0
# Until the log is tried again that a reader kept from being emptied.
_BETWEEN_TRIES_S = 60.0
_CHECKPOINTED = "PRAGMA wal_checkpoint(TRUNCATE)"


class FeedbackRefusedError(PrefineError):
    """An event that cannot be recorded."""


class UnknownCompletionError(FeedbackRefusedError):
    """It is about a completion that is not registered (any more)."""


class RepeatedKeyError(FeedbackRefusedError):
    """Its idempotency key was used for another event."""


class NoTextsError(FeedbackRefusedError):
    """It brings a text, and no texts of its completion are stored."""


@dataclass(frozen=True)
class FeedbackSettings:
    """What is stored, and how long.

    Attributes:
        store_texts: whether prompts, answers and corrections are stored; without them nothing can be trained on.
        retention_days: completions and their events are deleted so long after the answer; None keeps them.
        redact: whether e-mail addresses, telephone numbers and card numbers are replaced in stored texts.
        patterns: regular expressions whose matches are replaced, too.

    Raises:
        RecipeError: a retention time that cannot be, or a pattern that is not a regular expression.
    """

    store_texts: bool = False
    retention_days: float | None = None
    redact: bool = True
    patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.retention_days is not None and not 0 < self.retention_days < 1e6:
            raise RecipeError(
                f"--retention-days is {self.retention_days}, which is not above 0 and below 1,000,000",
                "Give a number of days, or leave it out to keep everything.",
            )
        self.redactor()

    def redactor(self) -> Redactor:
        """What removes from texts that are stored what must not be."""
        return Redactor(builtin=self.redact, patterns=self.patterns)


@dataclass(frozen=True)
class AnsweredRequest:
    """One answer of the server: one choice of one completion.

    Attributes:
        id, choice: the completion's id in the API, and the choice's index.
        model, run, run_hash: the name that the client used; the run's folder; the hash of its weights.
        prompt_tokens, completion_tokens, finish_reason: as in the API.
        messages: the conversation that was answered, turns as in the API; None for a text completion, whose prompt is
            no conversation.
        answer: what the model wrote.
        tools: definitions that the template wrote into the prompt.
    """

    id: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    choice: int = 0
    run: str | None = None
    run_hash: str | None = None
    finish_reason: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    answer: str = ""
    tools: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class NewEvent:
    """One event that a client sends.

    Attributes:
        completion_id, choice: what it is about.
        kind: a thumb ("withdrawn" takes it back), the text that the answer should have been, that this answer is better
            than another one, or that it was asked for in the place of another one.
        text: of a correction.
        other_id, other_choice: the other answer.
        key: the same event sent again with the same key is recorded once; "" gives it a key of its own.
    """

    completion_id: str
    kind: EventKind
    choice: int = 0
    text: str | None = None
    other_id: str | None = None
    other_choice: int = 0
    key: str = ""


@dataclass(frozen=True)
class Recorded:
    """What became of an event: its number, and whether it had been recorded before."""

    number: int
    repeated: bool


class FeedbackStore:
    """The feedback of one server, in one file. A context manager; any thread may use it.

    Args:
        path: the database; made if there is none.
        settings: what is stored, and how long.

    Raises:
        DataError: a file of that name is something else.
        CheckpointError: it cannot be written.
        RecipeError: a pattern is not a regular expression.
    """

    def __init__(self, path: Path, settings: FeedbackSettings | None = None) -> None:
        self.path = path
        self.settings = settings or FeedbackSettings()
        self._redactor = self.settings.redactor()
        self._lock = threading.Lock()
        self._connection = open_for_writing(path)
        with self._transaction(durable=True) as connection:
            set_retention(connection, self.settings.retention_days)
        # Whether what was deleted may still be in the log.
        self._log_is_stale = False
        self._closing = threading.Event()
        self._purging = threading.Thread(target=self._purge_again_and_again, name="prefine-retention", daemon=True)
        self.purge()
        if self.settings.retention_days is not None:
            self._purging.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write the log into the database file and let it go."""
        self._closing.set()
        if self._purging.ident is not None:
            self._purging.join()
        with self._lock:
            self._connection.close()

    def register(self, answered: AnsweredRequest) -> None:
        """Make an answer known, so that events may refer to it. Registering one twice changes nothing.

        Raises:
            DataError: the database cannot be used.
        """
        messages, tools, answer, without = self._texts_of(answered)
        with self._transaction(durable=False) as connection:
            connection.execute(
                "INSERT OR IGNORE INTO completions (id, choice, at, model, run, run_hash, prompt_tokens,"
                " completion_tokens, finish_reason, without_texts, messages, tools, answer)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(answered.id, answered.choice, time.time(), answered.model, answered.run, answered.run_hash),
                    *(answered.prompt_tokens, answered.completion_tokens, answered.finish_reason),
                    *(without, messages, tools, answer),
                ),
            )

    def record(self, event: NewEvent) -> Recorded:
        """Append an event; when this returns it is on the disk.

        Raises:
            UnknownCompletionError, RepeatedKeyError, NoTextsError: it is refused.
            DataError: the database cannot be used, and nothing was recorded.
        """
        text = None if event.text is None else self._redacted_correction(event.text)
        with self._transaction(durable=True) as connection:
            number = _number_of(connection, event.completion_id, event.choice)
            other = None if event.other_id is None else _number_of(connection, event.other_id, event.other_choice)
            if other == number:
                raise FeedbackRefusedError(f"{event.completion_id} is compared with itself", "Name another completion.")
            if text is not None:
                _require_texts(connection, number)
            content = (number, event.kind, text, other)
            key = event.key or secrets.token_hex(16)
            before = connection.execute(
                "SELECT number, completion, kind, text, other FROM events WHERE key = ?", (key,)
            ).fetchone()
            if before is not None:
                if tuple(before[1:]) != content:
                    raise RepeatedKeyError(
                        f"the idempotency key {key[:60]!r} was used for another event", "Take a new key for each event."
                    )
                return Recorded(before[0], repeated=True)
            cursor = connection.execute(
                "INSERT INTO events (key, at, completion, kind, text, other) VALUES (?, ?, ?, ?, ?, ?)",
                (key, time.time(), *content),
            )
            return Recorded(int(cursor.lastrowid or 0), repeated=False)

    def purge(self, now: float | None = None) -> int:
        """Delete what is older than the retention time; how many completions that were.

        Raises:
            DataError: the database cannot be used.
        """
        if self.settings.retention_days is None:
            return 0
        before = (time.time() if now is None else now) - self.settings.retention_days * DAY_S
        with self._transaction(durable=True) as connection:
            deleted = connection.execute("DELETE FROM completions WHERE at < ?", (before,)).rowcount
        self._log_is_stale |= deleted > 0
        if self._log_is_stale:
            self._empty_log()
        return deleted

    def _empty_log(self) -> None:
        """Deleted texts stay in the log until it is emptied, which waits for those that read the database."""
        with self._lock, database_errors(self.path):
            self._connection.execute("PRAGMA busy_timeout = 0")  # answers are registered meanwhile
            try:
                (busy, *_) = self._connection.execute(_CHECKPOINTED).fetchone()
            finally:
                self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        self._log_is_stale = bool(busy)

    def _purge_again_and_again(self) -> None:
        while not self._closing.wait(_BETWEEN_TRIES_S if self._log_is_stale else _BETWEEN_PURGES_S):
            try:
                self.purge()
            except DataError as error:
                log.warning("feedback past its retention time is not deleted yet: %s", error)

    @contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        with self._lock, FEEDBACK_FILE.transaction(self._connection, self.path, durable=durable) as connection:
            yield connection

    def _texts_of(self, answered: AnsweredRequest) -> tuple[str | None, str | None, str | None, str | None]:
        """The conversation, the tools and the answer as they are stored, and why they are not."""
        if not self.settings.store_texts:
            return None, None, None, NOT_ASKED
        if answered.messages is None:
            return None, None, None, NO_CONVERSATION
        try:
            messages, tools, answer = self._redactor.redacted(
                [list(answered.messages), list(answered.tools), answered.answer]
            )
        except RedactionTimeoutError:
            return None, None, None, NOT_REDACTED
        return json.dumps(messages), json.dumps(tools) if tools else None, json.dumps(answer), None

    def _redacted_correction(self, text: str) -> str:
        try:
            return json.dumps(self._redactor.redacted(text))
        except RedactionTimeoutError as error:
            raise NoTextsError(
                f"--redact-pattern {str(error)[:60]!r} takes too long on this text, so it is not stored",
                "Shorten the text, or simplify the pattern.",
            ) from None


def _require_texts(connection: sqlite3.Connection, number: int) -> None:
    (without,) = connection.execute("SELECT without_texts FROM completions WHERE number = ?", (number,)).fetchone()
    if without is not None:
        raise NoTextsError(
            "a corrected text is kept only beside the conversation that it belongs to, and that was not stored",
            "Start the server with --store-prompts." if without == NOT_ASKED else "Send a thumb instead.",
        )


def _number_of(connection: sqlite3.Connection, identifier: str, choice: int) -> int:
    found = connection.execute(
        "SELECT number FROM completions WHERE id = ? AND choice = ? AND at >= ?",
        (identifier, choice, kept_since(connection)),
    ).fetchone()
    if found is None:
        raise UnknownCompletionError(
            f"no completion {identifier[:80]!r} with a choice {choice} is known",
            "Send the id of a completion that this server gave; those past the retention time are deleted.",
        )
    return int(found[0])
