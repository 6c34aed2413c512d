"""What could not be computed, gathered from metrics and judges."""

from __future__ import annotations

from prefine.comparisons.missing import with_missing
from prefine.comparisons.statistics import paired_metric
from prefine.comparisons.win_rate import win_rate
from tests.comparisons.planted import comparison


def test_metrics_and_judges_without_figures_are_listed_once() -> None:
    metric = paired_metric("m", "a metric", "", "form", "higher", [1.0], [None])
    few = win_rate("few", ["candidate", None, None], [], failed={"the endpoint is down": 2})
    found = with_missing(comparison("few", [metric], [few, win_rate("none", [None], [])]))
    assert found.not_computed == {
        "a metric": "the baseline has no value",
        "judge few": "no verdict on 2 of 3 prompts: the endpoint is down (2)",
        "judge none": "no verdict on 1 of 1 prompt: no verdict (1)",
    }
    assert with_missing(found) == found


def test_a_judge_that_has_judged_since_is_not_listed() -> None:
    found = comparison("j", [], [win_rate("j", ["candidate"] * 3, [])])
    stale = found.model_copy(update={"not_computed": {"judge j": "no verdict on 3 of 3 prompts", "other": "why"}})
    assert with_missing(stale).not_computed == {"other": "why"}


def test_people_need_not_vote_on_all() -> None:
    votes = win_rate("people", ["candidate", None], [], failed={"without a vote": 1})
    assert with_missing(comparison("people", [], [votes])).not_computed == {}
