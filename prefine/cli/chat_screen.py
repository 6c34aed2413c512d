"""Output of a chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prefine.terminal import echo, visible

if TYPE_CHECKING:
    from rich.console import Console


class Screen(Protocol):
    """Output of a chat.

    Attributes:
        width: of the terminal in cells; None for a file or a pipe.
    """

    @property
    def width(self) -> int | None: ...

    def write(self, text: str) -> None:
        """Show a part of an answer at once."""

    def note(self, text: str) -> None:
        """Show a line about the chat."""


class ConsoleScreen:
    """A terminal; if standard output is not one, answers go there and everything else to standard error."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @property
    def width(self) -> int | None:
        """See Screen."""
        return self._console.width if self._console.is_terminal else None

    def write(self, text: str) -> None:
        """See Screen."""
        self._console.out(visible(text), end="", highlight=False)

    def note(self, text: str) -> None:
        """See Screen."""
        from prefine.terminal_text import WordWrap

        if self.width is not None:
            wrap = WordWrap(self.width)
            self._console.out(wrap.feed(visible(text)) + wrap.finish(), style="dim", highlight=False)
        else:
            echo(text, err=True)
