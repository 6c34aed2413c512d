"""A model behind an OpenAI-compatible endpoint: one request at a time to /chat/completions, until it is answered.

Requests that fail temporarily (no connection, no answer in time, 408, 409, 425, 429, 5xx) are sent again. The wait
before that doubles each time, with jitter, or is as long as the endpoint's Retry-After says.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit

import httpx2
import tenacity
from pydantic import BaseModel, ValidationError

from prefine import __version__
from prefine.errors import EndpointError, RecipeError
from prefine.json_reading import JsonError, parse_json
from prefine.judges.cache import Reply

KEY_VARIABLE = "PREFINE_JUDGE_KEY"
_TRY_AGAIN_STATUS = {408, 409, 425, 429}
_LONGEST_WAIT_S = 60.0
_LONGEST_RETRY_AFTER_S = 300.0
# After so many requests in a row that failed in all their attempts, the endpoint is taken to be down.
_FAILED_IN_A_ROW = 3
_LARGEST_REPLY_BYTES = 8 * 1024 * 1024
_LONGEST_QUOTE = 200
_CHECK_SERVER = "Check that the server runs and that the URL is right; the same command then continues."
_PATH = "/chat/completions"


@dataclass(frozen=True)
class Patience:
    """How endpoints are asked.

    Attributes:
        timeout_s: the longest time of one attempt.
        attempts: of one request.
        at_once: the most requests at a time.
    """

    timeout_s: float = 60.0
    attempts: int = 6
    at_once: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise RecipeError(f"{name} is {value}; it must be a number above 0", "Change it.", field=name)


class BadRequestError(EndpointError):
    """The endpoint refuses what this one request holds (400, 413, 422).

    Args:
        url: of the endpoint.
        status: of HTTP.
        message, code: the endpoint's.
        whole: the message before it was cut, for programs: it may name what is refused at its end.
    """

    def __init__(self, url: str, status: int, message: str, code: str, whole: str) -> None:
        super().__init__(
            f"{url} refuses a request with status {status}: {message or 'without a reason'}",
            "Change what it refuses, or use another endpoint.",
            may_pass=False,
        )
        self.status = status
        self.message = message
        self.code = code
        self.whole = whole


class _TryAgainError(Exception):
    """An attempt failed; another one may not.

    Args:
        reason: continues the sentence after the endpoint's name.
        after_s: seconds to wait, as the endpoint says; None if it does not.
    """

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after_s = after_s


class _Message(BaseModel):
    content: str | list[Any] | None = None


class _Choice(BaseModel):
    message: _Message | None = None
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: Any = None
    completion_tokens: Any = None


class _ChatCompletion(BaseModel):
    choices: list[_Choice]
    usage: Any = None


class _Fault(BaseModel):
    message: str = ""
    code: str | int | None = None


class Endpoint:
    """An OpenAI-compatible endpoint. Threads may use it at the same time. A context manager, which closes connections.

    Args:
        url: with the version's path: http://127.0.0.1:8000/v1.
        key_variable: name of the environment variable that holds the API key; without a key none is sent. The key
            appears in no file and no message.
        timeout_s: the longest time of one attempt.
        attempts: of one request.
        first_wait_s: before the second attempt; each further wait is twice as long, up to a minute.

    Attributes:
        url: without a slash at its end.

    Raises:
        RecipeError: the URL is not one of an endpoint, or the key cannot be sent.
    """

    def __init__(
        self,
        url: str,
        *,
        key_variable: str = KEY_VARIABLE,
        timeout_s: float = 60.0,
        attempts: int = 6,
        first_wait_s: float = 1.0,
    ) -> None:
        self.url = endpoint_url(url, key_variable)
        self._timeout_s = timeout_s
        self._key = _key_in(key_variable)
        self._key_variable = key_variable
        headers = {"User-Agent": f"prefine/{__version__}"} | (
            {"Authorization": f"Bearer {self._key}"} if self._key else {}
        )
        self._client = httpx2.Client(timeout=timeout_s, headers=headers, limits=httpx2.Limits(max_connections=None))
        self._attempts = attempts
        self._backoff = tenacity.wait_exponential_jitter(
            multiplier=first_wait_s, max=_LONGEST_WAIT_S, jitter=first_wait_s
        )
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._ended: EndpointError | None = None
        self._failed_in_a_row = 0
        self._not_before = 0.0

    def chat(self, body: Mapping[str, Any]) -> Reply:
        """The reply to a request's body.

        Raises:
            BadRequestError: the endpoint refuses this request.
            EndpointError: it cannot be asked, after all attempts.
        """
        data = json.dumps(body, allow_nan=False).encode()  # ASCII: half a character cannot break it
        sending = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TryAgainError),
            stop=tenacity.stop_after_attempt(self._attempts) | tenacity.stop_when_event_set(self._stopped),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(self._stopped),
            reraise=True,
        )
        try:
            reply = sending(self._attempt, data)
        except _TryAgainError as error:
            self._give_up(error)
        with self._lock:
            self._failed_in_a_row = 0
        return reply

    def stop(self) -> None:
        """End all waiting; requests from now on fail at once."""
        self._end(EndpointError(f"{self.url} is no longer asked", "Repeat the command to continue.", ends_all=True))

    def ending(self, problem: str, remedy: str) -> EndpointError:
        """The error to raise when every request would fail: no further one is sent.

        Args:
            problem: continues the sentence after the endpoint's name.
            remedy: what to do.
        """
        return self._end(EndpointError(f"{self.url} {problem}", remedy, ends_all=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def _attempt(self, data: bytes) -> Reply:
        self._stopped.wait(max(0.0, self._not_before - time.monotonic()))
        if self._ended is not None:
            raise self._ended
        status, headers, content = self._exchange(data)
        if status == 200:
            return _reply_of(content)
        raise self._failure(status, _fault_of(content), _retry_after_s(headers.get("retry-after")))

    def _exchange(self, data: bytes) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body of the response. `timeout` alone bounds each read only, not all of them together."""
        end = time.monotonic() + self._timeout_s
        late = _TryAgainError(
            f"did not answer within {self._timeout_s:g} s (if that is too short for it, set a longer --timeout: each"
            " attempt may be billed)"
        )
        content = b""
        try:
            headers = {"Content-Type": "application/json"}
            with self._client.stream("POST", self.url + _PATH, content=data, headers=headers) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if time.monotonic() > end:
                        raise late
                    if len(content) > _LARGEST_REPLY_BYTES:
                        raise _TryAgainError(f"answered with more than {_LARGEST_REPLY_BYTES // 1024**2} MiB")
                return response.status_code, response.headers, content
        except httpx2.TimeoutException:
            raise late from None
        except httpx2.HTTPError as error:
            raise _TryAgainError(f"cannot be reached: {self._shown(str(error) or type(error).__name__)}") from None

    def _failure(self, status: int, fault: _Fault, after_s: float | None) -> Exception:
        """What a response of this status is to the caller."""
        said = self._shown(fault.message)
        because = f": {said}" if said else ""
        if status in _TRY_AGAIN_STATUS and fault.code == "insufficient_quota":
            return self.ending(f"refuses, as no budget is left{because}", "Raise it; the same command then continues.")
        if status in _TRY_AGAIN_STATUS or status >= 500:
            if after_s is not None and after_s > _LONGEST_RETRY_AFTER_S:
                return self.ending(
                    f"asks to wait for {after_s:,.0f} s ({status}{because})", "Repeat the command after that time."
                )
            if after_s is not None:
                with self._lock:
                    self._not_before = max(self._not_before, time.monotonic() + after_s)
            return _TryAgainError(f"answered with status {status}{because}", after_s)
        if status in (401, 403):  # what it says may quote the key
            rule = (
                f"the key in {self._key_variable}" if self._key else f"a request without a key ({self._key_variable})"
            )
            return self.ending(f"refuses {rule} (status {status})", f"Set {self._key_variable} to a key that it takes.")
        if status in (400, 413, 422):
            return BadRequestError(self.url, status, said, str(fault.code or ""), fault.message)
        if status == 404:
            return self.ending(
                f"answered with status 404{because}", "Check the model's name and the URL, which often ends in /v1."
            )
        return self.ending(f"answered with status {status}{because}", _CHECK_SERVER)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, _TryAgainError) and error.after_s is not None:
            return error.after_s
        return self._backoff(state)

    def _give_up(self, error: _TryAgainError) -> NoReturn:
        with self._lock:
            self._failed_in_a_row += 1
            is_down = self._failed_in_a_row >= _FAILED_IN_A_ROW
        if self._ended is not None:
            raise self._ended from None
        if is_down:
            raise self.ending(error.reason, _CHECK_SERVER) from None
        raise EndpointError(f"{self.url} {error.reason}", _CHECK_SERVER) from None

    def _end(self, error: EndpointError) -> EndpointError:
        """Let no further request be sent; the first reason remains."""
        with self._lock:
            self._ended = self._ended or error
        self._stopped.set()
        return self._ended

    def _shown(self, text: str) -> str:
        """A text of the endpoint's for messages: on one line, short, without the key."""
        line = " ".join(text.split())
        if self._key:
            line = line.replace(self._key, "***")
        return line if len(line) <= _LONGEST_QUOTE else line[: _LONGEST_QUOTE - 1] + "…"


