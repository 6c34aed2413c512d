"""Metrics from the rows of an answers.jsonl, by hand."""

from __future__ import annotations

import pytest

from prefine.comparisons.answer_metrics import answer_metrics
from prefine.comparisons.result import AnswerOf, AnswerRow


def row(name: str, candidate: float | None, baseline: float | None, **own: object) -> AnswerRow:
    sides = {
        role: AnswerOf.model_validate({"text": "a", "tokens": 3, "ended": True, "reward": reward, **own})
        for role, reward in (("candidate", candidate), ("baseline", baseline))
    }
    return AnswerRow(id=name, prompt=[], candidate=sides["candidate"], baseline=sides["baseline"])


def test_answers_to_one_prompt_are_averaged() -> None:
    """Prompt 0 has rewards 1 and 3 against 0 and 1, prompt 1 has 4 against 1: means 2 - 0.5 and 4 - 1."""
    rows = [row("a", 1.0, 0.0), row("a#2", 3.0, 1.0), row("b", 4.0, 1.0)]
    found = {metric.name: metric for metric in answer_metrics(rows, [0, 0, 1])}
    reward, median = found["reward"], found["reward_median"]
    assert reward.candidate and reward.baseline and reward.change
    assert (reward.candidate.value, reward.baseline.value, reward.change.count) == (3.0, 0.75, 2)
    assert reward.change.value == pytest.approx((1.5 + 3.0) / 2)
    assert median.change and median.change.value == pytest.approx((1.5 + 3.0) / 2)
    assert found["ended"].finding == "no difference shown"


def test_a_value_that_is_missing_leaves_its_prompt_out() -> None:
    rows = [row("a", 1.0, 0.0), row("b", None, 1.0), row("c", 2.0, 0.0)]
    reward = next(metric for metric in answer_metrics(rows, [0, 1, 2]) if metric.name == "reward")
    assert reward.change is not None
    assert reward.change.count == 2


def test_lengths_of_other_tokens_are_compared_in_characters() -> None:
    rows = [row("a", 1.0, 0.0, scores={"length_characters": 5.0})]
    names = [[m.name for m in answer_metrics(rows, [0], same_tokens=same)] for same in (True, False)]
    assert "length_tokens" in names[0] and "length_characters" not in names[0]
    assert "length_characters" in names[1] and "length_tokens" not in names[1]
