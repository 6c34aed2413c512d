"""A SQLite file of prefine's own: how it is known, made, brought to the newest tables, opened and read.

`application_id` in the file's header says that the file is ours, `user_version` which migrations it has had. With a
write-ahead log readers and writers never wait for each other.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefine.errors import DataError
from prefine.runs.atomic import require_writable, storage_errors

BUSY_TIMEOUT_MS = 5_000
_HEADER = b"SQLite format 3\0"
_APPLICATION_ID_AT = 68  # https://www.sqlite.org/fileformat.html, "Application ID"


@dataclass(frozen=True)
class SqliteFile:
    """A kind of database.

    Attributes:
        application_id: four bytes in the file's header.
        migrations: SQL; number n brings version n to n + 1. One that was released never changes.
        what: of messages: "feedback".
        usual_name: of such a file: "feedback.db".
        content: "feedback of prefine serve".
        another_file: the remedy if a file is something else.
        pragmas: further settings of a connection that writes.
    """

    application_id: int
    migrations: tuple[str, ...]
    what: str
    usual_name: str
    content: str
    another_file: str
    pragmas: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """Of the newest tables."""
        return len(self.migrations)

    def open_for_writing(
        self, path: Path, begin: Callable[[sqlite3.Connection], None] = lambda connection: None
    ) -> sqlite3.Connection:
        """The database at `path`, made if there is none, brought to the newest version. Threads may use it in turns.

        Args:
            begin: called with the newest tables, in the transaction that makes them.

        Raises:
            DataError: a file of that name is something else, or was written by a later release.
            CheckpointError: it cannot be written.
        """
        there = _is_there(path)
        if there:
            self.require(path)
        with storage_errors(path), self.errors(path):
            if not there:
                # What people wrote may be stored here: the file and its log are their owner's alone.
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
                connection.execute("PRAGMA foreign_keys = ON")
                for pragma in self.pragmas:
                    connection.execute(f"PRAGMA {pragma}")
                self._migrate(connection, path, begin)
                connection.execute("PRAGMA journal_mode = WAL")
            except BaseException:
                connection.close()
                raise
        return connection

    @contextmanager
    def opened_for_reading(self, path: Path) -> Iterator[sqlite3.Connection]:
        """Inside, the database as it is at this moment, whatever another process writes meanwhile.

        Raises:
            DataError: it is not a database of this kind, or cannot be read.
        """
        self.require(path)
        with self.errors(path):
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?{_mode(path)}", uri=True, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
                connection.execute("PRAGMA query_only = ON")
                connection.execute("BEGIN")
                self._require_version(connection.execute("PRAGMA user_version").fetchone()[0], path)
                yield connection
            finally:
                connection.close()

    def require_usable(self, path: Path) -> None:
        """Find out whether a database can be opened at `path`; nothing is made there.

        Raises:
            DataError: a file of that name is something else.
            CheckpointError: it cannot be written.
        """
        require_writable(path)
        if _is_there(path):
            self.require(path)

    def require(self, path: Path) -> None:
        """Raise DataError unless the header of a file says that it is of this kind."""
        try:
            with path.open("rb") as file:
                header = file.read(100)
        except (OSError, ValueError) as error:  # ValueError: the name holds NUL
            raise DataError(
                f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}",
                "Check its name and permissions.",
            ) from None
        if not header.startswith(_HEADER):
            raise DataError(f"{path}: is not a SQLite database, as {self.usual_name} is one", self.another_file)
        if int.from_bytes(header[_APPLICATION_ID_AT : _APPLICATION_ID_AT + 4], "big") != self.application_id:
            raise DataError(f"{path}: is a SQLite database, but not one with {self.content}", self.another_file)

    def is_one(self, path: Path) -> bool:
        """Whether the header of a file says that it is of this kind."""
        try:
            self.require(path)
        except DataError:
            return False
        return True

    @contextmanager
    def errors(self, path: Path) -> Iterator[None]:
        """Turn what SQLite raises about the file into a DataError.

        Raises:
            DataError: the file is damaged, locked for long, or the disk is full.
        """
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{path}: the {self.what} database cannot be used: {error}",
                "Check the disk and its permissions, or move the file away and begin a new one.",
            ) from error

    @contextmanager
    def transaction(self, connection: sqlite3.Connection, path: Path, *, durable: bool) -> Iterator[sqlite3.Connection]:
        """Inside, one transaction that writes; an exception takes it back.

        Args:
            durable: whether it is on the disk when this ends. One that is not survives a killed process, but not a
                power cut, and costs a tenth; the next durable one makes it durable, too.

        Raises:
            DataError: the database cannot be used.
        """
        with self.errors(path):
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _migrate(self, connection: sqlite3.Connection, path: Path, begin: Callable[[sqlite3.Connection], None]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        self._require_version(version, path)
        # Not executescript, which would commit before it begins: a kill between two statements must leave nothing.
        for migration in self.migrations[version:]:
            for statement in _statements(migration):
                connection.execute(statement)
        begin(connection)
        connection.execute(f"PRAGMA application_id = {self.application_id}")
        connection.execute(f"PRAGMA user_version = {self.version}")
        connection.execute("COMMIT")

    def _require_version(self, version: int, path: Path) -> None:
        if version > self.version:
            raise DataError(
                f"{path}: has version {version} of the {self.what} tables, and this prefine knows versions up to "
                f"{self.version}",
                "Upgrade prefine.",
            )


def is_sqlite(path: Path) -> bool:
    """Whether a file is a SQLite database of any kind; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_HEADER)) == _HEADER
    except (OSError, ValueError):  # ValueError: the name holds NUL
        return False


def _is_there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _mode(path: Path) -> str:
    """How to open a file that nothing is written into.

    The log needs write access to its folder, and the last one that closes the database removes the log; where that is
    not allowed and there is no log, nobody writes.
    """
    if os.access(path.parent, os.W_OK) and os.access(path, os.W_OK):
        return "mode=rw"
    return "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; a trigger holds semicolons of its own."""
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip() != ";":
                yield statement
            statement = ""
