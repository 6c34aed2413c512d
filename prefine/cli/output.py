"""Handles standard output that is full, closed by `| head`, or cannot encode a character.

Libraries react to a failed write in different ways: a traceback, a silent exit code 1, an error at interpreter
shutdown. Here the first failed write raises OutputError, which libraries do not catch, and later writes do nothing.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ESCAPE = "prefine.escape"


class OutputError(OSError):
    """Standard output cannot be written. Has no errno, so that no library takes it for a broken pipe.

    Args:
        reason: the system's error.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"standard output could not be written: {reason.strerror}")
        self.closed_by_reader = reason.errno in (errno.EPIPE, errno.ECONNRESET)


class _Guarded(io.RawIOBase):
    """The raw file below the buffers of standard output."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._failed = False

    def write(self, data: ReadableBuffer, /) -> int:
        left = memoryview(data).cast("B")
        size = left.nbytes
        try:
            while left and not self._failed:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._failed = True
            raise OutputError(error) from None
        return size

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def isatty(self) -> bool:
        return self._file.isatty()


@contextmanager
def guarded_output() -> Iterator[None]:
    """Context in which sys.stdout raises OutputError once if it cannot be written, and escapes what it cannot encode.

    The escapes are JSON's, so rows stay valid JSON. Buffers are flushed at the end.
    """
    before = sys.stdout
    buffer = getattr(before, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # `python -u` has no buffer of bytes
    if type(before) is not io.TextIOWrapper or not isinstance(raw, io.FileIO):  # closed, or another program's
        yield
        return
    codecs.register_error(_ESCAPE, _escaped)
    before.flush()
    guarded = _Guarded(raw)
    sys.stdout = io.TextIOWrapper(
        cast(BinaryIO, guarded if buffer is raw else io.BufferedWriter(guarded)),
        encoding=before.encoding,
        errors=_ESCAPE,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )
    try:
        yield
        sys.stdout.flush()
    finally:
        # What is left in its buffer would only fail again at interpreter shutdown.
        sys.stdout = before


def say_error(text: str) -> None:
    """Write one line to standard error; do nothing if that is closed, too."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        # The interpreter would try again at shutdown.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open until the process ends


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end
