"""A judge that is a language model behind an endpoint."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefine.judges.cache import Reply, ReplyCache, key_of
from prefine.judges.chat_form import ChatForm, FormedChat, is_too_long
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
_PER_PRICE = 1e6


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
        self._chat = FormedChat(endpoint, ChatForm(optional=("temperature",), last="response_format"))
        self._lock = threading.Lock()
        self._spent = {
            "requests": 0,
            "requests_now": 0,
            "requests_without_usage": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
        }

    @property
    def name(self) -> str:
        """See judge_name."""
        return judge_name(self._settings, self._template)

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
        try:
            return self._chat.ask({**asked, "response_format": VERDICT_FORM})
        except BadRequestError as refused:
            if is_too_long(refused):
                raise NoVerdictError("conversation and answers are too long for the judge", is_refusal=True) from None
            raise NoVerdictError(
                f"the judge refused the request (status {refused.status}: {refused.message or 'no reason'})",
                is_refusal=True,
            ) from None

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


def judge_name(settings: JudgeSettings, template: JudgeTemplate) -> str:
    """A judge in reports: its model, with the template's name if it is not the one of the package."""
    return f"{settings.model} ({template.name})" if template.name else settings.model
