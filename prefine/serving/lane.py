"""One model's part of the worker: its queue, its writer, and the sequences in the writer's slots."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from prefine.generation.writer import Generated, NewToken, Writer
from prefine.serving.fair_queue import FairQueue
from prefine.serving.tickets import Event, Ticket, engine_failed, timed_out
from prefine.web.errors import ApiError


class Lane:
    """Generates one model's sequences. Only the worker's thread calls it, but for the attributes, which any may read.

    Args:
        make_writer: makes the model's writer, again after it has failed.
        timeout_s: for messages; tickets have their own deadlines.
        tell: takes a ticket's event to its listener.
        after_token: called after each token, also within a step that writes many.
        room: tokens that the running sequences may grow to, all together; one alone always runs.

    Attributes:
        waiting: tickets without a slot.
        running: tickets with one, by the writer's number.
        failures: steps that failed, one after the other.
    """

    def __init__(
        self,
        make_writer: Callable[[], Writer],
        timeout_s: float,
        tell: Callable[[Ticket, Event], None],
        after_token: Callable[[], None],
        room: float = math.inf,
    ) -> None:
        self._make_writer = make_writer
        self._writer = make_writer()
        self._timeout_s = timeout_s
        self._tell = tell
        self._after_token = after_token
        self._room = room
        self.waiting: FairQueue[Ticket] = FairQueue()
        self.running: dict[int, Ticket] = {}
        self.failures = 0

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self.waiting or self.running or self._writer.busy)

    def step(self) -> BaseException | None:
        """Fill free slots and generate on a little; returns what failed, where something did."""
        self._admit()
        try:
            done = self._writer.step() if self._writer.busy else []
        except Exception as error:  # noqa: BLE001 - whatever torch or a model's code raises ends these requests only
            self.failures += 1
            self.fail(list(self.running.values()), engine_failed(error))
            self.running.clear()
            self._writer = self._make_writer()
            return error
        for number, generated in done:
            self._ended(self.running.pop(number), generated)
        return None

    def give_up(self, ticket: Ticket) -> None:
        """Nobody waits for a ticket any more: free its slot within two steps."""
        if ticket.ended:
            return
        ticket.cancelled = True
        if ticket.number is not None:
            self._writer.cancel(ticket.number)
        elif self.waiting.remove(ticket):
            self._finish(ticket, None)

    def expire(self, now: float) -> None:
        """Fail the tickets whose time is over."""
        for tickets in (list(self.waiting), list(self.running.values())):
            self.fail((each for each in tickets if now > each.deadline), timed_out(self._timeout_s))

    def fail(self, tickets: Iterable[Ticket], error: ApiError) -> None:
        """End tickets with an error."""
        for ticket in tickets:
            if ticket.number is None:
                self.waiting.remove(ticket)
            elif not ticket.cancelled:
                self._writer.cancel(ticket.number)
            ticket.cancelled = True
            self._finish(ticket, error)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._writer.slots and self._fits(self.waiting.next()):
            ticket = self.waiting.pop()
            try:
                ticket.number = self._writer.add(replace(ticket.request, on_token=partial(self._token, ticket)))
            except Exception as error:  # noqa: BLE001 - a request that the writer refuses ends alone
                self._finish(ticket, engine_failed(error))
                continue
            ticket.begun = time.monotonic()
            self.running[ticket.number] = ticket

    def _fits(self, ticket: Ticket) -> bool:
        """Whether there is memory for one more sequence, however long the running ones become.

        All slots have the room of the longest sequence. One that has to wait for room stays the next one, so that it
        gets it.
        """
        if not self.running or self._room == math.inf:
            return True
        longest = max(each.most_tokens for each in (ticket, *self.running.values()))
        if self._writer.room(longest, len(self.running) + 1) > self._room:
            self._writer.trim()  # of a longer sequence that has ended, perhaps
        return self._writer.room(longest, len(self.running) + 1) <= self._room

    def _token(self, ticket: Ticket, new: NewToken) -> None:
        if ticket.first_token is None:
            ticket.first_token = time.monotonic()
        if ticket.wants_tokens and not ticket.cancelled:
            self._tell(ticket, new)
        self._after_token()

    def _ended(self, ticket: Ticket, generated: Generated) -> None:
        self.failures = 0
        self._finish(ticket, None if ticket.cancelled else generated)

    def _finish(self, ticket: Ticket, event: Event | None) -> None:
        """The ticket's last event, once; a ticket that nobody waits for has none, but its place is free again."""
        if not ticket.ended:
            ticket.ended = True
            self._tell(ticket, event if event is not None else _ABANDONED)


_ABANDONED = ApiError(499, "the client has gone", kind="cancelled")
