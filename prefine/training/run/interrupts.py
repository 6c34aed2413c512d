"""Ctrl-C, SIGTERM and SIGHUP as requests to stop: the run finishes its step and saves before it ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prefine.training.display import Display
from prefine.training.loop.launch import launched

_SECONDS_OF_ONE_CTRL_C = 1.0


@contextmanager
def stop_on_signal(display: Display) -> Iterator[dict[str, bool]]:
    """Inside, the first Ctrl-C, SIGTERM or SIGHUP asks the loop to stop after its step; a second one interrupts.

    Yields a dictionary whose "stop" becomes True. SIGHUP stays ignored if it was, as under nohup. In a launch of
    several processes each Ctrl-C reaches a process twice, from the terminal and from the launcher: there a further
    signal counts only after one second.
    """
    asked = {"stop": False}
    counts_from = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal counts_from
        if asked["stop"]:
            if time.monotonic() >= counts_from:
                raise KeyboardInterrupt
            return
        asked["stop"] = True
        counts_from = time.monotonic() + (_SECONDS_OF_ONE_CTRL_C if launched() else 0.0)
        display.say_from_signal(
            "stopping after this step; press Ctrl-C again to stop at once (steps since the last save are lost)"
        )

    try:
        before = {number: signal.signal(number, ask) for number in _signals()}
    except ValueError:  # not the main thread: signals are handled elsewhere
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signals() -> list[signal.Signals]:
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, hangup]
