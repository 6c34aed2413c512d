"""Streamed text on a terminal: wrapped by words, and in columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len, set_cell_size

_TAB = 8
_GAP = " │ "
LEAST_COLUMN = 38
"""Two such columns and the gap fit into 80 cells."""


class WordWrap:
    """Wraps text that comes in pieces.

    A word is held back until its end is known. Spaces and line breaks of the text stay, so that code keeps its shape;
    spaces at an added line break are dropped. A word longer than a line is split. Wide characters (Chinese, Japanese)
    are separate words, as those scripts break anywhere.

    Args:
        width: of a line in terminal cells.
    """

    def __init__(self, width: int) -> None:
        self._width = max(1, width)
        self._column = 0
        self._blanks = ""
        self._word = ""

    def feed(self, text: str) -> str:
        """The next part of the text that can be shown."""
        return "".join(map(self._take, text))

    def finish(self) -> str:
        """The rest that was held back."""
        return self._place_word()

    def _take(self, character: str) -> str:
        if character == "\n":
            shown = self._place_word()
            self._column, self._blanks = 0, ""
            return shown + "\n"
        if character in " \t":
            shown = self._place_word()
            self._blanks += " " if character == " " else " " * (_TAB - (self._column + len(self._blanks)) % _TAB)
            return shown
        if cell_len(character) > 1:
            shown = self._place_word()
            self._word = character
            return shown + self._place_word()
        self._word += character
        # A word longer than a line.
        return self._place_word() if cell_len(self._word) >= self._width else ""

    def _place_word(self) -> str:
        if not self._word:
            return ""
        size = cell_len(self._word)
        shown = self._blanks
        if self._column + len(self._blanks) + size > self._width and self._column:
            shown, self._column = "\n", 0
        elif len(self._blanks) + size > self._width:  # a line of indentation only
            shown = ""
        self._column += len(shown.replace("\n", "")) + size
        shown += self._word
        self._blanks = self._word = ""
        return shown


class Stream:
    """Shows one answer at a time over the whole width.

    Args:
        write: shows text at once.
        width: of the terminal; None for a file or a pipe, which get unwrapped text.
    """

    def __init__(self, write: Callable[[str], None], width: int | None) -> None:
        self._write = write
        self._wrap = None if width is None else WordWrap(width)
        self._begun = False

    def feed(self, text: str) -> None:
        """Add text to the answer."""
        self._begun |= bool(text)
        if shown := text if self._wrap is None else self._wrap.feed(text):
            self._write(shown)

    def finish(self) -> None:
        """End the answer."""
        if self._begun:
            self._write(("" if self._wrap is None else self._wrap.finish()) + "\n")


class Columns:
    """Shows answers side by side: a line is shown as soon as it is complete in all columns.

    Args:
        write: shows text at once.
        width: of the terminal.
        titles: of the columns.
    """

    def __init__(self, write: Callable[[str], None], width: int, titles: Sequence[str]) -> None:
        self._write = write
        self._column = column_width(width, len(titles))
        self._wraps = [WordWrap(self._column) for _ in titles]
        self._texts = ["" for _ in titles]
        self._ended = [False for _ in titles]
        self._shown = 0
        self._line([self._cut(title) for title in titles])
        self._write("─┼─".join("─" * self._column for _ in titles) + "\n")

    def feed(self, column: int, text: str) -> None:
        """Add text to a column's answer."""
        self._texts[column] += self._wraps[column].feed(text)
        self._show()

    def finish(self, column: int) -> None:
        """End a column's answer."""
        self._texts[column] += self._wraps[column].finish()
        self._ended[column] = True
        self._show()

    def _show(self) -> None:
        lines = [text.split("\n") for text in self._texts]
        whole = [len(each) if ended else len(each) - 1 for each, ended in zip(lines, self._ended, strict=True)]
        waited_for = [count for count, ended in zip(whole, self._ended, strict=True) if not ended]
        for number in range(self._shown, min(waited_for) if waited_for else max(whole)):
            self._line([each[number] if number < len(each) else "" for each in lines])
            self._shown = number + 1

    def _line(self, parts: Sequence[str]) -> None:
        padded = [part + " " * (self._column - cell_len(part)) for part in parts]
        self._write(_GAP.join(padded).rstrip() + "\n")

    def _cut(self, title: str) -> str:
        return title if cell_len(title) <= self._column else set_cell_size(title, self._column - 1) + "…"


def column_width(width: int, columns: int) -> int:
    """Width in cells of each column on a terminal."""
    return (width - len(_GAP) * (columns - 1)) // columns
