"""A chat session: turns go to the models; lines that begin with a slash are commands."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefine.cli.chat_input import Ask, InterruptedPrompt
from prefine.cli.chat_screen import Screen
from prefine.errors import CheckpointError, DataError, PrefineError
from prefine.terminal import visible

if TYPE_CHECKING:
    from prefine.generation.chat import Talk
    from prefine.runs.atomic import JSON

COMMANDS = {
    "/help": ("", "this list"),
    "/system": ("TEXT", "set the system turn; without TEXT: show it; off: remove it"),
    "/temperature": ("NUMBER", "0 always takes the likeliest token; without a number: show it"),
    "/top-p": ("NUMBER", "sample from the likeliest tokens with this total probability"),
    "/undo": ("", "remove the last question and its answer"),
    "/reset": ("", "start a new conversation; the system turn and the settings stay"),
    "/save": ("FILE.jsonl", "save the conversation as a row that prefine sft reads"),
    "/exit": ("", "leave, as Ctrl-D and Ctrl-C twice do"),
}
_KEYS = (
    "Ctrl-C stops an answer. Alt-Enter begins a new line; pasted lines are one turn. To say something that begins like "
    "a command, type a blank first."
)
# A path (/etc/hosts) or a comment (// …) is a turn, not a command.
_COMMAND = re.compile(r"(/[A-Za-z][A-Za-z-]*)(?:\s+(.*))?", re.DOTALL)
_PRESSES_THAT_END = 3


class Chat:
    """A chat with one model, or with several that get the same questions.

    Args:
        talks: by the models' names.
        ask: gives the user's turns.
        screen: shows the answers.
    """

    def __init__(self, talks: Mapping[str, Talk], ask: Ask, screen: Screen) -> None:
        self._talks = talks
        self._ask = ask
        self._screen = screen
        # The models that have kept each turn: a model with a blank answer keeps none.
        self._kept: list[list[Talk]] = []
        self._saved: set[Path] = set()

    def run(self) -> None:
        """Run until /exit, the end of the input, or Ctrl-C twice at an empty prompt.

        Raises:
            PrefineError: a turn or command failed, and the screen is not a terminal.
        """
        interrupted = False
        while True:
            try:
                said = self._ask()
            except EOFError:
                return
            except InterruptedPrompt:
                if interrupted:
                    return
                interrupted = True
                self._screen.note("Press Ctrl-C again, or Ctrl-D, to leave.")
                continue
            interrupted = False
            if not said.strip():
                continue
            command = _COMMAND.fullmatch(said.rstrip())
            try:
                if command is None:
                    self._answer(said.strip())
                elif self._obey(command[1].lower(), (command[2] or "").strip()):
                    return
            except PrefineError as error:
                if self._screen.width is None:
                    raise  # no user is there to correct it
                for line in error.lines:
                    self._screen.note(f"error: {line}")

    # --- Answers -----------------------------------------------------------------------------------------------

    def _answer(self, said: str) -> None:
        from prefine.terminal_text import LEAST_COLUMN, column_width

        before = {talk: (len(talk.messages), talk.unseen) for talk in self._talks.values()}
        width = self._screen.width
        try:
            with _stop_on_ctrl_c() as stopped:
                if width is not None and len(self._talks) > 1 and column_width(width, len(self._talks)) >= LEAST_COLUMN:
                    _side_by_side(self._talks, self._screen, said, width, stopped)
                else:
                    _one_by_one(self._talks, self._screen, said, width, stopped)
                interrupted = stopped()
        finally:
            kept = [talk for talk in self._talks.values() if len(talk.messages) > before[talk][0]]
            if kept:
                self._kept.append(kept)
        if interrupted:
            self._screen.note("stopped")
        for name, talk in self._talks.items():
            for fact in _facts(talk, talk in kept, before[talk][1], interrupted):
                self._screen.note(f"{name}: {fact}" if len(self._talks) > 1 else fact)

    # --- Commands ----------------------------------------------------------------------------------------------

    def _obey(self, name: str, argument: str) -> bool:
        """Execute a command; returns whether it ends the chat."""
        acts: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/system": self._set_system,
            "/temperature": lambda given: self._set("temperature", given),
            "/top-p": lambda given: self._set("top_p", given),
            "/undo": self._undo,
            "/reset": self._reset,
            "/save": self._save,
        }
        if name == "/exit":
            return True
        if name in acts:
            acts[name](argument)
            return False
        near = get_close_matches(name, COMMANDS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        self._screen.note(f"There is no command {name}.{meant} Commands are {', '.join(COMMANDS)}.")
        return False

    def _help(self, argument: str) -> None:
        width = max(len(f"{name} {given}") for name, (given, _) in COMMANDS.items())
        for name, (given, what) in COMMANDS.items():
            self._screen.note(f"{f'{name} {given}':<{width}}  {what}")
        self._screen.note(_KEYS)

    def _set_system(self, text: str) -> None:
        if text:
            system = None if text == "off" else text
            for talk in self._talks.values():
                talk.set_system(system)
        system = next(iter(self._talks.values())).system
        self._screen.note("There is no system turn." if system is None else f"The system turn is: {system}")

    def _set(self, name: str, given: str) -> None:
        """Change one number of the sampling."""
        option = name.replace("_", "-")
        if given:
            try:
                value: Any = float(given)
                changed = [replace(talk.sampling, **{name: value}) for talk in self._talks.values()]
            except ValueError as error:
                rule = str(error).partition("; ")[2] or "it must be a number"
                raise DataError(f"/{option} {given}: {rule}", f"Write /{option} NUMBER.") from None
            for talk, sampling in zip(self._talks.values(), changed, strict=True):
                talk.sampling = sampling
        sampling = next(iter(self._talks.values())).sampling
        self._screen.note(f"{option} is {getattr(sampling, name):g}.")

    def _undo(self, argument: str) -> None:
        from prefine.formatting import plural

        if not self._kept:
            self._screen.note("There is nothing to remove.")
            return
        for talk in self._kept.pop():
            talk.undo()
        self._screen.note(f"Removed; {plural(len(self._kept), 'question')} left.")

    def _reset(self, argument: str) -> None:
        for talk in self._talks.values():
            talk.forget()
        self._kept = []
        self._screen.note("A new conversation.")

    def _save(self, name: str) -> None:
        from prefine.paths import expanded
        from prefine.runs.atomic import atomic_write, json_bytes, require_writable, storage_errors

        if not name:
            raise DataError("/save needs the name of a file", "Write /save FILE.jsonl.")
        path = Path(expanded(name))
        with storage_errors(path):  # a name that is too long, or in a private folder
            if name.endswith("/") or path.name in ("", "..") or path.is_dir():
                raise DataError(f"{path} is a folder", "Write /save FILE.jsonl.")
            path = path if path.suffix else path.with_name(f"{path.name}.jsonl")
            if path.suffix != ".jsonl":
                raise DataError(f"{path} does not end in .jsonl", "Write /save FILE.jsonl.")
            if path.exists() and path.resolve() not in self._saved:
                raise CheckpointError(f"{path} already exists", "Choose another name.")
        require_writable(path)
        rows: list[JSON] = [
            {"messages": [message.model_dump(mode="json") for message in talk.messages], "model": model}
            for model, talk in self._talks.items()
            if any(talk in kept for kept in self._kept)
        ]
        if not rows:
            self._screen.note("There is nothing to save yet.")
            return
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(map(json_bytes, rows)))
        self._saved.add(path.resolve())
        what = "The conversation is" if len(rows) == 1 else f"{len(rows)} conversations, one a model, are"
        self._screen.note(f"{what} in {path}.")


def _one_by_one(
    talks: Mapping[str, Talk], screen: Screen, said: str, width: int | None, stopped: Callable[[], bool]
) -> None:
    from prefine.terminal_text import Stream

    for name, talk in talks.items():
        if stopped():
            return
        if len(talks) > 1:
            screen.write(f"[{name}]\n")
        stream = Stream(screen.write, width)
        try:
            with closing(talk.answer(said)) as answer:
                for piece in answer:
                    stream.feed(visible(piece))
                    if stopped():
                        break
        finally:
            stream.finish()


def _side_by_side(
    talks: Mapping[str, Talk], screen: Screen, said: str, width: int, stopped: Callable[[], bool]
) -> None:
    from prefine.terminal_text import Columns

    columns = Columns(screen.write, width, [visible(name) for name in talks])
    with ExitStack() as open_answers:
        waiting = {
            column: open_answers.enter_context(closing(talk.answer(said))) for column, talk in enumerate(talks.values())
        }
        try:
            while waiting and not stopped():
                for column, answer in list(waiting.items()):
                    piece = next(answer, None)
                    if piece is None:
                        del waiting[column]
                        columns.finish(column)
                    else:
                        columns.feed(column, visible(piece))
        finally:
            for column in waiting:
                columns.finish(column)


def _facts(talk: Talk, kept: bool, unseen: int, interrupted: bool) -> Iterator[str]:
    """Facts about an answer that its text does not show."""
    if not kept:
        yield "the answer is blank, so this turn is not kept"
    if talk.cut and not interrupted:
        yield f"cut after {talk.sampling.max_new_tokens} tokens (--max-new-tokens)"
    if talk.unseen > unseen:
        yield "the context is full: the model no longer sees the oldest turns"


@contextmanager
def _stop_on_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Context in which Ctrl-C interrupts nothing; the yielded function says whether it was pressed.

    With a long prompt one token may take long, so the third press interrupts as usual.
    """
    presses = 0

    def pressed(*_: object) -> None:
        nonlocal presses
        presses += 1
        if presses >= _PRESSES_THAT_END:
            raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, pressed)
    except ValueError:  # not the main thread: the caller handles signals
        yield lambda: False
        return
    try:
        yield lambda: presses > 0
    finally:
        signal.signal(signal.SIGINT, before)
