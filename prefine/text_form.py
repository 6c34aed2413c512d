"""A user's delimiter and encoding of text files: data.delimiter and data.encoding, --delimiter and --encoding."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

_NAMED = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|"}


@dataclass(frozen=True, slots=True)
class TextForm:
    """Delimiter and encoding of text files; None is detected for each file.

    Attributes:
        delimiter: one character between the cells of .csv and .tsv files.
        encoding: a Python codec name, for all text files.
    """

    delimiter: str | None = None
    encoding: str | None = None


AS_FOUND = TextForm()


def delimiter_named(text: str) -> str:
    """The delimiter by name. Raises ValueError, whose text is the rule and the remedy."""
    found = _NAMED.get(text.strip().lower(), text)
    if len(found) != 1 or found.isalnum() or not found.isascii() or found in '"\r\n\0':
        raise ValueError("is not a character that can separate cells; write ',', ';', '|' or tab")
    return found


def encoding_named(text: str) -> str:
    """Python's name of a text encoding. Raises ValueError, whose text is the rule and the remedy."""
    try:
        "".encode(text)  # LookupError also for codecs that are not for text
        return codecs.lookup(text).name
    except (LookupError, ValueError):
        raise ValueError("is not a text encoding; write for example utf-8, utf-16, cp1252 or latin-1") from None
