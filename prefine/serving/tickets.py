"""What the worker and its callers exchange: a ticket for each sequence, and what happens to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prefine.generation.writer import Generated, NewToken, Request
from prefine.serving.fair_queue import Client
from prefine.web.errors import ApiError

Event = NewToken | Generated | ApiError
"""A token, or the end of a sequence: what was generated, or why it failed."""


@dataclass(eq=False)
class Ticket:
    """A sequence that was asked for.

    Attributes:
        model: the id of the model that generates it.
        request: what is generated.
        client: whose turn it takes in the queue.
        listener: called with every event, the last of which is no NewToken.
        wants_tokens: whether the listener is to hear of every token.
        deadline: of time.monotonic(); then it fails.
        index: of the choice in its request.
        number: the writer's; None while it waits.
        begun, first_token: when it got a slot and its first token.
        cancelled: whether nobody waits for it any more.
        ended: whether the last event is on its way.
    """

    model: str
    request: Request
    client: Client
    listener: Callable[[Ticket, Event], None]
    wants_tokens: bool
    deadline: float
    index: int = 0
    submitted: float = field(default_factory=time.monotonic)
    number: int | None = None
    begun: float | None = None
    first_token: float | None = None
    cancelled: bool = False
    ended: bool = False

    @property
    def most_tokens(self) -> int:
        """The longest that its sequence can become, prompt included."""
        return len(self.request.prompt) + self.request.sampling.max_new_tokens


def overloaded(waiting: int, retry_after_s: int) -> ApiError:
    """429: the queue is full."""
    return ApiError(
        429,
        f"{waiting} wait already, which is as many as this server lets wait; try again in {retry_after_s} s",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(retry_after_s)},
    )


def too_many_of_one(own: int, share: int, retry_after_s: int) -> ApiError:
    """429: others ask as well, and one address has its share."""
    return ApiError(
        429,
        f"others ask as well, and {own} answers to you are not done; your share of a queue of this length is {share}; "
        f"try again in {retry_after_s} s",
        kind="rate_limit_error",
        code="share_used",
        headers={"Retry-After": str(retry_after_s)},
    )


def timed_out(timeout_s: float) -> ApiError:
    """504: a request took too long."""
    return ApiError(
        504,
        f"the request took longer than {timeout_s:g} s; ask for fewer tokens, or try again later",
        kind="timeout_error",
        code="request_timeout",
    )


def shutting_down() -> ApiError:
    """503: the server takes no more."""
    return ApiError(
        503,
        "the server is shutting down",
        kind="service_unavailable_error",
        code="shutting_down",
        headers={"Retry-After": "10"},
    )


def engine_failed(error: BaseException) -> ApiError:
    """500: generation failed. What a library says is for the log; prefine's own errors are for the client, too."""
    from prefine.errors import PrefineError

    said = error.lines[0] if isinstance(error, PrefineError) else f"{type(error).__name__}; the server's log says more"
    return ApiError(500, f"generation failed: {said}", kind="server_error", code="engine_error")
