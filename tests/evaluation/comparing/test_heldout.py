"""Figures of pairs, demonstrations and the regression set, from rows by hand."""

from __future__ import annotations

import math

import pytest

from prefine.evaluation.comparing import heldout
from prefine.evaluation.comparing.answering import SideAnswer
from prefine.evaluation.comparing.heldout import (
    demonstration_metrics,
    missing_rows,
    pair_metrics,
    regression_groups,
    regression_rows,
    unanswered_items,
)
from prefine.records import Message, Preference
from prefine.regression.items import items


def pair(prompt: str, number: int) -> Preference:
    return Preference(prompt=(Message(role="user", content=prompt),), chosen=f"good {number}", rejected=f"bad {number}")


def margins(*values: float | None) -> list[dict[str, float | None]]:
    return [{"margin": value} for value in values]


def test_pairs_of_one_prompt_count_once() -> None:
    """Prompt a has three pairs, of which the candidate prefers two and the baseline one; prompt b has one."""
    rows = {"candidate": margins(1.0, 2.0, -3.0, 1.0), "baseline": margins(1.0, -1.0, -1.0, -1.0)}
    pairs = [pair("a", 0), pair("a", 1), pair("a", 2), pair("b", 3)]
    accuracy, margin = pair_metrics(rows, pairs, same_tokens=True)
    assert accuracy.candidate and accuracy.change and margin.change
    assert (accuracy.candidate.value, accuracy.change.count) == (pytest.approx((2 / 3 + 1) / 2), 2)
    assert accuracy.change.value == pytest.approx((1 / 3 + 1) / 2)
    assert margin.change.value == pytest.approx((1 / 3 + 2) / 2)


def test_margins_per_token_of_other_tokens_are_not_compared() -> None:
    rows = {"candidate": margins(1.0), "baseline": margins(2.0)}
    assert [each.name for each in pair_metrics(rows, [pair("a", 0)], same_tokens=False)] == ["pair_accuracy"]


def test_values_that_are_not_finite_are_missing_not_wrong() -> None:
    rows = {"candidate": margins(math.nan, 1.0, 1.0), "baseline": margins(1.0, -math.inf, 1.0)}
    accuracy = pair_metrics(rows, [pair(name, 0) for name in "abc"], same_tokens=True)[0]
    assert accuracy.candidate and accuracy.change
    assert (accuracy.candidate.value, accuracy.change.count) == (1.0, 1)
    assert missing_rows(rows, "margin") == {"have no finite value": 2}
    losses = {
        role: [{"loss": loss, "tokens": 2} for loss in values]
        for role, values in (("candidate", [math.nan, 1.0]), ("baseline", [1.0, 1.0]))
    }
    loss, perplexity = demonstration_metrics(losses)
    assert loss.change and loss.change.count == 1
    assert perplexity.candidate and perplexity.candidate.value == pytest.approx(math.e)


def test_rows_that_were_read_in_part_by_one_model_are_missing() -> None:
    """A pair that does not fit, one that both models read without its oldest turns, one that one model read whole."""
    cuts = {"candidate": ("", "2 turns", ""), "baseline": ("", "2 turns", "1 turns")}
    rows = {
        role: [{"margin": None if place == 0 else 1.0, "cut": cut} for place, cut in enumerate(own)]
        for role, own in cuts.items()
    }
    accuracy = pair_metrics(rows, [pair(name, 0) for name in "abc"], same_tokens=True)[0]
    assert accuracy.change and accuracy.change.count == 1
    assert missing_rows(rows, "margin") == {
        "do not fit a model's context, or its chat template refuses them": 1,
        "fit the context of one of the models only in part": 1,
    }


def test_items_without_an_answer_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two categories one has no answer at all: it is missing from the whole set."""
    chosen = [
        *[i for i in items() if i.category == "arithmetic"][:3],
        *[i for i in items() if i.category == "facts"][:2],
    ]
    monkeypatch.setattr(heldout, "items", lambda: chosen)
    answered, gone = SideAnswer(text="x"), SideAnswer(failed="content filter")
    answers = {"candidate": [answered, answered, gone, gone, gone], "baseline": [answered] * 5}
    rows = regression_rows(answers)
    whole, arithmetic = regression_groups(rows)
    assert [row.candidate.scores for row in rows] == [{"passed": 0.0}] * 2
    assert (whole.category, whole.candidate.count, whole.missing) == ("all", 2, 3)
    assert (arithmetic.category, arithmetic.candidate.count, arithmetic.missing) == ("arithmetic", 2, 1)
    assert "3 items had no answer" in whole.sentence
    assert unanswered_items(answers) == "3 items (candidate: content filter)"
