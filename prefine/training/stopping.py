"""Ctrl-C and SIGTERM as requests to stop, so that a run can finish its step and save before it goes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prefine.training.display import Display


@contextmanager
def stop_on_signal(display: Display) -> Iterator[dict[str, bool]]:
    """Inside, the first Ctrl-C (or SIGTERM) asks the loop to stop after its step; a second one interrupts at once."""
    asked = {"stop": False}

    def ask(number: int, frame: FrameType | None) -> None:
        if asked["stop"]:
            raise KeyboardInterrupt
        asked["stop"] = True
        display.say_from_signal(
            "stopping after this step; press Ctrl-C again to stop at once (steps since the last save are lost)"
        )

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
