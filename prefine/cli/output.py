"""Standard output that fills up, is closed by `| head`, or cannot show a character, ends in plain words or in silence.

Libraries answer a write that fails each in their own way: a traceback, a silent exit code 1, an error while the
interpreter shuts down. Here the first failing write raises OutputError, past all of them, and later ones do nothing.
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
    """Standard output cannot be written. Carries no errno of its own, so that no library takes it for a broken pipe.

    Args:
        reason: the system's error.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"standard output could not be written: {reason.strerror}")
        self.closed_by_reader = reason.errno in (errno.EPIPE, errno.ECONNRESET)


class _Guarded(io.RawIOBase):
    """The file that standard output is, under its buffers."""

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
    """Inside, sys.stdout raises OutputError once where it cannot be written, and escapes what it cannot encode.

    Escapes are those of JSON, so that rows stay rows. At the end what is still buffered is written.
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
        # Whatever is left in its buffer could only fail again, while the interpreter shuts down.
        sys.stdout = before


def say_error(text: str) -> None:
    """One line to standard error; where that is gone, too (a terminal that was closed), nothing."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        # The interpreter would try again at its end.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open until the process ends


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end
