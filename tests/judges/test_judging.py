"""Many pairs, each in both orders; whatever the endpoint does, what was paid for is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from prefine.comparisons.result import AnswerRow
from prefine.judges.cache import ReplyCache
from prefine.judges.endpoint_judge import EndpointJudge, JudgeSettings
from prefine.judges.judging import JudgedAnswers, agreed, judge_answers
from tests.judges.fake import Answer, Fake, answers_in, prefers_good, refusal, row, rows, running


def judged(fake: Fake, folder: Path, count: int = 6, at_once: int = 4, **options: Any) -> JudgedAnswers:
    given = options.pop("given", None) or rows(count)
    settings = JudgeSettings("m", price_in=1.0, price_out=2.0)
    with ReplyCache(folder / "judge.db") as cache, fake.endpoint(**options) as endpoint:
        return judge_answers(given, EndpointJudge(endpoint, settings, cache), at_once=at_once)


def test_a_judge_without_a_fault(tmp_path: Path) -> None:
    given = [row(0, "good", "bad"), row(1, "bad", "good"), row(2, "good a", "good b"), row(3, "same", "same")]
    with running(prefers_good) as fake:
        found = judged(fake, tmp_path, given=given)
    assert [each.verdicts["m"] for each in found.rows] == ["candidate", "baseline", "tie", "tie"]
    rate = found.win_rate
    assert (rate.wins, rate.ties, rate.losses, rate.failed) == (1, 2, 1, {})
    assert rate.rate is not None and rate.rate.value == 0.5
    assert rate.decided is not None and rate.decided.value == 0.5
    assert rate.consistency is not None and (rate.consistency.value, rate.consistency.count) == (1.0, 3)
    # Equal answers are not asked about: three pairs, two orders each.
    assert rate.spent["requests"] == len(fake.asked) == 6
    assert rate.spent["cost"] == pytest.approx(6 * (100 * 1 + 10 * 2) / 1e6)
    assert found.problem is None


def test_a_judge_that_always_says_first(tmp_path: Path) -> None:
    with running(lambda body, number: Answer('{"verdict": "A"}')) as fake:
        found = judged(fake, tmp_path)
    rate = found.win_rate
    assert (rate.wins, rate.ties, rate.losses) == (0, 6, 0)
    assert rate.consistency is not None and rate.consistency.value == 0.0
    assert rate.rate is not None and rate.rate.value == 0.5
    assert rate.finding == "no difference shown"


def test_a_judge_sees_the_tools_and_prompts_that_differ_in_them_are_two(tmp_path: Path) -> None:
    plain = row(0, "good", "bad")
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    with running(prefers_good) as fake:
        found = judged(fake, tmp_path, given=[plain, plain.model_copy(update={"tools": tools})])
    assert found.win_rate.wins == 2
    said = [body["messages"][-1]["content"] for body in fake.asked]
    assert sorted("[tools]\n" in text and "look_up" in text for text in said) == [False, False, True, True]


def test_two_verdicts_agree_or_are_a_tie() -> None:
    said = ("first", "second", "tie")
    winners = {(one, other): agreed(one, other) for one in said for other in said}  # type: ignore[arg-type]
    assert winners.pop(("first", "second")) == "candidate"
    assert winners.pop(("second", "first")) == "baseline"
    assert set(winners.values()) == {"tie"}


def test_no_more_requests_at_a_time_than_asked_for(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        time.sleep(0.02)
        return prefers_good(body, number)

    with running(answer) as fake:
        judged(fake, tmp_path, at_once=3)
    assert fake.most_at_once == 3


def test_malformed_verdicts_are_counted_by_reason(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        first, _ = answers_in(body)
        return {"0": Answer("well"), "1": Answer("")}.get(first[-1]) or prefers_good(body, number)

    with running(answer) as fake:
        found = judged(fake, tmp_path)
    assert found.win_rate.failed == {"the reply is not a verdict": 1, "the reply is blank": 1}
    assert found.win_rate.wins == 4
    assert found.win_rate.rate is not None and found.win_rate.rate.count == 4
    assert ["m" in each.verdicts for each in found.rows] == [False, False, True, True, True, True]
    assert found.problem is None


def test_an_endpoint_that_is_down(tmp_path: Path) -> None:
    with running(prefers_good) as fake:
        pass
    found = judged(fake, tmp_path, attempts=2)
    assert found.win_rate.finding == "not computed"
    assert "cannot be reached" in found.win_rate.why_not
    assert sum(found.win_rate.failed.values()) == 6
    assert found.problem is not None and found.problem.ends_all


def test_what_was_paid_for_is_kept_when_the_endpoint_goes_down(tmp_path: Path) -> None:
    with running(lambda body, number: prefers_good(body, number) if number <= 5 else refusal(402, "no money")) as fake:
        found = judged(fake, tmp_path, at_once=1)
        assert found.win_rate.wins == 2
        assert sum(found.win_rate.failed.values()) == 4
        assert found.problem is not None and "no money" in str(found.problem)
        assert len(fake.asked) == 6  # the one that is refused ends it
        kept = EndpointJudge(fake.endpoint(), JudgeSettings("m"), ReplyCache(tmp_path / "judge.db"))
        again = judge_answers(found.rows[:2], kept, at_once=1)
    assert again.win_rate.spent["requests_now"] == 0
    assert again.win_rate.wins == 2


KILLED = """
import sys
from pathlib import Path
from prefine.judges.cache import ReplyCache
from prefine.judges.endpoint import Endpoint
from prefine.judges.endpoint_judge import EndpointJudge, JudgeSettings
from prefine.judges.judging import judge_answers
from tests.judges.fake import rows
with ReplyCache(Path(sys.argv[2])) as cache:
    judge_answers(rows(6), EndpointJudge(Endpoint(sys.argv[1]), JudgeSettings("m"), cache), at_once=1)
