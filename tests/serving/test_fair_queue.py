"""Clients take turns, whatever each has queued."""

from __future__ import annotations

import pytest

from prefine.serving.fair_queue import Client, FairQueue


def queue(*items: str) -> FairQueue[str]:
    made: FairQueue[str] = FairQueue()
    for item in items:
        made.add(Client(item[0]), item)
    return made


def drained(waiting: FairQueue[str]) -> list[str]:
    return [waiting.pop() for _ in range(len(waiting))]


def test_a_client_with_many_requests_does_not_hold_up_another() -> None:
    assert drained(queue("a1", "a2", "a3", "b1", "c1", "c2")) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_client_that_comes_later_waits_for_one_of_each() -> None:
    waiting = queue("a1", "a2", "b1", "b2")
    assert waiting.pop() == "a1"
    waiting.add(Client("c"), "c1")
    assert drained(waiting) == ["b1", "a2", "c1", "b2"]


def test_items_can_be_taken_out() -> None:
    waiting = queue("a1", "a2", "b1")
    assert waiting.remove("a1")
    assert waiting.remove("b1")
    assert not waiting.remove("b1")
    assert list(waiting) == ["a2"]
    assert drained(waiting) == ["a2"]
    with pytest.raises(KeyError):
        waiting.pop()


def test_users_take_turns_within_their_address_only() -> None:
    waiting: FairQueue[str] = FairQueue()
    for user in ("x", "x", "y", "z"):
        waiting.add(Client("a", user), f"a-{user}")
    waiting.add(Client("b"), "b1")
    waiting.add(Client("b"), "b2")
    assert (waiting.waiting_of("a"), waiting.waiting_of("b"), waiting.waiting_of("c")) == (4, 2, 0)
    assert waiting.next() == "a-x"
    assert drained(waiting) == ["a-x", "b1", "a-y", "b2", "a-z", "a-x"]
