"""python -m benchmarks.annotation_load: 20 annotators and 50,000 items, with HTTP and without.

The times of next_task and vote by function calls, then of the page and of a vote at `prefine annotate open` in a
process of its own, whose people think for an exponentially distributed time before each request. No torch.
"""

from __future__ import annotations

import argparse
import html.parser
import http.cookiejar
import json
import random
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prefine.annotation.page.access import link_path
from prefine.annotation.project import Project
from prefine.annotation.records import TIE, AnnotationItem, Ballot, JudgedAnswer, ProjectSettings, PromptTurn
from prefine.web.sessions import TOKEN_HEADER

PEOPLE, ITEMS = 20, 50_000
_TEXT = "A sentence of an answer that somebody may read. " * 20


def items() -> Iterator[AnnotationItem]:
    for number in range(ITEMS):
        answers = JudgedAnswer("", f"{number} {_TEXT}", "sft"), JudgedAnswer("", f"{_TEXT} {number}", "dpo")
        yield AnnotationItem(0, "", (PromptTurn("user", f"Question {number}?"),), f"c{number % 7}", answers)


def timed(times: list[float], work: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    found = work()
    times.append(1000 * (time.perf_counter() - begun))
    return found


class Screen(html.parser.HTMLParser):
    """What a vote needs of a screen: the form's token, the lease and the answers' ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.form_token = self.lease = ""
        self.answers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        if said.get("name") == "form-token":
            self.form_token = said["content"]
        self.lease = said.get("data-token", self.lease)
        if said.get("class") == "answer":
            self.answers.append(said["data-id"])


class Person:
    """An annotator with a browser's cookies."""

    def __init__(self, address: str, link: str) -> None:
        self._address = address
        self._client = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        self._post("/api/link", {"token": link.partition("#")[2]}, "")

    def judge(self, votes: int, think_s: float) -> tuple[list[float], list[float]]:
        """Milliseconds of each page and of each vote."""
        chance = random.Random()  # noqa: S311 - no secret
        pages: list[float] = []
        voted: list[float] = []
        for _ in range(votes):
            time.sleep(chance.expovariate(1 / think_s))
            screen = Screen(timed(pages, self._page))
            time.sleep(chance.expovariate(1 / think_s))
            body = {"token": screen.lease, "key": secrets.token_hex(8), "choice": chance.choice([*screen.answers, TIE])}
            timed(voted, lambda body=body, screen=screen: self._post("/api/vote", body, screen.form_token))
        return pages, voted

    def _page(self) -> str:
        with self._client.open(self._address) as response:
            found: str = response.read().decode()
        return found

    def _post(self, path: str, body: dict[str, str], form_token: str) -> None:
        headers = {"content-type": "application/json", "origin": self._address, TOKEN_HEADER: form_token}
        request = urllib.request.Request(self._address + path, json.dumps(body).encode(), headers)  # noqa: S310 - http
        with self._client.open(request) as answer:
            answer.read()


def by_calls(project: Project, names: list[str], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call."""
    found: dict[str, list[float]] = {"next_task": [], "vote": []}
    for _ in range(rounds):
        for name in names:
            task = timed(found["next_task"], lambda name=name: project.next_task(name))
            ballot = Ballot(secrets.token_hex(8), task.shown[0])
            timed(found["vote"], lambda name=name, task=task, ballot=ballot: project.vote(name, task.token, ballot))
    return found


def by_http(path: Path, links: list[str], votes: int, think_s: float) -> dict[str, list[float]]:
    """Milliseconds of each request."""
    command = [sys.executable, "-m", "prefine", "annotate", "open", str(path), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        address = server.stderr.readline().partition(" at ")[2].split()[0]
        with ThreadPoolExecutor(len(links)) as pool:
            people = list(pool.map(lambda link: Person(address, link), links))
            found = list(pool.map(lambda person: person.judge(votes, think_s), people))
        server.terminate()
    return {
        "page": [ms for pages, _ in found for ms in pages],
        "vote, HTTP": [ms for _, voted in found for ms in voted],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--votes", type=int, default=20, help="of each person over HTTP")
    parser.add_argument("--think-s", type=float, default=1.0)
    given = parser.parse_args()
    names = [f"person {number}" for number in range(PEOPLE)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "project.db"
        with Project.create(path, ProjectSettings(overlap=3, repeats=0.1)) as project:
            project.add_items(items())
            links = [link_path(project.annotator(name)) for name in names]
            times = by_calls(project, names, 20)
        times |= by_http(path, links, given.votes, given.think_s)
    table = Table("ms", "requests", "median", "95th percentile", "longest", title=f"{PEOPLE} people, {ITEMS:,} items")
    for what, found in times.items():
        ranked = sorted(found)
        figures = (ranked[len(ranked) // 2], ranked[int(0.95 * len(ranked))], ranked[-1])
        table.add_row(what, str(len(ranked)), *(f"{each:.1f}" for each in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
