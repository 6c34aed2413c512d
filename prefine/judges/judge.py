"""What a judge is: something that says which of two answers to a conversation is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

Preferred = Literal["first", "second", "tie"]


class NoVerdictError(Exception):
    """A judge gave no verdict on one pair. Never reaches the user: pairs are counted by `reason`.

    Args:
        is_refusal: whether it refused the request for what this holds.
    """

    def __init__(self, reason: str, *, is_refusal: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_refusal = is_refusal


class Judge(Protocol):
    """Compares two answers. Threads may call `prefer` at the same time."""

    @property
    def name(self) -> str:
        """The judge in reports, and the key of its verdicts in answers.jsonl."""
        ...

    def prefer(self, prompt: Sequence[Mapping[str, Any]], first: str, second: str, reference: str = "") -> Preferred:
        """Which answer is better, in this order of the two.

        Args:
            prompt: the turns, with role and content.
            first, second: the answers.
            reference: a known good answer; "" if there is none.

        Raises:
            NoVerdictError: what the judge replied is no verdict.
            EndpointError: the judge could not be asked.
        """
        ...

    def stop(self) -> None:
        """Make calls that wait for another attempt, and later calls, fail at once."""
        ...

    def spent(self) -> dict[str, float]:
        """What the verdicts so far cost: requests, prompt_tokens, completion_tokens, cost."""
        ...
