"""Shows a run's progress in a notebook: one output that is updated in place, with a bar and the latest lines.

It uses IPython's own display, so that it needs no widgets, works in every front end, and is still there when the
notebook is opened again.
"""

from __future__ import annotations

import contextlib
import html
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console

from prefine.terminal import visible
from prefine.training.display import TRAINING, Callbacks, Display, facts_of
from prefine.training.pace import Pace, clock_time

# Each update is a message to the browser.
_SECONDS_BETWEEN_UPDATES = 0.2
_MOST_LINES = 40


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class NotebookDisplay(Display):
    """Shows one run's progress and messages in a notebook cell.

    Args:
        callbacks: see Display.
        clock: seconds, monotonic.
    """

    def __init__(self, callbacks: Callbacks = Callbacks(), clock: Callable[[], float] = time.monotonic) -> None:  # noqa: B008 - frozen
        super().__init__(Console(quiet=True), clock=clock, callbacks=callbacks)
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._what, self._done, self._facts = "", 0, ""
        self._output: Any = None
        self._updated = -_SECONDS_BETWEEN_UPDATES

    def say(self, text: str) -> None:
        """One line."""
        self._lines.append(visible(text))
        self._show(now=True)

    def say_from_signal(self, text: str) -> None:
        """One line."""
        self.say(text)

    @contextlib.contextmanager
    def progress(self, total: int, done: int, what: str = TRAINING) -> Iterator[None]:
        """See Display."""
        self._what, self._pace, self._done, self._facts = what, Pace(total, done, self._clock), done, ""
        try:
            yield
        finally:
            self._show(now=True)
            self._what = ""

    def step(self, step: int, row: Mapping[str, float]) -> None:
        """See Display."""
        self._facts = "  ".join(facts_of(row))
        self.advance(step)
        self.tell_step(step, row)

    def advance(self, done: int) -> None:
        """See Display."""
        self._pace.reached(done)
        self._done = done
        self._show(now=done == self._pace.total)

    def _show(self, *, now: bool) -> None:
        if not self._enabled or (not now and self._clock() - self._updated < _SECONDS_BETWEEN_UPDATES):
            return
        self._updated = self._clock()
        from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

        content = {"text/plain": self._text(), "text/html": self._html()}
        if self._output is None:
            self._output = display(content, raw=True, display_id=True)
        else:
            self._output.update(content, raw=True)

    def _bar_text(self) -> str:
        left = clock_time(self._pace.seconds_left())
        return f"{self._what} {self._done:,}/{self._pace.total:,}  {self._facts}  left {left}"

    def _text(self) -> str:
        return "\n".join([*self._lines, *([self._bar_text()] if self._what else [])])

    def _html(self) -> str:
        page = f"<pre>{html.escape(chr(10).join(self._lines))}</pre>" if self._lines else ""
        if self._what:
            bar = f'<progress value="{self._done}" max="{self._pace.total}"></progress>'
            page += f"<div>{bar} <code>{html.escape(self._bar_text())}</code></div>"
        return page
