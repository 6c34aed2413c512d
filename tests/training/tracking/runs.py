"""Short runs to track, and a guard that refuses every connection but those to this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefine.runs.directory import read_metrics

THREE_STEPS = {"training.max_steps": 3, "report.samples": 2, "report.max_new_tokens": 8}
# So short that a whole run of reinforcement learning takes about a second.
TWO_UPDATES: dict[str, Any] = {
    **{"training.max_steps": 2, "training.sample_every_steps": 1, "training.evaluate_every_steps": 1},
    **{"report.samples": 2, "report.max_new_tokens": 4},
}


def metrics_of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == kind]


_HERE = ("127.0.0.1", "::1", "localhost")
_seen: list[str] | None = None


def _watch(event: str, given: tuple[Any, ...]) -> None:
    if _seen is None or event not in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        return
    place = given[0] if event == "socket.getaddrinfo" else given[1]
    host = place[0] if isinstance(place, tuple) else place
    if isinstance(place, tuple | str) and host not in _HERE and not str(host).startswith("/"):
        _seen.append(f"{event} {place}")
        raise OSError(f"no connection to {place} is allowed")


sys.addaudithook(_watch)  # sees what C code does with Python's sockets, too, and cannot be removed


@contextmanager
def only_this_machine() -> Iterator[list[str]]:
    """Within it, every attempt to reach another machine fails and is listed. For this process, not its children."""
    global _seen
    _seen = attempts = []
    try:
        yield attempts
    finally:
        _seen = None
