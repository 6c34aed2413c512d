"""Slows down whoever guesses a password."""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from prefine.web.errors import ApiError

FREE_FAILURES = 5
LONGEST_WAIT_S = 300.0
FAILURES_A_MINUTE = 60
_MOST_CLIENTS = 4096


class Throttle:
    """Counts failed attempts. Threads may use it at once.

    After FREE_FAILURES a client waits 1 s, then twice as long after each further failure, at most LONGEST_WAIT_S. All
    clients together may fail FAILURES_A_MINUTE times a minute, so that many addresses do not help either.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()  # client -> failures, when it may try again
        self._recent: list[float] = []

    def begin(self, address: str) -> None:
        """Begin an attempt. It counts as failed until `succeeded`: attempts at the same time cannot slip through.

        Args:
            address: of the client; IPv6 addresses of one network (/64) are one client.

        Raises:
            ApiError: 429 with Retry-After: the client, or all of them, must wait.
        """
        client, now = _client(address), self._clock()
        with self._lock:
            failures, free_at = self._failed.get(client, (0, -math.inf))
            self._recent = [at for at in self._recent if at > now - 60]
            if len(self._recent) >= FAILURES_A_MINUTE:
                free_at = max(free_at, self._recent[0] + 60)
            if free_at > now:
                raise _too_many(free_at - now)
            failures += 1
            wait = 0.0 if failures < FREE_FAILURES else min(2.0 ** (failures - FREE_FAILURES), LONGEST_WAIT_S)
            self._failed[client] = (failures, now + wait)
            self._failed.move_to_end(client)
            self._recent.append(now)
            while len(self._failed) > _MOST_CLIENTS:
                self._failed.popitem(last=False)

    def succeeded(self, address: str) -> None:
        """The attempt that `begin` let through was right: the client's failures are forgotten."""
        with self._lock:
            self._failed.pop(_client(address), None)
            if self._recent:
                self._recent.pop()


def _client(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


def _too_many(wait_s: float) -> ApiError:
    seconds = math.ceil(wait_s)
    return ApiError(
        429,
        f"too many failed attempts; try again in {seconds} s",
        kind="rate_limit_error",
        code="too_many_attempts",
        headers={"Retry-After": str(seconds)},
    )
