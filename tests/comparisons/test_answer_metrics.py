"""Metrics from the rows of an answers.jsonl, by hand."""

from __future__ import annotations

import math

import pytest

from prefine.comparisons.answer_metrics import answer_metrics, perplexity
from prefine.comparisons.result import AnswerOf, AnswerRow, prompt_numbers
from prefine.significance import change_of_ratio


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


def test_the_change_of_perplexity_has_the_interval_of_the_loss_per_token() -> None:
    """Every answer's loss per token falls by 0.1 on average: the perplexity is exp(2) against exp(2.1). The interval
    is the one of the ratio of means, at the baseline's perplexity.
    """
    tokens = [2.0, 4.0, 6.0, 8.0, 10.0, 5.0, 5.0]
    falls = [0.1, 0.12, 0.08, 0.11, 0.1, 0.09, 0.1]
    baseline = [2.1 * size for size in tokens]
    candidate = [(2.1 - fall) * size for size, fall in zip(tokens, falls, strict=True)]
    found = perplexity(candidate, baseline, tokens)
    loss = change_of_ratio(candidate, baseline, tokens)
    assert found.candidate and found.baseline and found.change and loss and loss.interval
    assert found.baseline.value == pytest.approx(math.exp(2.1))
    assert found.candidate.value == pytest.approx(math.exp(sum(candidate) / 40))
    assert found.change.value == pytest.approx(found.candidate.value - found.baseline.value)
    assert found.change.low == pytest.approx(math.exp(2.1) * (math.exp(loss.interval.low) - 1))
    assert found.change.high == pytest.approx(math.exp(2.1) * (math.exp(loss.interval.high) - 1))
    assert (found.finding, found.p) == ("differs", loss.p)


def test_a_loss_without_bounds_is_a_finite_perplexity() -> None:
    found = perplexity([1e5, 2e5], [1.0, 2.0], [1.0, 1.0])
    assert found.candidate and math.isfinite(found.candidate.value)


def test_rows_of_the_same_turns_and_other_tools_are_of_other_prompts() -> None:
    plain = row("a", 1.0, 0.0)
    other = plain.model_copy(update={"tools": [{"type": "function", "function": {"name": "f"}}]})
    assert prompt_numbers([plain, other, plain]) == [0, 1, 0]
    assert [turn["role"] for turn in other.asked] == ["tools"]
    assert plain.asked == plain.prompt
