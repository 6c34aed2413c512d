"""Eight people vote while the server is killed again and again: every acknowledged vote is stored, and none twice."""

from __future__ import annotations

import contextlib
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from prefine.annotation.page.access import link_path
from prefine.annotation.project import Project
from tests.annotation.page.http_annotator import HttpAnnotator
from tests.annotation.projects import project

PEOPLE, ITEMS, OVERLAP, KILLS = 8, 40, 3, 4
LIMIT_S = 120


class KilledServer:
    """`prefine annotate open` as a process, which is killed after some acknowledged votes and starts again at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self.kills = 0
        self._lock = threading.Lock()
        self._left = 0
        self._begin()

    def acknowledged(self) -> None:
        """Count a vote; now and then it is the last one of this process."""
        with self._lock:
            self._left -= 1
            if self._left <= 0 and self.kills < KILLS:
                self.kills += 1
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
                self._begin()

    def _begin(self) -> None:
        command = ["annotate", "open", str(self._path), "--port", str(self._port), "--no-browser"]
        self.process = subprocess.Popen([sys.executable, "-m", "prefine", *command], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        assert "is open at" in self.process.stderr.readline()
        self._left = random.Random(self.kills).randint(8, 20)


@contextlib.contextmanager
def killed_server(path: Path) -> Iterator[KilledServer]:
    server = KilledServer(path)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def person(server: KilledServer, link: str, over: threading.Event) -> dict[str, int]:
    """Vote until nothing is left; the acknowledged votes by their keys. What got no answer is sent again."""
    chance = random.Random(link)
    acknowledged: dict[str, int] = {}
    with HttpAnnotator(server.address, link) as client:
        pending: tuple[str, str, str] | None = None
        while not over.is_set():
            try:
                if pending is None:
                    screen = client.screen()
                    if screen is None:
                        break
                    choice = chance.choice([*screen.answers, "tie", "both_bad"])
                    pending = screen.token, secrets.token_hex(8), choice
                    if chance.random() < 0.1:
                        client.undo()
                        pending = None
                        continue
                answer = client.vote(*pending)
            except httpx.TransportError:
                over.wait(0.02)
                continue
            if answer.status_code == 200:
                acknowledged[pending[1]] = answer.json()["number"]
                server.acknowledged()
            else:
                assert answer.status_code == 409, answer.text  # not written, and somebody else has the item now
            pending = None
    return acknowledged


@pytest.mark.slow
def test_every_acknowledged_vote_outlives_the_killed_server(tmp_path: Path) -> None:
    names = [f"person-{number}" for number in range(PEOPLE)]
    path, over = tmp_path / "project.db", threading.Event()
    with project(path, ITEMS, *names, overlap=OVERLAP, repeats=0.2) as made:
        links = [link_path(made.annotator(name)) for name in names]
    limit = threading.Timer(LIMIT_S, over.set)
    limit.start()
    with killed_server(path) as server, ThreadPoolExecutor(PEOPLE) as pool:
        acknowledged = dict(zip(names, pool.map(lambda link: person(server, link, over), links), strict=True))
    assert not over.is_set(), f"not done after {LIMIT_S} s"
    limit.cancel()
    assert server.kills == KILLS
    with Project(path) as found:
        stored, current = list(found.votes(undone=True)), list(found.votes())
        progress = found.progress()
    for name in names:
        own = {each.ballot.key: each.number for each in stored if each.annotator == name}
        assert acknowledged[name].items() <= own.items()
    assert sum(map(len, acknowledged.values())) >= ITEMS * OVERLAP
    assert len({(each.annotator, each.ballot.key) for each in stored}) == len(stored)
    firsts = Counter((each.annotator, each.item) for each in current if not each.repeat)
    assert max(firsts.values()) == 1
    assert (progress.complete, progress.missing) == (ITEMS, 0)
