"""What a server counts, for Prometheus. No text of any request is in it."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefine.generation.writer import Generated
from prefine.serving.tickets import Event, Ticket
from prefine.serving.worker import Worker

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class ServerMetrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "prefine_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self._sequences = Counter(
            "prefine_sequences", "Sequences by how they ended", ["model", "finish"], registry=self.registry
        )
        self._tokens = Counter(
            "prefine_tokens",
            "Tokens: of prompts, those of them that were computed before, and generated ones",
            ["model", "kind"],
            registry=self.registry,
        )
        self._first = self._histogram("prefine_first_token_seconds", "From a request to its first token")
        self._whole = self._histogram("prefine_sequence_seconds", "From a request to its end")

    def watch(self, worker: Worker) -> None:
        """Count what a worker does."""
        worker.on_end = self._ended
        for name in ("running", "waiting"):
            gauge = Gauge(f"prefine_sequences_{name}", f"Sequences that are {name}", registry=self.registry)
            gauge.set_function(lambda name=name: worker.state()[name])  # type: ignore[misc]

    def request(self, route: str, status: int) -> None:
        """Count a response."""
        self._requests.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, ["model"], buckets=_SECONDS, registry=self.registry)

    def _ended(self, ticket: Ticket, event: Event) -> None:
        model = ticket.model
        finish = event.finish if isinstance(event, Generated) else getattr(event, "code", None) or "cancelled"
        self._sequences.labels(model, finish).inc()
        if ticket.first_token is not None:
            self._first.labels(model).observe(ticket.first_token - ticket.submitted)
        self._whole.labels(model).observe(time.monotonic() - ticket.submitted)
        if isinstance(event, Generated):
            for kind, count in (
                ("prompt", len(ticket.request.prompt)),
                ("cached", event.cached_tokens),
                ("generated", len(event.tokens)),
            ):
                self._tokens.labels(model, kind).inc(count)


class CountRequests:
    """ASGI middleware that counts responses by route and status."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(
                    scope.get("route"), "path", "none"
                )  # of a path that is no route there may be any number
                self._metrics.request(route, message["status"])
            await send(message)

        await self._app(scope, receive, counting)
