"""What other threads ask of the worker: sequences, jobs, and to give them up. Safe to call from any thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from prefine.generation.writer import Request
from prefine.serving.limits import Limits
from prefine.serving.tickets import Event, Ticket, overloaded, shutting_down

T = TypeVar("T")
Listener = Callable[[Ticket, Event], None]

_LONGEST_RETRY_S = 60
# Weight of a new measurement in the running mean of how long a sequence takes.
_NEW_SHARE = 0.1


class Job(NamedTuple):
    """A function to run between two steps, and what it returns."""

    run: Callable[[], Any]
    result: Future[Any]


class Taken(NamedTuple):
    """What the worker takes out of the inbox.

    Attributes:
        new: tickets to be queued.
        left: tickets that nobody waits for any more.
        stop_at: when what runs is to be ended, of time.monotonic(); None where the server goes on.
    """

    new: Sequence[Ticket]
    left: Sequence[Ticket]
    stop_at: float | None


class Inbox:
    """Takes requests for the worker, and counts them, so that no more come in than may wait.

    Args:
        models: their ids.
        limits: see Limits.
    """

    def __init__(self, models: Iterable[str], limits: Limits) -> None:
        self._limits = limits
        self._changed = threading.Condition()
        self._new: deque[Ticket] = deque()
        self._left: deque[Ticket] = deque()
        self._jobs: deque[Job] = deque()
        self._outstanding = dict.fromkeys(models, 0)
        self._mean_seconds = 1.0
        self._stop_at: float | None = None

    @property
    def outstanding(self) -> int:
        """Sequences that were asked for and have not ended."""
        with self._changed:
            return sum(self._outstanding.values())

    def reserve(self, model: str, count: int) -> None:
        """Keep places in a model's queue, before a request is prepared; `submit` or `release` ends that.

        Raises:
            ApiError: 429 where the queue is full, 503 where the server is shutting down.
        """
        slots = self._limits.slots
        with self._changed:
            if self._stop_at is not None:
                raise shutting_down()
            taken = self._outstanding[model]
            if taken + count > slots + self._limits.max_queue:
                seconds = round(self._mean_seconds * taken / slots)
                raise overloaded(max(0, taken - slots), max(1, min(_LONGEST_RETRY_S, seconds)))
            self._outstanding[model] += count

    def release(self, model: str, count: int) -> None:
        """Give back places that were reserved and not used."""
        with self._changed:
            self._outstanding[model] -= count

    def submit(
        self, model: str, requests: Sequence[Request], client: Hashable, listener: Listener, *, wants_tokens: bool
    ) -> list[Ticket]:
        """Queue sequences, for which places were reserved.

        Args:
            client: clients take turns.
            listener: hears of each ticket's events; the last one is no NewToken.
            wants_tokens: whether it is to hear of every token.

        Raises:
            ApiError: 503 where the server began to shut down meanwhile: nobody would take them out any more.
        """
        deadline = time.monotonic() + self._limits.request_timeout_s
        tickets = [
            Ticket(model, request, client, listener, wants_tokens, deadline, index)
            for index, request in enumerate(requests)
        ]
        with self._changed:
            if self._stop_at is not None:
                raise shutting_down()
            self._new += tickets
            self._changed.notify()
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Give tickets up; their slots are free within two steps."""
        with self._changed:
            self._left += tickets
            self._changed.notify()

    def call(self, job: Callable[[], T]) -> Future[T]:
        """Run a function on the worker's thread, between two steps.

        Raises:
            ApiError: 429 where as many jobs wait as sequences may, 503 where the server is shutting down.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._stop_at is not None:
                raise shutting_down()
            if len(self._jobs) > self._limits.max_queue:
                raise overloaded(len(self._jobs), _LONGEST_RETRY_S)
            self._jobs.append(Job(job, future))
            self._changed.notify()
        return future

    def begin_stop(self, timeout_s: float) -> None:
        """Refuse what comes and what waits; what runs may go on for so long. The first call counts."""
        with self._changed:
            if self._stop_at is None:
                self._stop_at = time.monotonic() + timeout_s
            self._changed.notify()

    @property
    def stopping(self) -> bool:
        """Whether begin_stop was called."""
        return self._stop_at is not None

    def take(self, *, wait: bool) -> Taken:
        """For the worker: everything but the jobs; it waits for something to do where it has nothing else."""
        with self._changed:
            while wait and not (self._new or self._left or self._jobs or self._stop_at is not None):
                self._changed.wait()
            new, self._new = self._new, deque()
            left, self._left = self._left, deque()
            return Taken(new, left, self._stop_at)

    def next_job(self) -> Job | None:
        """For the worker: the next job."""
        with self._changed:
            return self._jobs.popleft() if self._jobs else None

    def ended(self, ticket: Ticket) -> None:
        """For the worker: a ticket has ended."""
        with self._changed:
            self._outstanding[ticket.model] -= 1
            if ticket.begun is not None:
                self._mean_seconds += _NEW_SHARE * (time.monotonic() - ticket.begun - self._mean_seconds)