"""


def test_a_kill_in_the_middle_pays_for_nothing_twice(tmp_path: Path) -> None:
    """The judging process is killed while the endpoint holds its eighth request, whose answer it never gets."""
    victim: list[subprocess.Popen[bytes]] = []
    begun = threading.Event()

    def answer(body: dict[str, Any], number: int) -> Answer:
        if number == 8:
            begun.wait()
            os.kill(victim[0].pid, signal.SIGKILL)
        return prefers_good(body, number)

    with running(answer) as fake:
        # running() answers under the same URL before and after the kill, as the URL is a part of the key.
        arguments = [sys.executable, "-c", KILLED, fake.url, str(tmp_path / "judge.db")]
        root = Path(__file__).parents[2]
        victim.append(subprocess.Popen(arguments, cwd=root))
        begun.set()
        assert victim[0].wait() == -signal.SIGKILL
        found = judged(fake, tmp_path)
    assert found.win_rate.wins == 6
    assert (found.win_rate.spent["requests"], found.win_rate.spent["requests_now"]) == (12, 5)
    assert len(fake.asked) == 8 + 5
    assert len({str(body) for body in fake.asked}) == 12


def test_an_interrupt_lets_requests_under_way_finish(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with running(prefers_good) as fake:
        with ReplyCache(tmp_path / "judge.db") as cache, pytest.raises(KeyboardInterrupt):
            judge = EndpointJudge(fake.endpoint(), JudgeSettings("m"), cache)
            judge_answers(rows(30), judge, at_once=2, progress=interrupt)
        asked = len(fake.asked)
        assert asked < 60
        assert judged(fake, tmp_path, count=30).win_rate.spent["requests_now"] == 60 - asked


def test_of_several_answers_to_a_prompt_the_first_is_judged(tmp_path: Path) -> None:
    given = [row(0, "good", "bad"), row(0, "bad", "good"), row(1, "good", "bad")]
    with running(prefers_good) as fake:
        found = judged(fake, tmp_path, given=given)
    assert [each.verdicts.get("m") for each in found.rows] == ["candidate", None, "candidate"]
    assert found.win_rate.wins == 2


def test_other_judges_verdicts_are_kept_and_old_ones_of_its_own_are_not(tmp_path: Path) -> None:
    given: list[AnswerRow] = [row(0, "well", "bad").model_copy(update={"verdicts": {"people": "tie", "m": "baseline"}})]
    with running(lambda body, number: Answer("hm")) as fake:
        found = judged(fake, tmp_path, given=given)
    assert found.rows[0].verdicts == {"people": "tie"}
    assert given[0].verdicts["m"] == "baseline"


def test_no_prompts(tmp_path: Path) -> None:
    with running(prefers_good) as fake, ReplyCache(tmp_path / "judge.db") as cache:
        found = judge_answers([], EndpointJudge(fake.endpoint(), JudgeSettings("m"), cache))
    assert (found.rows, found.win_rate.finding, found.win_rate.why_not) == ([], "not computed", "there are no prompts")
