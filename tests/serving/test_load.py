"""Many clients, most of them ill-behaved: nothing is left of them afterwards, and /health answers throughout."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.live import make_service, running, until

CLIENTS = 64
SECONDS = 15.0
LARGE = 64 * 1024**2
LEAKED_BYTES = 48 * 1024**2


def serve(folder: Path, pipe: Connection) -> None:
    """In a process of its own: a server until the other end says so."""
    with running(make_service([folder], slots=8, max_queue=200, max_tokens=400)) as live:
        pipe.send(live.url)
        pipe.recv()


@pytest.fixture
def process(tiny_model: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server's address and its process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=serve, args=(tiny_model, there))
    child.start()
    assert here.poll(120)
    assert child.pid is not None
    yield here.recv(), psutil.Process(child.pid)
    here.send("end")
    child.join(60)
    assert child.exitcode == 0


class Clients:
    """What each kind of client does once; statuses are counted."""

    def __init__(self, url: str) -> None:
        self._host, port = url.removeprefix("http://").split(":")
        self._port = int(port)
        self.statuses: dict[str, int] = {}

    async def answered(self, draw: random.Random) -> None:
        """Reads its whole answer."""
        reader, writer = await self._asked(draw, stream=draw.random() < 0.5, tokens=draw.randrange(1, 40))
        head = await reader.readline()
        self._count(head)
        await reader.read()
        writer.close()

    async def leaves(self, draw: random.Random) -> None:
        """Leaves in the middle of a stream, or before its answer."""
        reader, writer = await self._asked(draw, stream=draw.random() < 0.7, tokens=390)
        await asyncio.wait([asyncio.ensure_future(reader.read(300))], timeout=draw.random() * 0.5)
        writer.transport.abort()

    async def reads_slowly(self, draw: random.Random) -> None:
        """Takes a few bytes now and then."""
        reader, writer = await self._asked(draw, stream=True, tokens=100)
        for _ in range(10):
            await reader.read(50)
            await asyncio.sleep(0.1)
        writer.transport.abort()

    async def sends_half(self, draw: random.Random) -> None:
        """Sends half of a request, waits, and leaves."""
        _, writer = await asyncio.open_connection(self._host, self._port)
        raw = self._head(1000) + b'{"messages": [{"role"'
        writer.write(raw[: draw.randrange(len(raw))])
        await asyncio.sleep(draw.random())
        writer.transport.abort()

    async def sends_too_much(self, draw: random.Random) -> None:
        """Sends 64 MiB, whatever it is told."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(self._head(LARGE))
            for _ in range(LARGE // 65_536):
                writer.write(b"x" * 65_536)
                await writer.drain()
        except OSError:
            pass
        else:
            self._count(await reader.readline())
        writer.transport.abort()

    async def sends_nonsense(self, draw: random.Random) -> None:
        """Sends what is no JSON, or no HTTP."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(draw.choice([self._head(5) + b"{{{{{", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", self._head(0)]))
        self._count(await reader.readline())
        writer.close()

    async def _asked(self, draw: random.Random, *, stream: bool, tokens: int) -> Any:
        body = json.dumps(
            {
                "messages": [{"role": "user", "content": "x" * draw.randrange(1, 60)}],
                "max_tokens": tokens,
                "stream": stream,
                "logit_bias": {"257": -100},
            }
        ).encode()
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(self._head(len(body)) + body)
        return reader, writer

    def _head(self, length: int) -> bytes:
        return (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {length}\r\n\r\n"
        ).encode()

    def _count(self, line: bytes) -> None:
        status = line.split(b" ")[1].decode() if line.count(b" ") >= 2 else "none"
        self.statuses[status] = self.statuses.get(status, 0) + 1


async def crowd(url: str, seconds: float) -> tuple[Clients, list[float]]:
    """Clients of all kinds at once for so long; how long /health took, each time."""
    clients = Clients(url)
    end = time.monotonic() + seconds
    kinds: list[Callable[[random.Random], Awaitable[None]]] = [
        *[clients.answered] * 4,
        *[clients.leaves] * 3,
        *(clients.reads_slowly, clients.sends_half, clients.sends_nonsense),
    ]

    async def client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            act = clients.sends_too_much if number == 0 else draw.choice(kinds)
            await act(draw)
            await asyncio.sleep(0.2 if number == 0 else 0)

    async def look() -> list[float]:
        waits = []
        async with httpx.AsyncClient(timeout=30) as asking:
            while time.monotonic() < end:
                begun = time.monotonic()
                assert (await asking.get(f"{url}/health")).status_code == 200
                waits.append(time.monotonic() - begun)
                await asyncio.sleep(0.05)
        return waits

    waits, *_ = await asyncio.gather(look(), *(client(number) for number in range(CLIENTS)))
    return clients, waits


@pytest.mark.slow
def test_nothing_is_left_of_a_crowd(process: tuple[str, psutil.Process]) -> None:
    url, server = process
    asyncio.run(crowd(url, 3.0))  # what is made once: threads, caches, the allocator's pools

    def idle() -> bool:
        state = httpx.get(f"{url}/health").json()
        return state["running"] == state["waiting"] == 0

    until(idle)
    until(lambda: len(server.net_connections()) <= 2)
    threads, files, memory = server.num_threads(), server.num_fds(), server.memory_info().rss
    clients, waits = asyncio.run(crowd(url, SECONDS))
    until(idle)
    until(lambda: server.num_fds() <= files + 2)
    assert server.num_threads() <= threads
    assert server.memory_info().rss - memory < LEAKED_BYTES
    assert clients.statuses.keys() <= {"200", "400", "413", "415", "429", "none"}
    assert clients.statuses["200"] > CLIENTS
    # This machine may do other things as well, so that single ones may take longer.
    assert sorted(waits)[int(0.95 * len(waits))] < 0.1, sorted(waits)[-10:]
    answer = httpx.post(f"{url}/generate", json={"prompt": "x", "max_tokens": 2})
    assert answer.status_code == 200
    print(
        clients.statuses, f"{len(waits)} looks, longest {max(waits):.3f} s, {server.memory_info().rss - memory:,} bytes"
    )
