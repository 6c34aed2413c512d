"""The process: its address, its connections, and its end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from prefine.serving.app import create_app
from prefine.serving.server import run_server
from prefine.web import server
from prefine.web.policy import access_policy
from prefine.web.server import BoundedConnection, ServerError, address_of, listening_socket
from tests.serving.live import Live, make_service, until

LONG = {"prompt": "hi", "max_tokens": 390, "logit_bias": {"257": -100}}


def test_a_port_that_is_taken_is_refused_with_another_one() -> None:
    with listening_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ServerError) as refused:
            listening_socket("127.0.0.1", port)
    assert refused.value.field == "--port"
    assert f"127.0.0.1:{port}" in refused.value.problem
    assert f"--port {port + 1}" in refused.value.remedy


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ServerError, match=host):
        listening_socket(host, 0)


def test_the_address_that_is_shown_is_one_that_can_be_opened() -> None:
    with listening_socket("0.0.0.0", 0) as sock:
        assert address_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"


def served(folder: Path, during: Callable[[str, Any], None], **limits: Any) -> None:
    """Run a server on this thread, and `during` on another one, which ends it by a signal."""
    service = make_service([folder], max_tokens=400, **limits)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            during(address_of(sock), service)
        except BaseException as error:  # noqa: BLE001 - it is raised below
            errors.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=work)
    with listening_socket("127.0.0.1", 0) as sock:
        run_server(create_app(service, access_policy("127.0.0.1", None)), service, sock, thread.start)
    thread.join()
    assert not service.worker._thread.is_alive()
    if errors:
        raise errors[0]


def test_what_runs_at_the_end_is_finished_and_nothing_new_begins(tiny_model: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    found: list[httpx.Response] = []

    def during(url: str, service: Any) -> None:
        asking = threading.Thread(
            target=lambda: found.append(httpx.post(f"{url}/v1/completions", json=LONG, timeout=30))
        )
        asking.start()
        until(lambda: service.worker.state()["running"] == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: service.worker.inbox.stopping)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        asking.join()

    served(tiny_model, during)
    assert found[0].status_code == 200
    assert found[0].json()["usage"]["completion_tokens"] == 390
    assert {number: signal.getsignal(number) for number in before} == before


def test_what_does_not_end_in_time_gets_an_error(tiny_model: Path) -> None:
    found: list[httpx.Response] = []

    def during(url: str, service: Any) -> None:
        slow_down(service, 0.05)
        body = {**LONG, "stream": True}
        asking = threading.Thread(
            target=lambda: found.append(httpx.post(f"{url}/v1/completions", json=body, timeout=30))
        )
        asking.start()
        until(lambda: service.worker.state()["running"] == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        asking.join()

    begun = time.monotonic()
    served(tiny_model, during, shutdown_timeout_s=0.3)
    assert time.monotonic() - begun < 15
    assert '"code":"shutting_down"' in found[0].text.strip().rsplit("\n\n", 1)[-1]


def slow_down(service: Any, seconds: float) -> None:
    """Make every step take so long."""
    (lane,) = service.worker._lanes.values()
    step = lane._writer.step

    def slowly() -> Any:
        time.sleep(seconds)
        return step()

    lane._writer.step = slowly


def test_connections_that_ask_for_nothing_are_closed(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_IDLE_S", 0.1)
    host, port = live.url.removeprefix("http://").split(":")
    opened = [socket.create_connection((host, int(port)), timeout=10) for _ in range(3)]
    opened[1].sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")  # and no more
    for connection in opened:
        with connection, suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_a_connection_with_a_request_between_two_looks_is_not_idle() -> None:
    class Transport:
        unread = 0
        aborted = False

        def get_write_buffer_size(self) -> int:
            return self.unread

        def abort(self) -> None:
            self.aborted = True

    def cut(looks: list[tuple[Any, int]]) -> list[bool]:
        connection: Any = object.__new__(BoundedConnection)
        connection.loop = SimpleNamespace(call_later=lambda *_: None)
        connection.transport = transport = Transport()
        connection._seen, connection._unchanged = None, 0
        seen = []
        for cycle, unread in looks:
            connection.cycle, transport.unread = cycle, unread
            connection._look_again()
            seen.append(transport.aborted)
        return seen

    ended, other, running = (SimpleNamespace(response_complete=done, name=n) for n, done in enumerate((1, 1, 0)))
    assert cut([(ended, 0), (other, 0), (ended, 0)]) == [False] * 3
    assert cut([(running, 0)] * 9) == [False] * 9
    assert cut([(None, 0), (None, 0)]) == cut([(ended, 0), (ended, 0)]) == [False, True]
    assert cut([(ended, size) for size in (9, 8, 7, 6, 5, 4, 3, 2, 1)]) == [False] * 9  # it reads slowly
    assert cut([(ended, 9)] * 5) == [False] * 4 + [True]
