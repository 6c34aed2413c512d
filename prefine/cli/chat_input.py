"""Input of a chat: an editable prompt on a terminal, else standard input line by line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prefine.errors import DataError

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import Output

Ask = Callable[[], str]
"""Waits for one turn. Raises EOFError at the end of input, and InterruptedPrompt."""


class InterruptedPrompt(Exception):  # noqa: N818 - no error
    """Ctrl-C at an empty prompt."""


def asker(commands: Sequence[str]) -> Ask:
    """An editable prompt, or the lines of standard input if that or standard output is not a terminal."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return prompt(commands)
    return read_line


def read_line() -> str:
    """One line of standard input, without its end.

    Raises:
        EOFError: the input has ended.
        DataError: it is not in the encoding of the locale.
    """
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input holds bytes that are not valid {error.encoding.upper()}", "Convert it to UTF-8."
        ) from None
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def prompt(commands: Sequence[str], source: Input | None = None, output: Output | None = None) -> Ask:
    """A prompt with editing keys, a history and completion of commands.

    Enter sends; Alt-Enter, and line breaks in pasted text, start a new line. Ctrl-C clears the input, and raises
    InterruptedPrompt if it is empty. The history is kept in memory only, since it may be private.

    Args:
        commands: completed by Tab.
        source: instead of the terminal.
        output: instead of the terminal.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.shortcuts import CompleteStyle

    session: PromptSession[str] = PromptSession(
        [("bold", "you> ")],
        prompt_continuation="...  ",
        multiline=True,
        history=InMemoryHistory(),
        completer=WordCompleter(list(commands), sentence=True),
        complete_style=CompleteStyle.READLINE_LIKE,
        complete_while_typing=False,
        reserve_space_for_menu=0,
        enable_suspend=True,
        key_bindings=_keys(),
        interrupt_exception=InterruptedPrompt,
        input=source,
        output=output,
    )
    return session.prompt


def _keys() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import Condition, has_focus
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=typing)
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @Condition
    def something_typed() -> bool:
        from prompt_toolkit.application import get_app

        return bool(get_app().current_buffer.text)

    @keys.add("c-c", filter=typing & something_typed)
    def clear(event: KeyPressEvent) -> None:
        event.current_buffer.reset(append_to_history=True)

    return keys
