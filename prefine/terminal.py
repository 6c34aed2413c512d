"""Safe output of foreign text to a terminal: control characters are shown as escapes.

Errors, logs and answers quote recipes, file names, templates and models, which may hold control sequences that rewrite
the screen, set the clipboard or reverse the order of text.
"""

from __future__ import annotations

import re

# Control characters except line feed and tab; line and paragraph separators; bidirectional controls; surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]")


def visible(text: str) -> str:
    r"""Text for a terminal, with control characters such as \x1b escaped; line feeds and tabs stay."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def visible_json(line: str) -> str:
    """A line of JSON for a terminal: the same value, with control characters in strings escaped."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def echo(text: object, *, err: bool = False) -> None:
    """Write one line to standard output or standard error."""
    import typer

    typer.echo(visible(str(text)), err=err)
