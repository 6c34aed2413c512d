"""How much a server takes on: of every request, and of all of them together."""

from __future__ import annotations

from dataclasses import dataclass

MOST_CHOICES = 128
"""OpenAI's own limit of `n`."""


@dataclass(frozen=True)
class Limits:
    """A server's limits.

    Attributes:
        slots: sequences generated at once by each model.
        max_queue: sequences that may wait for a slot; further requests are refused with 429.
        max_tokens: the longest answer, in tokens.
        request_timeout_s: a request that takes longer, waiting included, ends with an error.
        shutdown_timeout_s: so long running requests may go on after the server was asked to stop.
        prefix_tokens: room for the keys of earlier prompts, in tokens of each model; 0 keeps none.
        prefill_tokens: prompt tokens computed in one step, at most, so that a long prompt does not stall others.
        context: the longest sequence, prompt and answer, in tokens; None: the model's own, where the memory holds it.
    """

    slots: int = 32
    max_queue: int = 256
    max_tokens: int = 4096
    request_timeout_s: float = 600.0
    shutdown_timeout_s: float = 30.0
    prefix_tokens: int = 16_384
    prefill_tokens: int = 512
    context: int | None = None
