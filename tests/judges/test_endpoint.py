"""An endpoint that is down, slow, busy, closed, or talks nonsense."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from prefine.errors import EndpointError, RecipeError
from prefine.judges.cache import Reply
from prefine.judges.endpoint import KEY_VARIABLE, BadRequestError, Endpoint, _retry_after_s, endpoint_url
from tests.judges.fake import Answer, refusal, running

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello \ud800"}]}
KEY = "sk-very-secret-0123456789"


def test_a_reply_with_its_tokens() -> None:
    with running(lambda body, number: Answer("hi", tokens=(7, 2))) as fake:
        assert fake.endpoint().chat(BODY) == Reply("hi", "stop", 7, 2)
    assert fake.asked == [BODY]
    assert "authorization" not in fake.headers[0]


def test_tokens_that_cannot_be_are_unknown() -> None:
    with running(lambda body, number: Answer("hi", tokens=(-1, 2**70))) as fake:
        assert fake.endpoint().chat(BODY) == Reply("hi", "stop", None, None)


PARTS = [{"type": "text", "text": "h"}, {"type": "image_url"}, {"type": "text", "text": "i"}]


@pytest.mark.parametrize(
    ("message", "usage", "reply"),
    [
        ({"content": PARTS}, {"prompt_tokens": 5, "completion_tokens": 1}, Reply("hi", "stop", 5, 1)),
        ({"content": "hi"}, {"prompt_tokens": 5.5, "completion_tokens": "n/a"}, Reply("hi", "stop", None, None)),
        ({"content": "hi"}, {"prompt_tokens": True}, Reply("hi", "stop", None, None)),
        ({"content": "hi"}, "unknown", Reply("hi", "stop", None, None)),
        (None, None, Reply("", "stop", None, None)),
    ],
)
def test_a_reply_that_was_paid_for_is_read_as_far_as_it_can_be(message: Any, usage: Any, reply: Reply) -> None:
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    with running(lambda body_, number: Answer(body=body)) as fake:
        assert fake.endpoint().chat(BODY) == reply
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    "detail", ["temperature is not supported", [{"loc": ["body", "temperature"], "msg": "is not supported"}]]
)
def test_a_refusal_in_fastapis_words_is_read(detail: Any) -> None:
    with (
        running(lambda body, number: Answer(status=422, body={"detail": detail})) as fake,
        pytest.raises(BadRequestError) as refused,
    ):
        fake.endpoint().chat(BODY)
    assert "temperature" in refused.value.message and "is not supported" in refused.value.message


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_fails_for_the_moment_is_tried_again(status: int) -> None:
    with running(lambda body, number: refusal(status) if number < 4 else Answer("hi")) as fake:
        assert fake.endpoint().chat(BODY).text == "hi"
    assert len(fake.asked) == 4


@pytest.mark.parametrize("body", [b"<html>", b"[]", {"choices": []}, {"choices": [{"message": 3}]}])
def test_a_reply_that_is_no_chat_completion_is_asked_for_again(body: Any) -> None:
    with running(lambda body_, number: Answer(body=body) if number < 3 else Answer("hi")) as fake:
        assert fake.endpoint().chat(BODY).text == "hi"


def test_retry_after_is_waited_for_by_all_requests() -> None:
    with running(lambda body, number: refusal(429, Retry_After="0.3") if number == 1 else Answer("hi")) as fake:
        begun = time.monotonic()
        assert fake.endpoint().chat(BODY).text == "hi"
        assert time.monotonic() - begun >= 0.3
        assert len(fake.asked) == 2


def test_retry_after_that_is_too_long_ends_the_asking() -> None:
    with running(lambda body, number: refusal(429, "come back later", Retry_After="3600")) as fake:
        endpoint = fake.endpoint()
        for _ in range(2):
            with pytest.raises(EndpointError, match=r"wait for 3,600 s.*come back later") as refused:
                endpoint.chat(BODY)
            assert refused.value.ends_all
        assert len(fake.asked) == 1


def test_retry_after_is_a_number_or_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < (_retry_after_s(soon) or 0) <= 100
    assert _retry_after_s("2") == 2.0
    assert _retry_after_s("-5") == 0.0
    assert [_retry_after_s(value) for value in (None, "soon", "nan", "inf", "")] == [None] * 5


def test_an_endpoint_that_is_down_ends_the_asking_after_three_requests() -> None:
    with running(lambda body, number: Answer()) as fake:
        pass
    endpoint = fake.endpoint(attempts=2)
    found = []
    for _ in range(3):
        with pytest.raises(EndpointError, match="cannot be reached") as refused:
            endpoint.chat(BODY)
        found.append(refused.value.ends_all)
    assert found == [False, False, True]


def test_a_success_between_failures_keeps_it_going() -> None:
    with running(lambda body, number: refusal(500) if number % 2 else Answer("hi")) as fake:
        endpoint = fake.endpoint(attempts=1)
        for _ in range(5):
            with pytest.raises(EndpointError) as refused:
                endpoint.chat(BODY)
            assert not refused.value.ends_all
            assert endpoint.chat(BODY).text == "hi"


def test_an_endpoint_that_is_too_slow() -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        time.sleep(0.5 if number == 1 else 0)
        return Answer("hi")

    with running(answer) as fake:
        assert fake.endpoint(timeout_s=0.15).chat(BODY).text == "hi"
        assert len(fake.asked) == 2
    with running(answer) as fake, pytest.raises(EndpointError, match=r"did not answer within 0\.1 s"):
        fake.endpoint(timeout_s=0.1, attempts=1).chat(BODY)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (refusal(401, f"wrong key {KEY}"), f"refuses the key in {KEY_VARIABLE}"),
        (refusal(403), "refuses the key"),
        (refusal(404, "no model m"), "status 404: no model m"),
        (refusal(429, "pay first", "insufficient_quota"), "no budget is left: pay first"),
        (refusal(402, f"pay for {KEY}"), r"status 402: pay for \*\*\*"),
        (Answer(status=302, headers={"Location": "http://127.0.0.1:1/"}), "status 302"),
    ],
)
def test_what_every_request_would_meet_ends_the_asking(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, problem: str
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with running(lambda body, number: answer) as fake:
        endpoint = fake.endpoint()
        with pytest.raises(EndpointError, match=problem) as refused:
            endpoint.chat(BODY)
        with pytest.raises(EndpointError, match=problem):
            endpoint.chat(BODY)
    assert len(fake.asked) == 1
    assert fake.headers[0]["authorization"] == f"Bearer {KEY}"
    assert refused.value.ends_all
    assert KEY not in str(refused.value)


def test_a_request_that_is_refused_is_no_reason_to_stop() -> None:
    with running(lambda body, number: refusal(400, "too\nlong", "context_length_exceeded")) as fake:
        with pytest.raises(BadRequestError, match="too long") as refused:
            fake.endpoint().chat(BODY)
        assert (refused.value.status, refused.value.code, refused.value.ends_all) == (
            400,
            "context_length_exceeded",
            False,
        )
        assert len(fake.asked) == 1


def test_stop_ends_waiting() -> None:
    with running(lambda body, number: refusal(503, Retry_After="200")) as fake:
        endpoint = fake.endpoint()
        threading.Timer(0.1, endpoint.stop).start()
        begun = time.monotonic()
        with pytest.raises(EndpointError, match="no longer asked"):
            endpoint.chat(BODY)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://h:1/v1", "http://h:1/v1"),
        (" https://h/v1/ ", "https://h/v1"),
        ("https://h/v1/chat/completions", "https://h/v1"),
    ],
)
def test_urls(url: str, found: str) -> None:
    assert endpoint_url(url) == found


@pytest.mark.parametrize(
    "url",
    [
        *("h:80/v1", "ftp://h/", "http://", "", "http://[::1", "http://h:x/", "http://h\n/"),
        *("http://\u00e4..b/v1", f"http://{'a' * 70}/v1", "http://a..b/v1"),
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(RecipeError, match="not the URL of an endpoint"):
        endpoint_url(url)


@pytest.mark.parametrize("url", [f"https://{KEY}@h/v1", f"https://u:{KEY}@h/v1", f"https://h/v1?key={KEY}"])
def test_a_key_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RecipeError, match="more than a path") as refused:
        endpoint_url(url)
    assert KEY not in str(refused.value)


def test_a_key_that_no_header_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "abc\ndef")
    with pytest.raises(RecipeError, match=KEY_VARIABLE) as refused:
        Endpoint("http://h/v1")
    assert "abc" not in str(refused.value)
