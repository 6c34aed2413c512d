"""The worker: turns, limits, leaving, failures and the end, on writers whose every step a test takes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from prefine.errors import NotFiniteError
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Generated, NewToken, Request
from prefine.serving.fair_queue import Client
from prefine.serving.limits import Limits
from prefine.serving.tickets import Event, Ticket
from prefine.serving.worker import Worker
from prefine.web.errors import ApiError
from tests.serving.live import until


class Steps:
    """A writer that takes a step when a test says so, and gives each sequence a token a step."""

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.allowed = threading.Semaphore(0)
        self.taken = 0
        self.error: Exception | None = None
        self.order: list[int] = []
        self.stale = 0
        self._going: dict[int, tuple[Request, int]] = {}
        self._cancelled: set[int] = set()
        self._count = 0

    def add(self, request: Request) -> int:
        if request.prompt == [666]:
            raise ValueError("a prompt that the writer refuses")
        number, self._count = self._count, self._count + 1
        self._going[number] = (request, 0)
        self.order.append(request.prompt[0])
        assert len(self._going) <= self.slots
        return number

    def cancel(self, number: int) -> None:
        self._cancelled.add(number)

    def clear(self) -> None:
        self._going, self._cancelled = {}, set()

    def room(self, longest: int, sequences: int) -> int:
        return max(longest, self.stale) * sequences

    def trim(self) -> None:
        self.stale = 0

    @property
    def busy(self) -> bool:
        return bool(self._going)

    def step(self) -> list[tuple[int, Generated]]:
        assert self.allowed.acquire(timeout=10)
        self.taken += 1
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        done = []
        for number, (request, count) in list(self._going.items()):
            if number in self._cancelled:
                done.append((number, Generated((), (), "", "cancelled", False)))
                continue
            self._going[number] = (request, count + 1)
            assert request.on_token is not None
            request.on_token(NewToken(count, -1.0))
            if count + 1 == request.sampling.max_new_tokens:
                done.append((number, Generated((0,) * (count + 1), (-1.0,) * (count + 1), "", "length", False)))
        for number, _ in done:
            del self._going[number]
        return done


class Heard:
    """What a listener has heard, in order: (the prompt's first token, the event)."""

    def __init__(self) -> None:
        self.events: list[tuple[int, Event]] = []

    def __call__(self, ticket: Ticket, event: Event) -> None:
        self.events.append((ticket.request.prompt[0], event))

    def ends(self) -> list[int]:
        return [who for who, event in self.events if not isinstance(event, NewToken)]

    def errors(self) -> list[tuple[int, int, str | None]]:
        return [(who, event.status, event.code) for who, event in self.events if isinstance(event, ApiError)]


def ask(who: int, tokens: int = 3) -> Request:
    return Request([who], Sampling(tokens), frozenset())


class Bench:
    """A worker with one writer a model."""

    def __init__(self, models: int = 1, slots: int = 2, room: float = math.inf, **limits: Any) -> None:
        self.writers = [Steps(slots) for _ in range(models)]
        self.made: list[int] = []
        self.selected: list[str] = []
        self.worker = Worker(
            {str(place): self._maker(place) for place in range(models)},
            Limits(slots=slots, **{"max_queue": 10, **limits}),
            self.selected.append,
            {"0": room},
        )
        self.heard = Heard()
        self.worker.start()

    def _maker(self, place: int) -> Callable[[], Any]:
        def make() -> Any:
            self.made.append(place)
            self.writers[place].clear()
            return self.writers[place]

        return make

    def submit(self, *requests: Request, model: str = "0", client: str = "a") -> list[Ticket]:
        inbox = self.worker.inbox
        places = inbox.reserve(model, len(requests), Client(client))
        return inbox.submit(places, requests, self.heard, wants_tokens=True)

    def call(self, job: Callable[[], Any], client: str = "a") -> Future[Any]:
        return self.worker.inbox.call(job, Client(client))

    def steps(self, count: int, model: int = 0) -> None:
        """Let a writer take so many steps, and wait for them."""
        writer = self.writers[model]
        before = writer.taken
        for _ in range(count):
            writer.allowed.release()
        until(lambda: writer.taken == before + count)

    def run_out(self) -> None:
        """Let all writers go on to their end."""
        for writer in self.writers:
            writer.allowed.release(1000)
        until(lambda: self.worker.inbox.outstanding == 0)


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield make
    for each in made:
        for writer in each.writers:
            writer.allowed.release(1000)
        each.worker.close(0)
        assert not each.worker._thread.is_alive()


def test_every_token_and_the_end_are_told(bench: Callable[..., Bench]) -> None:
    here = bench()
    here.submit(ask(1, tokens=2))
    here.run_out()
    until(lambda: here.heard.ends() == [1])
    assert [event.token for _, event in here.heard.events[:-1] if isinstance(event, NewToken)] == [0, 1]
    last = here.heard.events[-1][1]
    assert isinstance(last, Generated)
    assert last.finish == "length"


def test_clients_take_turns(bench: Callable[..., Bench]) -> None:
    here = bench(slots=1)
    here.submit(ask(1))
    until(lambda: here.writers[0].order == [1])
    here.submit(*(ask(who) for who in (2, 3, 4)))
    here.submit(ask(5), client="b")
    here.run_out()
    assert here.writers[0].order == [1, 2, 5, 3, 4]


def test_a_full_queue_refuses_with_the_time_to_come_back(bench: Callable[..., Bench]) -> None:
    here = bench(slots=2, max_queue=2)
    here.submit(*(ask(who) for who in range(4)))
    with pytest.raises(ApiError) as refused:
        here.submit(ask(5))
    assert (refused.value.status, refused.value.code) == (429, "queue_full")
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
    here.run_out()
    here.submit(ask(6))
    here.run_out()
    until(lambda: 6 in here.heard.ends())


def test_reserved_places_count_until_they_are_given_back(bench: Callable[..., Bench]) -> None:
    here = bench(slots=1, max_queue=0)
    for _ in range(2):
        places = here.worker.inbox.reserve("0", 1, Client("a"))
        with pytest.raises(ApiError):
            here.worker.inbox.reserve("0", 1, Client("b"))
        here.worker.inbox.release(places)


def test_who_leaves_frees_a_slot_within_two_steps(bench: Callable[..., Bench]) -> None:
    here = bench(slots=1)
    left = here.submit(ask(1, tokens=100))
    here.submit(ask(2))
    here.steps(3)
    here.worker.inbox.cancel(left)
    here.steps(2)
    until(lambda: here.writers[0].order == [1, 2])
    here.run_out()
    until(lambda: here.heard.ends() == [1, 2])
    assert len([who for who, _ in here.heard.events if who == 1]) <= 5  # three tokens, one on the way, the end


def test_who_leaves_while_waiting_never_gets_a_slot(bench: Callable[..., Bench]) -> None:
    here = bench(slots=1)
    here.submit(ask(1))
    until(lambda: here.writers[0].order == [1])
    here.worker.inbox.cancel(here.submit(ask(2)))
    here.submit(ask(3))
    here.run_out()
    assert here.writers[0].order == [1, 3]


def test_a_failed_step_ends_its_models_requests_only(bench: Callable[..., Bench], caplog: Any) -> None:
    here = bench(models=2)
    here.submit(ask(1), ask(2))
    here.writers[1].allowed.release(100_000)
    here.submit(ask(3, tokens=3_000), model="1")
    until(lambda: here.writers[0].order == [1, 2])
    here.writers[0].error = RuntimeError("the prompt hunter2 broke it")
    here.steps(1)
    until(lambda: len(here.heard.errors()) == 2)
    assert here.heard.errors() == [(1, 500, "engine_error"), (2, 500, "engine_error")]
    assert here.worker.state()["status"] == "failing"
    assert "hunter2" not in caplog.text + str([event for _, event in here.heard.events])
    assert "RuntimeError" in caplog.text
    here.submit(ask(4))
    here.run_out()
    until(lambda: {3, 4} <= set(here.heard.ends()))
    assert len(here.heard.errors()) == 2  # the other model's request went on
    assert here.worker.state()["status"] == "ok"
    assert here.made == [0, 1, 0]


def test_an_error_of_prefines_own_is_told_with_its_remedy(bench: Callable[..., Bench]) -> None:
    here = bench()
    here.submit(ask(1))
    until(lambda: here.writers[0].order == [1])
    here.writers[0].error = NotFiniteError("the model's logits are not finite", "Load it with dtype float32.")
    here.steps(1)
    until(lambda: bool(here.heard.errors()))
    error = here.heard.events[-1][1]
    assert isinstance(error, ApiError)
    assert error.message.endswith("Load it with dtype float32.")


def test_after_several_failures_in_a_row_the_server_is_not_healthy(bench: Callable[..., Bench]) -> None:
    here = bench()
    for who in range(3):
        here.submit(ask(who))
        until(lambda: bool(here.worker.state()["running"]))
        here.writers[0].error = RuntimeError()
        here.steps(1)
        until(lambda count=who + 1: len(here.heard.errors()) == count)
    assert not here.worker.state()["healthy"]
    here.submit(ask(9))
    here.run_out()
    until(lambda: here.worker.state()["healthy"])


def test_a_request_that_the_writer_refuses_ends_alone(bench: Callable[..., Bench]) -> None:
    here = bench()
    here.submit(ask(666), ask(1))
    here.run_out()
    until(lambda: sorted(here.heard.ends()) == [1, 666])
    assert here.heard.errors() == [(666, 500, "engine_error")]


def test_a_request_has_so_long_and_no_longer(bench: Callable[..., Bench]) -> None:
    here = bench(slots=1, request_timeout_s=0.15)
    here.submit(ask(1, tokens=10_000))
    here.submit(ask(2))  # waits

    def goes_on() -> bool:
        here.writers[0].allowed.release()
        return len(here.heard.errors()) == 2

    until(goes_on)
    assert sorted(here.heard.errors()) == [(1, 504, "request_timeout"), (2, 504, "request_timeout")]


def test_models_take_turns_a_step_each(bench: Callable[..., Bench]) -> None:
    here = bench(models=2)
    here.submit(ask(1, tokens=4), model="0")
    here.submit(ask(2, tokens=4), model="1")
    here.run_out()
    assert here.selected[:4] in (["0", "1", "0", "1"], ["1", "0", "1", "0"])


def test_a_job_runs_between_steps_and_gives_its_result_or_its_error(bench: Callable[..., Bench]) -> None:
    here = bench()
    assert here.call(lambda: threading.current_thread().name).result(5) == "prefine-worker"
    here.submit(ask(1, tokens=50))
    until(lambda: bool(here.worker.state()["running"]))
    job = here.call(lambda: 1 / 0)
    here.steps(2)
    with pytest.raises(ZeroDivisionError):
        job.result(5)
    here.run_out()


def test_the_end_lets_what_runs_finish_and_refuses_the_rest(bench: Callable[..., Bench]) -> None:
    here = bench(slots=1)
    here.submit(ask(1, tokens=3))
    here.submit(ask(2))
    until(lambda: bool(here.worker.state()["running"]))
    here.worker.inbox.begin_stop(30)
    here.steps(1)
    until(lambda: here.heard.errors() == [(2, 503, "shutting_down")])
    for refused in (lambda: here.submit(ask(3)), lambda: here.call(lambda: None)):
        with pytest.raises(ApiError, match="shutting down"):
            refused()
    assert here.worker.state()["status"] == "stopping"
    here.run_out()
    until(lambda: 1 in here.heard.ends())
    assert here.heard.errors() == [(2, 503, "shutting_down")]


def test_the_end_does_not_wait_for_ever(bench: Callable[..., Bench]) -> None:
    here = bench(slots=1)
    here.submit(ask(1, tokens=10_000))
    until(lambda: bool(here.worker.state()["running"]))
    here.worker.inbox.begin_stop(0)
    here.steps(2)
    here.worker.close(0)
    assert here.heard.errors() == [(1, 503, "shutting_down")]


def test_a_worker_that_breaks_ends_all_requests(bench: Callable[..., Bench], monkeypatch: Any, caplog: Any) -> None:
    here = bench()
    here.submit(ask(1))
    until(lambda: bool(here.worker.state()["running"]))
    monkeypatch.setattr(here.worker, "_step", lambda *_: 1 / 0)
    here.steps(1)
    until(lambda: here.heard.errors() == [(1, 500, "engine_error")])
    assert not here.worker.state()["healthy"]
    with pytest.raises(ApiError):
        here.submit(ask(2))


def test_no_more_jobs_wait_than_may(bench: Callable[..., Bench]) -> None:
    here = bench(max_queue=2)
    here.submit(ask(1, tokens=50))
    until(lambda: bool(here.worker.state()["running"]))
    for _ in range(3):
        here.call(lambda: None)
    with pytest.raises(ApiError) as refused:
        here.call(lambda: None)
    assert refused.value.status == 429
    here.run_out()


def test_what_was_prepared_while_the_end_came_is_refused(bench: Callable[..., Bench]) -> None:
    here = bench()
    inbox = here.worker.inbox
    places = inbox.reserve("0", 1, Client("a"))
    here.worker.close(0)
    with pytest.raises(ApiError, match="shutting down"):
        inbox.submit(places, [ask(1)], here.heard, wants_tokens=True)
    inbox.release(places)
    assert inbox.outstanding == 0


def test_a_job_that_was_given_up_does_not_disturb_the_end(bench: Callable[..., Bench]) -> None:
    here = bench()
    here.submit(ask(1, tokens=10_000))
    until(lambda: bool(here.worker.state()["running"]))
    jobs = [here.call(lambda: None) for _ in range(4)]
    jobs[2].cancel()
    here.worker.inbox.begin_stop(0)
    here.steps(1)
    here.worker.close(0)
    assert all(job.done() for job in jobs)


def test_jobs_take_turns_with_steps_and_with_each_others_clients(bench: Callable[..., Bench]) -> None:
    here = bench()
    here.submit(ask(1, tokens=50))
    until(lambda: bool(here.worker.state()["running"]))
    ran: list[tuple[str, int]] = []
    for client in ("a", "a", "b"):
        here.call(lambda client=client: ran.append((client, here.writers[0].taken)), client)
    here.steps(4)
    until(lambda: len(ran) == 3)
    assert [client for client, _ in ran] == ["a", "b", "a"]
    assert len({step for _, step in ran}) == 3  # a step between two jobs
    here.run_out()


def test_a_job_that_was_given_up_takes_no_place(bench: Callable[..., Bench]) -> None:
    here = bench(max_queue=0)
    here.submit(ask(1, tokens=50))
    until(lambda: bool(here.worker.state()["running"]))
    here.call(lambda: None).cancel()
    here.call(lambda: None).cancel()
    here.run_out()


def test_an_address_leaves_places_to_others_who_ask(bench: Callable[..., Bench]) -> None:
    inbox = bench(slots=2, max_queue=8).worker.inbox
    held = [inbox.reserve("0", 1, Client("a", str(user))) for user in range(10)]  # alone it may have all
    with pytest.raises(ApiError) as full:
        inbox.reserve("0", 1, Client("b"))
    assert full.value.code == "queue_full"
    inbox.release(held.pop())
    with pytest.raises(ApiError) as refused:
        inbox.reserve("0", 1, Client("a", "yet another user"))
    assert (refused.value.status, refused.value.code) == (429, "share_used")
    held.append(inbox.reserve("0", 1, Client("b")))
    for places in held[:6]:
        inbox.release(places)
    held = [*held[6:], inbox.reserve("0", 2, Client("a"))]  # the queue is short again
    for places in held:
        inbox.release(places)
    assert inbox.outstanding == 0


def test_the_time_of_a_request_begins_before_its_prompts_are_made(bench: Callable[..., Bench]) -> None:
    here = bench(request_timeout_s=0.1)
    places = here.worker.inbox.reserve("0", 1, Client("a"))
    time.sleep(0.11)
    here.worker.inbox.submit(places, [ask(1)], here.heard, wants_tokens=True)
    here.writers[0].allowed.release()
    until(lambda: here.heard.errors() == [(1, 504, "request_timeout")])


def test_a_sequence_waits_for_room_and_is_not_overtaken(bench: Callable[..., Bench]) -> None:
    here = bench(slots=4, room=40)
    here.submit(ask(1, tokens=9), ask(2, tokens=9))  # 10 tokens each with the prompt
    here.submit(ask(3, tokens=19), ask(4, tokens=1))  # three of 20 are too many
    until(lambda: here.writers[0].order == [1, 2])
    here.steps(9)
    until(lambda: here.writers[0].order == [1, 2, 3, 4])  # 1 and 2 have ended
    here.run_out()
    until(lambda: sorted(here.heard.ends()) == [1, 2, 3, 4])


def test_room_that_a_longer_sequence_left_is_given_back(bench: Callable[..., Bench]) -> None:
    here = bench(slots=4, room=40)
    here.writers[0].stale = 1000
    here.submit(ask(1, tokens=9), ask(2, tokens=9))
    until(lambda: here.writers[0].order == [1, 2])
    assert here.writers[0].stale == 0
    here.run_out()


def test_one_alone_runs_however_long_it_is(bench: Callable[..., Bench]) -> None:
    here = bench(room=5)
    here.submit(ask(1, tokens=9), ask(2, tokens=9))
    until(lambda: here.writers[0].order == [1])
    here.run_out()
    assert here.writers[0].order == [1, 2]
