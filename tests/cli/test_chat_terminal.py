"""A chat in a real pseudo-terminal: keys reach it as a terminal sends them. The model is a parrot that never ends."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")

ENTER, CTRL_C, CTRL_D = "\r", "\x03", "\x04"
_SECONDS = 60.0
_PROGRAM = """
import itertools, time
from prefine.cli import chat_input, chat_screen, chat_session
from rich.console import Console
from tests.cli.test_chat import Parrot

class Endless(Parrot):
    def answer(self, said):
        return super().answer(said if said == "short" else " ".join([said] * 1_000_000))

def pause(piece):
    time.sleep(0.01)

ask = chat_input.asker(list(chat_session.COMMANDS))
chat_session.Chat({"parrot": Endless(pause)}, ask, chat_screen.ConsoleScreen(Console())).run()
"""


class Terminal:
    """The other end of a program's terminal."""

    def __init__(self, end: int) -> None:
        self._end = end
        self.shown = ""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._end, text.encode())

    def wait_for(self, text: str) -> str:
        """What was shown since the last call, up to this text."""
        while text not in self.shown:
            assert select.select([self._end], [], [], _SECONDS)[0], self.shown
            data = os.read(self._end, 4096).decode(errors="replace")
            if "\x1b[6n" in data:  # the program asks where the cursor is
                self.type("\x1b[24;1R")
            self.shown += data
        before, _, self.shown = self.shown.partition(text)
        return before


@contextmanager
def running(program: str) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """A Python program in a terminal of 80 columns, which is the one that it is controlled by."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _CONTROLLED + program],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(ours), process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# Ctrl-C interrupts the program whose controlling terminal it is pressed in.
_CONTROLLED = "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


def test_ctrl_c_stops_an_answer_a_paste_is_one_turn_and_save_writes_both(tmp_path: Path) -> None:
    saved = tmp_path / "talk.jsonl"
    with running(_PROGRAM) as (screen, process):
        screen.wait_for("you>")
        screen.type("go on" + ENTER)
        screen.wait_for("GO ON GO ON")
        screen.type(CTRL_C)
        screen.wait_for("stopped")
        screen.wait_for("you>")
        screen.type("\x1b[200~two\r\nlines\x1b[201~")
        screen.wait_for("lines")
        screen.type(ENTER)
        screen.wait_for("TWO LINES TWO")
        screen.type(CTRL_C)
        screen.wait_for("stopped")
        screen.wait_for("you>")
        screen.type(f"/save {saved}{ENTER}")
        screen.wait_for("The conversation is in")
        screen.wait_for("you>")
        screen.type(CTRL_C)
        screen.wait_for("Press Ctrl-C again")
        screen.wait_for("you>")
        screen.type(CTRL_D)
        assert process.wait(_SECONDS) == 0
    messages = json.loads(saved.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"].startswith("GO ON GO ON")
    assert messages[3]["content"].startswith("TWO LINES TWO")
