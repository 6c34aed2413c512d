"""Which signals ask a run to stop, and when a second one interrupts it."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator

import pytest
from rich.console import Console

from prefine.training.display import Display
from prefine.training.run import interrupts as stopping
from prefine.training.run.interrupts import stop_on_signal

DISPLAY = Display(Console(file=io.StringIO()), enabled=False)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As a program begins, and back afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    with stop_on_signal(DISPLAY) as asked:
        assert not asked["stop"]
        os.kill(os.getpid(), number)
        assert asked["stop"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_an_ignored_hangup_stays_ignored() -> None:
    """nohup prefine … goes on when its terminal is closed."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signal(DISPLAY) as asked:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not asked["stop"]


def test_one_ctrl_c_in_a_launch_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes twice, from the terminal and from torchrun; a later one is the user's second."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    with stop_on_signal(DISPLAY) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 0.5
        os.kill(os.getpid(), signal.SIGINT)
        assert asked["stop"]
        now[0] += 0.6
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
