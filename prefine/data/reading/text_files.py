"""Bytes of text files -> UTF-8, by the encoding that the recipe gives or that the bytes show.

Spreadsheets write UTF-16 with a byte order mark, or the code page of their machine. No encoding is assumed silently:
anything but plain UTF-8 is reported to the caller in a sentence.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, cast

from prefine.data.reading.json_rows import NOT_UTF8, TOO_LONG, bounded_lines
from prefine.data.reading.rows import EXCERPT_CHARACTERS, Row, rejected

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Buffered: TypeAlias = "io.BufferedReader[io.RawIOBase]"
Note = Callable[[str], None]
"""Receives a sentence on how a file was read, if that was detected from its bytes."""

_UTF8 = "utf-8"
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which is a prefix of it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LONGEST_MARK = 4
_LOOKED_AT_BYTES = 1024 * 1024
_BUFFER_BYTES = 256 * 1024
_BAD_BYTES = "prefine-bad-bytes"
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_CHARACTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
# The letters and signs that texts in Western European languages have in Windows-1252. Those by which the code pages of
# other languages are told from it (a Polish "ł" is "³" there, a Czech "ý" and a Turkish "ş" are "ý" and "þ") are not
# among them.
_WESTERN = frozenset("ÀÂÄÅÆÇÈÉÊËÍÎÏÑÓÔÖØÙÚÛÜßàáâäãåæçèéêëìíîïñòóôöøùúûüŒœ€‚„…‘’“”•–—™«»°§©®£´¡¿·µ²×½¼\xa0")
# In a language with a Latin alphabet few letters are outside ASCII; in Cyrillic or Greek nearly all are.
_MOST_OUTSIDE_ASCII = 0.25


def utf8_stream(stream: Buffered, encoding: str | None, note: Note, *, may_be_western: bool) -> Buffered:
    """The stream as UTF-8, whatever its encoding is. Invalid bytes stay invalid: they become invalid UTF-8.

    Args:
        stream: at its beginning.
        encoding: given by the user; None: UTF-8, or detected from the first mebibyte.
        note: see Note.
        may_be_western: whether text that is not UTF-8 may be read as Windows-1252: true for spreadsheets, not for JSON.
    """
    found = encoding or _marked(stream.peek(_LONGEST_MARK), note)
    if found is None and may_be_western:
        start = _first_bytes(stream)
        stream = _buffered(_Replayed(start, stream))
        found = _western(start, note)
    if codecs.lookup(found or _UTF8).name == _UTF8:
        return stream
    return _buffered(_Transcoded(stream, found or _UTF8))


def _buffered(raw: io.RawIOBase) -> Buffered:
    return cast(Buffered, io.BufferedReader(raw, _BUFFER_BYTES))


def read_lines(stream: BinaryIO, file: str) -> Iterator[Row]:
    """Plain text: each line that is not blank is a row with a prompt."""
    for number, line, whole in bounded_lines(stream):
        try:
            problem, text = None if whole else TOO_LONG, line.decode(_UTF8)
        except UnicodeDecodeError:
            problem = NOT_UTF8 if whole else TOO_LONG
            text = line[: 4 * EXCERPT_CHARACTERS].decode(_UTF8, "backslashreplace")
        if problem is not None:
            yield rejected(file, number, problem, text)
        elif text.strip():
            yield Row(file, number, {"prompt": text.rstrip("\r\n")})


def _first_bytes(stream: Buffered) -> bytes:
    """At most _LOOKED_AT_BYTES; of damaged data, those before the damage, which later readers will report."""
    start = b""
    try:
        while len(start) < _LOOKED_AT_BYTES and (piece := stream.read1(_LOOKED_AT_BYTES - len(start))):
            start += piece
    except (EOFError, zlib.error, gzip.BadGzipFile):
        pass
    return start


def _marked(start: bytes, note: Note) -> str | None:
    """The encoding of a byte order mark; UTF-8's is left to the readers."""
    found = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    if found is not None:
        note(f"read as {found.upper()}, by its byte order mark")
    return found


def _western(start: bytes, note: Note) -> str | None:
    """Windows-1252 if the bytes are nowhere UTF-8 and plausible text in it; otherwise a note says that it is
    unknown.
    """
    if not _NOT_ASCII.search(start) or _is_utf8(start):
        return None
    in_characters = sum(map(len, _CHARACTER.findall(start)))
    if 2 * in_characters > len(_NOT_ASCII.findall(start)):  # UTF-8 with damaged places
        return None
    try:
        text = start.decode("cp1252")
    except UnicodeDecodeError:
        text = "\x81"
    letters = [character for character in text if character.isalpha()]
    outside = [character for character in text if not character.isascii()]
    if set(outside) <= _WESTERN and len(outside) <= _MOST_OUTSIDE_ASCII * len(letters):
        note("is not UTF-8 and was read as Windows-1252 (cp1252); if it is another encoding, set data.encoding")
        return "cp1252"
    note(
        "is not UTF-8, and its encoding cannot be detected: rows that are not UTF-8 are quarantined, unless "
        "data.encoding names it (cp1252, cp1250, …)"
    )
    return None


def _is_utf8(start: bytes) -> bool:
    """Whether the bytes are UTF-8; they may end within a character."""
    try:
        codecs.getincrementaldecoder(_UTF8)().decode(start)
    except UnicodeDecodeError:
        return False
    return True


class _Replayed(io.RawIOBase):
    """The bytes that were read already, then the rest."""

    def __init__(self, start: bytes, rest: Buffered) -> None:
        self._start = start
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        into = memoryview(buffer)
        if self._start:
            data, self._start = self._start[: len(into)], self._start[len(into) :]
        else:
            data = self._rest.read1(len(into))
        into[: len(data)] = data
        return len(data)


class _Transcoded(io.RawIOBase):
    """Text of another encoding as UTF-8."""

    def __init__(self, stream: Buffered, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(_BAD_BYTES)
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        into = memoryview(buffer)
        while not self._left:
            data = self._stream.read(_BUFFER_BYTES)
            self._left = self._decoder.decode(data, final=not data).encode(_UTF8, "surrogatepass")
            if not data:
                break
        given, self._left = self._left[: len(into)], self._left[len(into) :]
        into[: len(given)] = given
        return len(given)


def _as_lone_surrogate(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end  # invalid in UTF-8, so that the row is refused


codecs.register_error(_BAD_BYTES, _as_lone_surrogate)
