"""A run warns once if other programs take cores that it wants."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from prefine.training import neighbours
from prefine.training.neighbours import Neighbours

# After SECONDS, OWN processor seconds of this process and OTHERS of all others.
Pass = Callable[[float, float, float], None]


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Pass:
    """A machine of two cores whose time passes as a test says; it idles and waits for disks besides."""
    now = SimpleNamespace(clock=1000.0, own=5.0, busy=100.0)
    monkeypatch.setattr(neighbours.time, "monotonic", lambda: now.clock)
    monkeypatch.setattr(neighbours.time, "process_time", lambda: now.own)
    monkeypatch.setattr(neighbours.psutil, "cpu_count", lambda: 2)

    def times() -> SimpleNamespace:
        told = {"user": now.busy / 2, "system": now.busy / 4, "steal": now.busy / 4, "idle": now.clock, "iowait": 7.0}
        return SimpleNamespace(_asdict=lambda: told)

    monkeypatch.setattr(neighbours.psutil, "cpu_times", times)

    def passes(seconds: float, own: float, others: float) -> None:
        now.clock += seconds
        now.own += own
        now.busy += own + others

    return passes


def test_a_busy_neighbour_is_said_once(after: Pass) -> None:
    watched = Neighbours()
    after(25.0, 25.0, 25.0)
    assert watched.warning(2) == (
        "other programs keep 1.0 of 2 cores busy, and this run computes with 2: steps can take several times as long. "
        "Stop them or set OMP_NUM_THREADS=1."
    )
    after(25.0, 25.0, 25.0)
    assert watched.warning(2) is None


def test_one_that_begins_later_is_noticed(after: Pass) -> None:
    watched = Neighbours()
    for _ in range(5):
        after(25.0, 48.0, 1.0)
        assert watched.warning(2) is None
    after(25.0, 25.0, 25.0)
    assert watched.warning(2) is not None


@pytest.mark.parametrize(("threads", "others"), [(2, 0.0), (2, 12.0), (1, 25.0), (1, 37.0)])
def test_room_enough_is_no_news(threads: int, others: float, after: Pass) -> None:
    """Up to half a core more than there is."""
    watched = Neighbours()
    after(25.0, 25.0, others)
    assert watched.warning(threads) is None


def test_one_thread_has_no_fewer(after: Pass) -> None:
    watched = Neighbours()
    after(25.0, 20.0, 50.0)
    said = watched.warning(1)
    assert said is not None
    assert said.endswith("Stop them.")


def test_too_short_a_time_says_nothing(after: Pass) -> None:
    watched = Neighbours()
    after(5.0, 5.0, 10.0)
    assert watched.warning(2) is None
