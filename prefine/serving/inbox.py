"""What other threads ask of the worker: sequences, jobs, and to give them up. Safe to call from any thread."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from prefine.generation.writer import Request
from prefine.serving.fair_queue import Client, FairQueue
from prefine.serving.limits import Limits
from prefine.serving.tickets import Event, Ticket, overloaded, shutting_down, too_many_of_one

T = TypeVar("T")
Listener = Callable[[Ticket, Event], None]

_LONGEST_RETRY_S = 60
# An address that has asked within this time counts as one that needs its share of the queue.
_ASKS_S = 2 * _LONGEST_RETRY_S
# Weight of a new measurement in the running mean of how long a sequence takes.
_NEW_SHARE = 0.1


class Places(NamedTuple):
    """Places in a model's queue that are kept for a request.

    Attributes:
        model: its id.
        sequences: how many.
        client: clients take turns.
        deadline: of time.monotonic(); then the request fails. Making its prompts counts.
    """

    model: str
    sequences: int
    client: Client
    deadline: float


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
        self._jobs: FairQueue[Job] = FairQueue()
        # Of each model: how many sequences each address has.
        self._held: dict[str, Counter[str]] = {model: Counter() for model in models}
        # When each address last asked, the latest at the end.
        self._asked: OrderedDict[str, float] = OrderedDict()
        self._mean_seconds = 1.0
        self._stop_at: float | None = None

    @property
    def outstanding(self) -> int:
        """Sequences that were asked for and have not ended."""
        with self._changed:
            return sum(map(Counter.total, self._held.values()))

    def reserve(self, model: str, count: int, client: Client) -> Places:
        """Keep places in a model's queue, before a request is prepared; `submit` or `release` ends that.

        While several addresses ask and half of the queue is taken, each may have its share of all places, or one
        request: otherwise an address that asks again and again would leave none to the others.

        Raises:
            ApiError: 429 where the queue is full, or the address has its share; 503 where the server is shutting down.
        """
        slots, most = self._limits.slots, self._limits.slots + self._limits.max_queue
        now = time.monotonic()
        with self._changed:
            if self._stop_at is not None:
                raise shutting_down()
            share = most // self._asking(client.address, now)
            held = self._held[model]
            taken, own = held.total(), held[client.address]
            seconds = max(1, min(_LONGEST_RETRY_S, round(self._mean_seconds * taken / slots)))
            if taken + count > most:
                raise overloaded(max(0, taken - slots), seconds)
            if own and own + count > share and taken + count > slots + self._limits.max_queue // 2:
                raise too_many_of_one(own, share, seconds)
            held[client.address] += count
        return Places(model, count, client, now + self._limits.request_timeout_s)

    def _asking(self, address: str, now: float) -> int:
        """Addresses that have asked lately, with this one."""
        self._asked[address] = now
        self._asked.move_to_end(address)
        while now - next(iter(self._asked.values())) > _ASKS_S:
            self._asked.popitem(last=False)
        return len(self._asked)

    def release(self, places: Places) -> None:
        """Give back places that were reserved and not used."""
        with self._changed:
            self._give_back(places.model, places.client.address, places.sequences)

    def _give_back(self, model: str, address: str, count: int) -> None:
        held = self._held[model]
        held[address] -= count
        if not held[address]:
            del held[address]

    def submit(
        self, places: Places, requests: Sequence[Request], listener: Listener, *, wants_tokens: bool
    ) -> list[Ticket]:
        """Queue sequences, for which places were reserved.

        Args:
            listener: hears of each ticket's events; the last one is no NewToken.
            wants_tokens: whether it is to hear of every token.

        Raises:
            ApiError: 503 where the server began to shut down meanwhile: nobody would take them out any more.
        """
        tickets = [
            Ticket(places.model, request, places.client, listener, wants_tokens, places.deadline, index)
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

    def call(self, job: Callable[[], T], client: Client) -> Future[T]:
        """Run a function on the worker's thread, between two steps; clients take turns. A cancelled one does not run.

        Raises:
            ApiError: 429 where as many jobs wait as sequences may, 503 where the server is shutting down.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._stop_at is not None:
                raise shutting_down()
            for each in [each for each in self._jobs if each.result.cancelled()]:
                self._jobs.remove(each)
            if len(self._jobs) > self._limits.max_queue:
                raise overloaded(len(self._jobs), _LONGEST_RETRY_S)
            self._jobs.add(client, Job(job, future))
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
            return self._jobs.pop() if self._jobs else None

    def ended(self, ticket: Ticket) -> None:
        """For the worker: a ticket has ended."""
        with self._changed:
            self._give_back(ticket.model, ticket.client.address, 1)
            if ticket.begun is not None:
                self._mean_seconds += _NEW_SHARE * (time.monotonic() - ticket.begun - self._mean_seconds)
