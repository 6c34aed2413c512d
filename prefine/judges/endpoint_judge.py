"""A judge that is a language model behind an endpoint."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefine.judges.cache import Reply, ReplyCache, key_of
from prefine.judges.endpoint import BadRequestError, Endpoint
from prefine.judges.judge import NoVerdictError, Preferred
from prefine.judges.replies import VERDICT_FORM, verdict_in
from prefine.judges.template import JudgeTemplate

# Requests for one verdict, the first included.
_REPLIES = 3
_REMINDER = (
    "\n\nA reply with anything but a verdict cannot be used. Reply with one letter and nothing else: A, B, or C if"
    " neither is better. (Attempt {attempt}.)"
)
_CONTEXT_EXCEEDED = "context_length_exceeded"
_PER_PRICE = 1e6
# After so many requests that were refused in all forms with one message, and none that was not, all would be.
_REFUSED_ALIKE = 3


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How a judge is asked.

    Attributes:
        model: its name at the endpoint.
        max_tokens: of a reply, with the reasoning of models that reason.
        temperature: 0 for the likeliest reply.
        price_in, price_out: of a million prompt tokens and completion tokens, in any currency; None: cost unknown.
    """

    model: str
    max_tokens: int = 1024
    temperature: float = 0.0
    price_in: float | None = None
    price_out: float | None = None


@dataclass(frozen=True, slots=True)
class _Form:
    """What of a request this endpoint takes; found out by its refusals, so that it decides no key of the cache.

    Attributes:
        schema: JSON schemas for the reply. temperature: temperatures other than its own.
        tokens: the field for the longest reply; newer models of OpenAI take only max_completion_tokens.
        proved: whether a request in this form has succeeded.
    """

    schema: bool = True
    temperature: bool = True
    tokens: str = "max_tokens"
    proved: bool = False

    def without(self, refused: str) -> _Form | None:
        """The form to try after a refusal in these words; None if the form is not the reason."""
        if self.proved:
            return None
        if "max_completion_tokens" in refused and self.tokens == "max_tokens":
            return replace(self, tokens="max_completion_tokens")
        if "temperature" in refused and self.temperature:
            return replace(self, temperature=False)
        return replace(self, schema=False) if self.schema else None

    def body(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The request's body in this form."""
        body = dict(asked)
        body[self.tokens] = body.pop("max_tokens")
        if not self.temperature:
            del body["temperature"]
        return body | ({"response_format": VERDICT_FORM} if self.schema else {})


class EndpointJudge:
    """See Judge. Replies come from the cache where it has them; others are put there before they are read.

    Args:
        endpoint: of the model.
        settings: how it is asked.
        cache: of its replies.
        template: the text that asks.
    """

    def __init__(
        self, endpoint: Endpoint, settings: JudgeSettings, cache: ReplyCache, template: JudgeTemplate | None = None
    ) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._cache = cache
        self._template = template or JudgeTemplate()
        self._form = _Form()
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._spent = {
            "requests": 0,
            "requests_now": 0,
            "requests_without_usage": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
        }

    @property
    def name(self) -> str:
        """The model's name, with the template's if it is not the one of the package."""
        return f"{self._settings.model} ({self._template.name})" if self._template.name else self._settings.model

    def prefer(self, prompt: Sequence[Mapping[str, Any]], first: str, second: str, reference: str = "") -> Preferred:
        """See Judge."""
        text = self._template.fill(prompt, first, second, reference)
        reason = ""
        for attempt in range(1, _REPLIES + 1):
            reply = self._reply(text + (_REMINDER.format(attempt=attempt) if attempt > 1 else ""))
            found = verdict_in(reply.text) if reply.finish_reason != "length" else None
            if found is not None:
                return found
            reason = self._why_none(reply)
        raise NoVerdictError(reason)

    def stop(self) -> None:
        """See Judge."""
        self._endpoint.stop()

    def spent(self) -> dict[str, float]:
        """Requests, of which `requests_now` were not in the cache, and `requests_without_usage` say no tokens; tokens;
        and the cost, if both prices are known.
        """
        with self._lock:
            spent: dict[str, float] = dict(self._spent)
        price_in, price_out = self._settings.price_in, self._settings.price_out
        if price_in is not None and price_out is not None:
            cost = spent["prompt_tokens"] * price_in + spent["completion_tokens"] * price_out
            spent["cost"] = cost / _PER_PRICE
        return spent

    def _reply(self, text: str) -> Reply:
        asked = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": self._settings.temperature,
            "max_tokens": self._settings.max_tokens,
        }
        key = key_of(self._endpoint.url, asked)
        reply = self._cache.get(key)
        if reply is None:
            reply = self._ask(asked)
            self._cache.put(key, self._settings.model, reply)
            self._count(reply, now=1)
        else:
            self._count(reply, now=0)
        return reply

    def _ask(self, asked: Mapping[str, Any]) -> Reply:
        """The endpoint's reply, in the fullest form that it takes."""
        form: _Form | None = self._form
        while form is not None:
            try:
                reply = self._endpoint.chat(form.body(asked))
            except BadRequestError as error:
                refused, form = error, form.without(error.whole)
                continue
            self._form = replace(form, proved=True)
            return reply
        if refused.code == _CONTEXT_EXCEEDED or refused.status == 413:
            raise NoVerdictError("conversation and answers are too long for the judge")
        with self._lock:
            self._refused[refused.message] += 1
            is_hopeless = not self._form.proved and self._refused[refused.message] >= _REFUSED_ALIKE
        if is_hopeless:  # some endpoints refuse an unknown model so
            raise self._endpoint.ending(
                f"refuses every request with status {refused.status}: {refused.message or 'without a reason'}",
                "Check the model's name and the URL; the same command then continues.",
            )
        raise NoVerdictError(
            f"the judge refused the request (status {refused.status}: {refused.message or 'no reason'})"
        )

    def _count(self, reply: Reply, now: int) -> None:
        with self._lock:
            self._spent["requests"] += 1
            self._spent["requests_now"] += now
            self._spent["requests_without_usage"] += reply.prompt_tokens is None or reply.completion_tokens is None
            self._spent["prompt_tokens"] += reply.prompt_tokens or 0
            self._spent["completion_tokens"] += reply.completion_tokens or 0

    def _why_none(self, reply: Reply) -> str:
        if reply.finish_reason == "length":
            return f"the reply was cut at {self._settings.max_tokens} tokens"
        if reply.finish_reason == "content_filter":
            return "the endpoint's content filter held the reply back"
        return "the reply is not a verdict" if reply.text.strip() else "the reply is blank"
