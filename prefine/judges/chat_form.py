"""Requests in the form that an endpoint takes: not every one takes every field of OpenAI's API."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefine.judges.cache import Reply
from prefine.judges.endpoint import BadRequestError, Endpoint

# After so many requests that were refused in all forms with one message, and none that was not, all would be.
_REFUSED_ALIKE = 3
_CONTEXT_EXCEEDED = "context_length_exceeded"


@dataclass(frozen=True, slots=True)
class ChatForm:
    """What of a request an endpoint takes; found out by its refusals, so that it decides no key of a cache.

    Attributes:
        optional: fields that may be left out if a refusal names them.
        last: a field that is left out if nothing else explains a refusal; "" for none.
        left_out: fields that are.
        tokens: the field for the longest reply; newer models of OpenAI take only max_completion_tokens.
        proved: whether a request in this form has succeeded.
    """

    optional: tuple[str, ...]
    last: str = ""
    left_out: frozenset[str] = frozenset()
    tokens: str = "max_tokens"
    proved: bool = False

    def without(self, refused: str) -> ChatForm | None:
        """The form to try after a refusal in these words; None if the form is not the reason."""
        if self.proved:
            return None
        if "max_completion_tokens" in refused and self.tokens == "max_tokens":
            return replace(self, tokens="max_completion_tokens")
        for name in self.optional:
            if name in refused and name not in self.left_out:
                return replace(self, left_out=self.left_out | {name})
        if self.last and self.last not in self.left_out:
            return replace(self, left_out=self.left_out | {self.last})
        return None

    def body(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The request's body in this form."""
        body = {name: value for name, value in asked.items() if name not in self.left_out}
        body[self.tokens] = body.pop("max_tokens")
        return body


class FormedChat:
    """An endpoint that is asked in the fullest form that it takes. Threads may use it at the same time.

    Args:
        endpoint: that is asked.
        form: the fullest one.
    """

    def __init__(self, endpoint: Endpoint, form: ChatForm) -> None:
        self._endpoint = endpoint
        self._form = form
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()

    def ask(self, asked: Mapping[str, Any]) -> Reply:
        """The endpoint's reply.

        Args:
            asked: the body in the fullest form; it has max_tokens.

        Raises:
            BadRequestError: the endpoint refuses this request in every form.
            EndpointError: it cannot be asked, or refuses every request.
        """
        form: ChatForm | None = self._form
        while form is not None:
            try:
                reply = self._endpoint.chat(form.body(asked))
            except BadRequestError as error:
                refused, form = error, form.without(error.whole)
                continue
            self._form = replace(form, proved=True)
            return reply
        if not is_too_long(refused):
            self._require_hope(refused)
        raise refused

    def _require_hope(self, refused: BadRequestError) -> None:
        """End the work if every request is refused alike: some endpoints refuse an unknown model so."""
        with self._lock:
            self._refused[refused.message] += 1
            is_hopeless = not self._form.proved and self._refused[refused.message] >= _REFUSED_ALIKE
        if is_hopeless:
            raise self._endpoint.ending(
                f"refuses every request with status {refused.status}: {refused.message or 'without a reason'}",
                "Check the model's name and the URL; the same command then continues.",
            )


def is_too_long(refused: BadRequestError) -> bool:
    """Whether a request is refused for its length."""
    return refused.code == _CONTEXT_EXCEEDED or refused.status == 413