def endpoint_url(url: str, key_variable: str = KEY_VARIABLE) -> str:
    """The URL of an endpoint without a slash or /chat/completions at its end.

    Args:
        url: as the user wrote it.
        key_variable: the environment variable that the remedy names for a key.

    Raises:
        RecipeError: it is not one, or holds a user's name, a key or a query, which would come into files.
    """
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable():
        raise _not_a_url(url)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise RecipeError(
            f"the URL of {host} holds more than a path",
            f"Leave out user, key and query; the key goes into the environment variable {key_variable}.",
        )
    try:  # some names of hosts would fail only when a request is sent
        httpx2.URL(url.strip()).raw_host.decode("ascii").encode("idna")
    except (httpx2.InvalidURL, UnicodeError):
        raise _not_a_url(url) from None
    return url.strip().rstrip("/").removesuffix(_PATH)


def _not_a_url(url: str) -> RecipeError:
    return RecipeError(f"{url!r:.100} is not the URL of an endpoint", "Write one such as http://127.0.0.1:8000/v1.")


def _key_in(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(f"the environment variable {variable} holds characters that no API key has", "Set it again.")
    return key


def _reply_of(content: bytes) -> Reply:
    try:
        found = _ChatCompletion.model_validate(parse_json(content))
        choice = found.choices[0]
    except (JsonError, ValidationError, IndexError):
        raise _TryAgainError("answered with something that is not a chat completion") from None
    usage = _Usage.model_validate(found.usage if isinstance(found.usage, dict) else {})
    answer = choice.message.content if choice.message is not None else None
    text, finish = (_whole(value or "") for value in (_text_of(answer), choice.finish_reason))
    return Reply(text, finish, _count(usage.prompt_tokens), _count(usage.completion_tokens))


def _whole(text: str) -> str:
    """The text with halves of characters written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _text_of(content: str | list[Any] | None) -> str | None:
    """A message's text; of parts, those that are text."""
    if not isinstance(content, list):
        return content
    parts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return "".join(part for part in parts if isinstance(part, str))


def _count(tokens: Any) -> int | None:
    """A number of tokens; None for what cannot be one. The reply was paid for, whatever it says here."""
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < 2**53 else None


def _fault_of(content: bytes) -> _Fault:
    """OpenAI's `{"error": {…}}`; some servers say `{"error": "text"}`, `{"message": "text"}` or `{"detail": …}`."""
    try:
        found = parse_json(content)
    except JsonError:
        return _Fault()
    inner = found.get("error", found.get("detail", found)) if isinstance(found, dict) else {}
    if isinstance(inner, list):  # FastAPI's complaints, one a field
        return _Fault(message=json.dumps(inner, ensure_ascii=False))
    try:
        return _Fault(message=inner) if isinstance(inner, str) else _Fault.model_validate(inner)
    except ValidationError:
        return _Fault()


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
