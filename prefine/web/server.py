"""Runs the application: the socket, the connections and the signals of one process."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefine.errors import PrefineError

MOST_CONNECTIONS = 1024
# A connection on which nothing is asked for is closed after one to two of these.
_IDLE_S = 15.0
# What the kernel has sent and a client does not take is given up after so long.
_UNREAD_MS = 60_000
# The same for what the kernel has not taken, in looks at the connection.
_UNREAD_LOOKS = 4
# Beyond the time that running requests have, for their last words.
_LAST_WORDS_S = 5


class ServerError(PrefineError):
    """A server that cannot start."""


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes any free one.

    Raises:
        ServerError: the address is taken, or is not one of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(found[0], found[1])
    except OSError as error:
        raise ServerError(
            f"{host!r} is no address of this machine ({error.strerror or error})",
            "Listen on 127.0.0.1, or on 0.0.0.0 for all addresses.",
            field="--host",
        ) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        sock.bind(found[4])
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise ServerError(
            f"cannot listen on {host}:{port} ({error.strerror or error})",
            f"Choose another port, as in --port {port + 1 if 0 < port < 65535 else 8001}; or end what listens there.",
            field="--port",
        ) from None
    return sock


def address_for_others(sock: socket.socket, names: Sequence[str] = ()) -> str:
    """The URL under which other machines reach a bound socket, as far as this one knows; its own for a loopback one.

    Args:
        names: what people call this machine; the first one is taken. Without one, the address of the network card that
            leads outside, or the machine's name.
    """
    host, port = sock.getsockname()[:2]
    if ipaddress.ip_address(host).is_loopback:
        return address_of(sock)
    if names:
        return f"http://{names[0]}:{port}"
    if not ipaddress.ip_address(host).is_unspecified:
        return address_of(sock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; an address of documentation (RFC 5737)
            return f"http://{probe.getsockname()[0]}:{port}"
        except OSError:
            return f"http://{socket.gethostname()}:{port}"


def address_of(sock: socket.socket) -> str:
    """The URL of a bound socket, for this machine."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{host}:{port}"


def run_app(
    app: FastAPI,
    sock: socket.socket,
    ready: Callable[[], None],
    *,
    stopping: Callable[[], None] = lambda: None,
    timeout_s: float = 5.0,
) -> None:
    """Serve until SIGINT or SIGTERM. Then new requests are refused, and running ones have time to end.

    Args:
        ready: called when requests are answered.
        stopping: called when the server is to end.
        timeout_s: the time that running requests have then.
    """
    # It warns of every connection that does not speak HTTP; whoever scans the network could fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=BoundedConnection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=round(timeout_s) + _LAST_WORDS_S,
    )
    server = _Server(config, stopping, ready)
    server.run(sockets=[sock])


class BoundedConnection(H11Protocol):
    """A connection that does not stay open for a client that asks for nothing, or that reads nothing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._seen: Any = None
        self._unchanged = 0
        self._look = self.loop.call_later(_IDLE_S, self._look_again)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._look.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        """Two looks at a busy connection may both fall between requests; each request has a cycle of its own."""
        unread = self.transport.get_write_buffer_size()
        seen = (self.cycle, unread)
        answered = self.cycle is None or self.cycle.response_complete
        self._unchanged = self._unchanged + 1 if answered and seen == self._seen else 0
        if self._unchanged >= (_UNREAD_LOOKS if unread else 1):
            self.transport.abort()  # not close(), which waits for what is unread
            return
        self._seen = seen
        self._look = self.loop.call_later(_IDLE_S, self._look_again)


class _Server(uvicorn.Server):
    """uvicorn's server, which ends with this function's return and not with the signal that it got."""

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None], ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        handler: Any = self._on_signal
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.handle_exit(number, frame)
