"""An endpoint on this machine that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prefine.comparisons.result import AnswerOf, AnswerRow
from prefine.judges.endpoint import Endpoint


@dataclass
class Answer:
    """What the endpoint sends: `text` as a chat completion's, or `body` as it is."""

    text: str = '{"verdict": "A"}'
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    finish: str = "stop"
    tokens: tuple[int, int] | None = (100, 10)

    def bytes(self) -> bytes:
        if self.body is not None:
            return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        usage = (
            {} if self.tokens is None else dict(zip(("prompt_tokens", "completion_tokens"), self.tokens, strict=True))
        )
        choice = {"message": {"role": "assistant", "content": self.text}, "finish_reason": self.finish}
        return json.dumps({"choices": [choice], **({"usage": usage} if usage else {})}).encode()


def refusal(status: int, message: str = "", code: str = "", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, headers=named, body={"error": {"message": message, "code": code}})


@dataclass
class Fake:
    """A running endpoint.

    Attributes:
        asked: the body of each request, in order. headers: its headers.
    """

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    now: int = 0

    def endpoint(self, **options: Any) -> Endpoint:
        """This endpoint, without long waits."""
        return Endpoint(self.url, **{"first_wait_s": 0.001, "timeout_s": 5.0, "attempts": 4, **options})


@contextmanager
def running(answer: Callable[[dict[str, Any], int], Answer]) -> Iterator[Fake]:
    """An endpoint whose replies are `answer(body, number of the request from 1)`."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                fake.asked.append(body)
                fake.headers.append({name.lower(): value for name, value in self.headers.items()})
                number = len(fake.asked)
                fake.now += 1
                fake.most_at_once = max(fake.most_at_once, fake.now)
            try:
                found = answer(body, number)
            finally:
                with lock:
                    fake.now -= 1
            data = found.bytes()
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            """A client that was killed or has given up."""

    with Server(("127.0.0.1", 0), Handler) as server:
        fake = Fake(f"http://127.0.0.1:{server.server_address[1]}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


def row(number: int, candidate: str, baseline: str) -> AnswerRow:
    """A prompt with two answers, a token for each word."""
    answers = [AnswerOf(text=text, tokens=len(text.split()), ended=True) for text in (candidate, baseline)]
    prompt = [{"role": "user", "content": f"question {number}"}]
    return AnswerRow(id=str(number), prompt=prompt, candidate=answers[0], baseline=answers[1])


def rows(count: int) -> list[AnswerRow]:
    return [row(number, f"good answer {number}", f"bad answer {number}") for number in range(count)]


def answers_in(body: Mapping[str, Any]) -> tuple[str, str]:
    """The two answers that a request holds, in its order."""
    text = body["messages"][-1]["content"]
    parts = re.split(r"^===== [0-9a-f]{12} .*\n", text, flags=re.MULTILINE)
    return parts[2].rstrip("\n"), parts[3].rstrip("\n")


def prefers_good(body: dict[str, Any], number: int) -> Answer:
    """A judge without a fault."""
    first, second = answers_in(body)
    good = ["good" in first, "good" in second]
    return Answer('{"verdict": "tie"}' if good[0] == good[1] else '{"verdict": "%s"}' % ("A" if good[0] else "B"))
