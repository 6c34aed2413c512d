"""Shows a run until it ends: a picture that changes on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from prefine.watching.frame import Frame
from prefine.watching.reading import RunFiles, Snapshot

_LINES_IN_A_LOG = 20
_SECONDS_BETWEEN_LINES = 60.0


def follow(
    path: Path,
    console: Console,
    *,
    once: bool = False,
    interval_s: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show the run's state again and again until it ends.

    Args:
        path: the run's folder.
        once: show it once.
        interval_s: seconds between two looks at the files.
        sleep: waits so many seconds.

    Raises:
        CheckpointError: there is no run.
    """
    files = RunFiles(path)
    files.require_run()
    frame, now = Frame(console), files.read()
    if once or now.ended:
        console.print(frame.draw(now))
        return
    if not console.is_terminal:
        _log(files, frame, now, interval_s, sleep)
        return
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        try:
            while not now.ended:
                live.update(frame.draw(now), refresh=True)
                sleep(interval_s)
                now = files.read()
        finally:
            live.update("", refresh=True)
            live.stop()
            console.print(frame.draw(now))  # stays on the screen, also after Ctrl-C


def _log(files: RunFiles, frame: Frame, now: Snapshot, interval_s: float, sleep: Callable[[float], None]) -> None:
    """The picture at the beginning and at the end; between them new evaluations, guards' events and some steps."""
    console = frame.console
    console.print(frame.draw(now))
    log = _Log(frame, now)
    while not now.ended:
        sleep(interval_s)
        now = files.read()
        for line in log.news(now):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.file.flush()
    console.print(frame.draw(now))


class _Log:
    """What has been said of a run.

    Args:
        now: a state that is known already.
    """

    def __init__(self, frame: Frame, now: Snapshot, clock: Callable[[], float] = time.monotonic) -> None:
        self._frame = frame
        self._clock = clock
        self._step, self._evaluated, self._events = now.step, _last_evaluated(now), len(now.facts.guard_events)
        self._latest = clock()

    def news(self, now: Snapshot) -> list[str]:
        """Lines on what is new."""
        lines = []
        events = len(now.facts.guard_events)
        if events > self._events:
            lines += [self._frame.event_line(now, place) for place in range(self._events, events)]
            # A roll-back repeats steps.
            self._step, self._evaluated = min(self._step, now.step), min(self._evaluated, _last_evaluated(now))
        self._events = events
        if now.step > self._step and (self._is_due(now) or self._clock() - self._latest >= _SECONDS_BETWEEN_LINES):
            lines.append(self._frame.line(now.facts.train[-1], now))
            self._step, self._latest = now.step, self._clock()
        new = [row for row in now.facts.heldout if isinstance(row.get("step"), int) and row["step"] > self._evaluated]
        lines += [self._frame.line(row, now) for row in new]
        self._evaluated = _last_evaluated(now) if new else self._evaluated
        return lines

    def _is_due(self, now: Snapshot) -> bool:
        every = max(1, (now.total or _LINES_IN_A_LOG) // _LINES_IN_A_LOG)
        return now.step // every > self._step // every


def _last_evaluated(now: Snapshot) -> int:
    return max((row["step"] for row in now.facts.heldout if isinstance(row.get("step"), int)), default=-1)
