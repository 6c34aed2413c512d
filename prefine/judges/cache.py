"""The replies of judges on disk: what was paid for is never asked for again.

SQLite with a write-ahead log, flushed at each reply (synchronous=FULL): a reply that was received is there after
kill -9 and after a power cut. Replies are kept as they came, not as verdicts, so that a later release may read them
better.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prefine.errors import DataError
from prefine.runs.atomic import storage_errors

_APPLICATION_ID = 0x7072666A  # "prfj", in the file's header
_VERSION = 1
_BUSY_TIMEOUT_MS = 10_000
_MOVE_AWAY = "Move it away; replies in it are then asked for, and paid for, again."


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint replied.

    Attributes:
        text: "" if there is none.
        finish_reason: stop, length, content_filter, …; "" if it says none.
        prompt_tokens, completion_tokens: as the endpoint counts them; None if it does not.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ReplyCache:
    """Replies by the hash of everything that decides them. A context manager; threads may use it at the same time.

    Args:
        path: of the database, made if there is none.

    Raises:
        DataError: a file of that name is something else, or damaged.
        CheckpointError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with storage_errors(path), self._errors():
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # answers may be private
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._begin()
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._connection.close()

    def get(self, key: str) -> Reply | None:
        """The reply that was kept under a key."""
        with self._lock, self._errors():
            row = self._connection.execute(
                "SELECT text, finish_reason, prompt_tokens, completion_tokens FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else Reply(*row)

    def put(self, key: str, model: str, reply: Reply) -> None:
        """Keep a reply. It is on the disk when this returns."""
        with self._lock, storage_errors(self._path), self._errors():
            self._connection.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, time.time(), model, *_writable(reply)),
            )

    def add_from(self, path: Path) -> None:
        """Add the replies of another such database that this one lacks, all or none.

        Raises:
            DataError, CheckpointError: see ReplyCache.
        """
        with ReplyCache(path):  # refuses what is not one
            pass
        with self._lock, storage_errors(self._path), self._errors():
            self._connection.execute("ATTACH DATABASE ? AS other", (str(path),))
            try:
                self._connection.execute("INSERT OR IGNORE INTO replies SELECT * FROM other.replies")
            finally:
                self._connection.execute("DETACH DATABASE other")

    def _begin(self) -> None:
        execute = self._connection.execute
        execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        execute("BEGIN IMMEDIATE")
        (owner,), (version,) = execute("PRAGMA application_id").fetchone(), execute("PRAGMA user_version").fetchone()
        tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if owner != _APPLICATION_ID and tables:
            raise DataError(f"{self._path}: is a SQLite database, but not one of judges' replies", "Move it away.")
        if version > _VERSION:
            raise DataError(
                f"{self._path}: has version {version} of its tables, and this prefine knows versions up to {_VERSION}",
                "Upgrade prefine.",
            )
        execute(
            "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, at REAL NOT NULL, model TEXT NOT NULL,"
            " text TEXT NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER)"
        )
        execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        execute(f"PRAGMA user_version = {_VERSION}")
        execute("COMMIT")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self._path}: the judges' replies cannot be used: {error}", _MOVE_AWAY) from error


def key_of(url: str, body: Mapping[str, Any]) -> str:
    """The hash of a request: of its endpoint and of its whole body."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()


def _writable(reply: Reply) -> tuple[Any, ...]:
    """Its values; SQLite takes no half of a character."""
    text, *rest = astuple(reply)
    return (text.encode("utf-8", "backslashreplace").decode(), *rest)
