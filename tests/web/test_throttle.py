"""Whoever guesses waits longer each time."""

from __future__ import annotations

import pytest

from prefine.web.errors import ApiError
from prefine.web.throttle import FAILURES_A_MINUTE, FREE_FAILURES, LONGEST_WAIT_S, Throttle


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def waits(throttle: Throttle, address: str) -> int:
    """The Retry-After of an attempt; 0 where it may be made."""
    try:
        throttle.begin(address)
    except ApiError as error:
        assert (error.status, error.code) == (429, "too_many_attempts")
        return int(error.headers["Retry-After"])
    return 0


def test_after_some_failures_the_wait_doubles_up_to_a_limit() -> None:
    throttle = Throttle(clock := Clock())
    assert [waits(throttle, "10.0.0.1") for _ in range(FREE_FAILURES)] == [0] * FREE_FAILURES
    found = []
    for _ in range(12):
        found.append(waits(throttle, "10.0.0.1"))
        assert waits(throttle, "10.0.0.2") == 0  # others need not wait
        throttle.succeeded("10.0.0.2")
        clock.now += found[-1]
        assert waits(throttle, "10.0.0.1") == 0
    assert found == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert max(found) == LONGEST_WAIT_S


def test_a_success_forgets_the_failures() -> None:
    throttle = Throttle(Clock())
    for _ in range(50):
        assert waits(throttle, "10.0.0.1") == 0
        throttle.succeeded("10.0.0.1")


def test_many_addresses_do_not_help() -> None:
    throttle = Throttle(clock := Clock())
    for number in range(FAILURES_A_MINUTE):
        assert waits(throttle, f"10.0.{number}.1") == 0
    assert waits(throttle, "10.9.9.9") == 60
    clock.now += 60
    assert waits(throttle, "10.9.9.9") == 0


def test_a_network_of_ipv6_is_one_client() -> None:
    throttle = Throttle(Clock())
    for number in range(FREE_FAILURES):
        assert waits(throttle, f"2001:db8::{number}") == 0
    assert waits(throttle, "2001:db8::ffff") == 1
    assert waits(throttle, "2001:db8:0:1::1") == 0


@pytest.mark.parametrize("address", ["", "testclient"])
def test_what_is_no_address_is_a_client_too(address: str) -> None:
    throttle = Throttle(Clock())
    assert [waits(throttle, address) for _ in range(FREE_FAILURES + 1)] == [0] * FREE_FAILURES + [1]
