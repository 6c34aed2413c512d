"""A model as a judge: what it is asked, what counts, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import EndpointError
from prefine.judges.cache import ReplyCache
from prefine.judges.endpoint_judge import EndpointJudge, JudgeSettings
from prefine.judges.judge import NoVerdictError
from prefine.judges.template import JudgeTemplate
from tests.judges.fake import Answer, Fake, refusal, running

PROMPT = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    with ReplyCache(tmp_path / "judge.db") as opened:
        yield opened


def judge_of(fake: Fake, cache: ReplyCache, **settings: Any) -> EndpointJudge:
    return EndpointJudge(fake.endpoint(), JudgeSettings("m", **settings), cache)


def test_a_verdict_is_asked_for_once(cache: ReplyCache) -> None:
    with running(lambda body, number: Answer('{"verdict": "B"}', tokens=(1_000, 50))) as fake:
        first = judge_of(fake, cache, price_in=2.0, price_out=8.0)
        assert first.prefer(PROMPT, "four", "five") == "second"
        again = judge_of(fake, cache, price_in=2.0, price_out=8.0)
        assert again.prefer(PROMPT, "four", "five") == "second"
    (body,) = fake.asked
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 1024)
    assert body["response_format"]["type"] == "json_schema"
    tokens = {"requests_without_usage": 0, "prompt_tokens": 1000, "completion_tokens": 50}
    cost = {"cost": pytest.approx((1_000 * 2 + 50 * 8) / 1e6)}
    assert first.spent() == {"requests": 1, "requests_now": 1, **tokens, **cost}
    assert again.spent() == {"requests": 1, "requests_now": 0, **tokens, **cost}


def test_without_prices_there_is_no_cost_and_missing_usage_is_counted(cache: ReplyCache) -> None:
    with running(lambda body, number: Answer(tokens=None)) as fake:
        judge = judge_of(fake, cache, price_in=2.0)
        judge.prefer(PROMPT, "four", "five")
    assert judge.spent()["requests_without_usage"] == 1
    assert "cost" not in judge.spent()


def test_each_order_model_and_template_is_a_question_of_its_own(cache: ReplyCache, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("$conversation $answer_a $answer_b", encoding="utf-8")
    with running(lambda body, number: Answer()) as fake:
        judge_of(fake, cache).prefer(PROMPT, "four", "five")
        judge_of(fake, cache).prefer(PROMPT, "five", "four")
        EndpointJudge(fake.endpoint(), JudgeSettings("n"), cache).prefer(PROMPT, "four", "five")
        other = EndpointJudge(fake.endpoint(), JudgeSettings("m"), cache, JudgeTemplate(own))
        other.prefer(PROMPT, "four", "five")
        assert other.name == "m (own)"
    assert len(fake.asked) == 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("Both are nice."), "the reply is not a verdict"),
        (Answer(" "), "the reply is blank"),
        (Answer(body={"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}), "filter"),
        (Answer("A", finish="length"), "the reply was cut at 1024 tokens"),
    ],
)
def test_a_malformed_verdict_is_asked_for_three_times_and_no_more(
    cache: ReplyCache, answer: Answer, reason: str
) -> None:
    with running(lambda body, number: answer) as fake:
        for _ in range(2):  # the second time, all three come from the cache
            with pytest.raises(NoVerdictError, match=reason):
                judge_of(fake, cache).prefer(PROMPT, "four", "five")
    assert len(fake.asked) == 3
    assert "one letter" in fake.asked[1]["messages"][0]["content"]


def test_a_second_reply_may_be_one(cache: ReplyCache) -> None:
    with running(lambda body, number: Answer("hm" if number == 1 else "A")) as fake:
        judge = judge_of(fake, cache)
        assert judge.prefer(PROMPT, "four", "five") == "first"
        assert judge.spent()["prompt_tokens"] == 200


def refusing(*words: str) -> Callable[[dict[str, Any], int], Answer]:
    """An endpoint that takes no request with these fields or values in it."""

    def answer(body: dict[str, Any], number: int) -> Answer:
        for word, instead in (("response_format", ""), ("temperature", ""), ("max_tokens", "max_completion_tokens")):
            if word in words and word in body:
                return refusal(400, f"{word} is not supported. {instead}")
        return Answer("B")

    return answer


def test_an_endpoint_that_refuses_every_request_ends_the_asking(cache: ReplyCache) -> None:
    with running(lambda body, number: refusal(400, "x is not a valid model ID")) as fake:
        judge = judge_of(fake, cache)
        for _ in range(2):
            with pytest.raises(NoVerdictError, match="x is not a valid model ID"):
                judge.prefer(PROMPT, "four", "five")
        for _ in range(2):
            with pytest.raises(EndpointError, match=r"refuses every request with status 400: x is not") as ended:
                judge.prefer(PROMPT, "four", "five")
            assert ended.value.ends_all
    assert len(fake.asked) == 6  # each with and without a schema


def test_refusals_after_a_success_end_nothing(cache: ReplyCache) -> None:
    with running(lambda body, number: Answer("B") if number == 1 else refusal(400, "odd")) as fake:
        judge = judge_of(fake, cache)
        assert judge.prefer(PROMPT, "four", "five") == "second"
        for number in range(5):
            with pytest.raises(NoVerdictError, match="odd"):
                judge.prefer(PROMPT, f"six {number}", "five")


def test_a_long_refusal_is_read_to_its_end(cache: ReplyCache) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        return refusal(400, f"{'x' * 300} temperature is not supported") if "temperature" in body else Answer("B")

    with running(answer) as fake:
        assert judge_of(fake, cache).prefer(PROMPT, "four", "five") == "second"
    assert "response_format" in fake.asked[-1] and len(fake.asked) == 2


@pytest.mark.parametrize(
    "words", [("response_format",), ("temperature",), ("max_tokens",), ("response_format", "temperature", "max_tokens")]
)
def test_an_endpoint_that_takes_less_is_asked_for_less(cache: ReplyCache, words: tuple[str, ...]) -> None:
    with running(refusing(*words)) as fake:
        judge = judge_of(fake, cache)
        assert judge.prefer(PROMPT, "four", "five") == "second"
        refused = len(fake.asked) - 1
        assert refused == len(words)
        assert judge.prefer(PROMPT, "six", "five") == "second"
        assert len(fake.asked) == refused + 2  # it has learned the form
        assert not set(words) & fake.asked[-1].keys()
        assert judge.spent()["requests"] == 2


def test_a_prompt_that_is_too_long_fails_alone(cache: ReplyCache) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        long = "long" in body["messages"][0]["content"].split("answer A")[1].split("answer B")[0]
        return refusal(400, "too many tokens", "context_length_exceeded") if long else Answer()

    with running(answer) as fake:
        judge = judge_of(fake, cache)
        with pytest.raises(NoVerdictError, match="too long for the judge"):
            judge.prefer(PROMPT, "long", "five")
        assert judge.prefer(PROMPT, "four", "five") == "first"
        assert "response_format" in fake.asked[-1]
        asked = len(fake.asked)
        with pytest.raises(NoVerdictError, match="too long for the judge"):
            judge.prefer(PROMPT, "long 2", "five")
        assert len(fake.asked) == asked + 1  # the form is proved: it is not the reason


def test_what_is_refused_for_another_reason_says_so(cache: ReplyCache) -> None:
    with (
        running(lambda body, number: refusal(400, "roles are odd")) as fake,
        pytest.raises(NoVerdictError, match="roles"),
    ):
        judge_of(fake, cache).prefer(PROMPT, "four", "five")


def test_a_failure_of_the_endpoint_is_not_kept(cache: ReplyCache) -> None:
    with running(lambda body, number: refusal(500) if number < 5 else Answer("A")) as fake:
        with pytest.raises(EndpointError):
            judge_of(fake, cache).prefer(PROMPT, "four", "five")
        assert judge_of(fake, cache).prefer(PROMPT, "four", "five") == "first"
