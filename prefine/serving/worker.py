"""The thread that owns the models: everything that runs on them runs here, one thing after the other."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from prefine.generation.writer import Writer
from prefine.serving.inbox import Inbox
from prefine.serving.lane import Lane
from prefine.serving.limits import Limits
from prefine.serving.tickets import Event, Ticket, engine_failed, shutting_down
from prefine.web.errors import place_of

log = logging.getLogger("prefine")

# Events wait for the end of a step, or so long where a step goes on.
_HOLD_S = 0.02
# After so many failed steps in a row the server calls itself unhealthy.
_FAILURES_TO_GIVE_UP = 3


class Worker:
    """Generates for all clients at once, on one thread.

    Models take turns, a step each, so that requests for one are not stalled by those for another.

    Args:
        writers: for each model's id, what makes its writer.
        limits: see Limits.
        select: called with a model's id before its steps, where that is not the one of the steps before.
        rooms: for each model's id, how many tokens its running sequences may grow to; without one there is no limit.

    Attributes:
        inbox: where other threads ask for something.
        dispatch: called from the worker's thread with a function that tells listeners of events; by default at once.
            An event loop's call_soon_threadsafe brings them to its own thread.
        on_end: called with every ticket that has ended and its last event, on the worker's thread.
    """

    def __init__(
        self,
        writers: Mapping[str, Callable[[], Writer]],
        limits: Limits,
        select: Callable[[str], None] = lambda model: None,
        rooms: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.inbox = Inbox(writers, limits)
        self.dispatch: Callable[[Callable[[], None]], Any] = lambda call: call()
        self.on_end: Callable[[Ticket, Event], None] = lambda ticket, event: None
        self._select = select
        self._selected: str | None = None
        self._lanes = {
            model: Lane(make, limits.request_timeout_s, self._tell, self._between_tokens, rooms.get(model, math.inf))
            for model, make in writers.items()
        }
        self._events: list[tuple[Ticket, Event]] = []
        self._told = 0.0
        self._thread = threading.Thread(target=self._run, name="prefine-worker", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Refuse what comes and what waits, let what runs go on for so long, and end the thread."""
        self.inbox.begin_stop(timeout_s)
        self._thread.join()

    def state(self) -> dict[str, Any]:
        """How the worker is: `status` (ok, failing, stopping or dead), and what it does. Any thread may ask."""
        failures = max((lane.failures for lane in self._lanes.values()), default=0)
        running = sum(len(lane.running) for lane in self._lanes.values())
        status = "failing" if failures else "ok"
        if self.inbox.stopping:
            status = "stopping"
        elif not self._thread.is_alive():
            status = "dead"
        return {
            "status": status,
            "healthy": status in ("ok", "failing") and failures < _FAILURES_TO_GIVE_UP,
            "running": running,
            "waiting": max(0, self.inbox.outstanding - running),
        }

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - a fault of prefine's: nobody may wait for ever
            log.error("the worker failed: %s", place_of(error))
            for lane in self._lanes.values():
                lane.fail([*lane.waiting, *lane.running.values()], engine_failed(error))
            self.inbox.begin_stop(0)
            self._attend(wait=False)
        self._flush()
        while (job := self.inbox.next_job()) is not None:
            if job.result.set_running_or_notify_cancel():
                job.result.set_exception(shutting_down())

    def _work(self) -> None:
        while self._attend(wait=True):
            for model, lane in self._lanes.items():
                if lane.busy:
                    self._step(model, lane)
            self._do_a_job()  # one a round, so that jobs and steps take turns
            self._flush()

    def _step(self, model: str, lane: Lane) -> None:
        if model != self._selected:
            self._select(model)
            self._selected = model
        error = lane.step()
        if error is not None:
            log.error("generation with %s failed: %s", model, place_of(error))

    def _attend(self, *, wait: bool) -> bool:
        """Take what other threads have asked for; False where the thread is to end."""
        taken = self.inbox.take(wait=wait and not self._busy)
        for ticket in taken.new:
            self._lanes[ticket.model].waiting.add(ticket.client, ticket)
        for ticket in taken.left:
            self._lanes[ticket.model].give_up(ticket)
        now = time.monotonic()
        for lane in self._lanes.values():
            lane.expire(now)
            if taken.stop_at is not None:
                lane.fail(list(lane.waiting), shutting_down())
                if now > taken.stop_at:
                    lane.fail(list(lane.running.values()), shutting_down())
        return taken.stop_at is None or self._busy

    @property
    def _busy(self) -> bool:
        return any(lane.busy for lane in self._lanes.values())

    def _between_tokens(self) -> None:
        """Within a long step (a writer of padded batches takes one a batch), attend to those who wait now and then."""
        if time.monotonic() - self._told > _HOLD_S:
            self._flush()
            self._attend(wait=False)

    def _do_a_job(self) -> None:
        job = self.inbox.next_job()
        if job is None or not job.result.set_running_or_notify_cancel():
            return
        try:
            job.result.set_result(job.run())
        except Exception as error:  # noqa: BLE001 - whatever a job raises is its caller's
            job.result.set_exception(error)

    def _tell(self, ticket: Ticket, event: Event) -> None:
        self._events.append((ticket, event))
        if ticket.ended:
            self.inbox.ended(ticket)
            self.on_end(ticket, event)

    def _flush(self) -> None:
        self._told = time.monotonic()
        if self._events:
            events, self._events = self._events, []
            try:
                self.dispatch(partial(_tell_all, events))
            except RuntimeError:  # the event loop has ended, and nobody listens
                log.debug("nobody listens any more")


def _tell_all(events: Sequence[tuple[Ticket, Event]]) -> None:
    for ticket, event in events:
        ticket.listener(ticket, event)
