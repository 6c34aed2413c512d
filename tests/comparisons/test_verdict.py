from __future__ import annotations

import pytest

from prefine.comparisons.result import Winner
from prefine.comparisons.statistics import paired_metric, regression_group
from prefine.comparisons.verdict import verdict
from prefine.comparisons.win_rate import win_rate
from tests.comparisons.planted import comparison

GOOD: list[Winner] = ["candidate", "candidate", "candidate", "tie", "baseline"] * 20
EQUAL: list[Winner] = ["candidate", "tie", "baseline", "tie"] * 25


def test_planted_regressions_are_named_although_the_win_rate_is_good() -> None:
    """Blank answers to 10 of 100 prompts, broken JSON, forgotten arithmetic."""
    blank = paired_metric("blank", "blank answers", "share", "form", "lower", [1.0] * 10 + [0.0] * 90, [0.0] * 100)
    json = regression_group("json", "JSON", [False] * 20 + [True] * 5, [True] * 25, [f"json-{i}" for i in range(25)])
    sums = regression_group("sums", "arithmetic", [False] * 12 + [True] * 13, [True] * 25, [str(i) for i in range(25)])
    facts = regression_group("facts", "facts", [True] * 24 + [False], [True] * 25, [str(i) for i in range(25)])
    others = [
        paired_metric(f"m{i}", f"metric {i}", "", "form", "higher", [0.1, 0.2, 0.3] * 30, [0.2, 0.1, 0.3] * 30)
        for i in range(12)
    ]
    found = comparison("judge", [blank, *others], [win_rate("judge", GOOD, [])], [json, sums, facts]).verdict
    assert found.decision == "better"
    assert found.sentence.endswith("But worse: blank answers, JSON and arithmetic.")
    assert [each.split(":")[0] for each in found.regressions] == ["Blank answers", "JSON", "Arithmetic"]


def test_equal_models_show_no_difference() -> None:
    same = [0.5, 1.5, 2.5, 3.0] * 10
    metric = paired_metric("reward", "reward", "score", "reward", "higher", same, same)
    group = regression_group("json", "JSON", [True] * 25, [True] * 25, [str(i) for i in range(25)])
    found = comparison("judge", [metric], [win_rate("judge", EQUAL, [])], [group]).verdict
    assert (found.decision, found.regressions, found.improvements) == ("no difference shown", [], [])


def test_what_was_not_computed_decides_nothing() -> None:
    found = verdict("judge", [], [win_rate("judge", [None] * 5, [])], [])
    assert found.decision == "no difference shown"
    assert "gave no verdict" in found.sentence


def test_what_got_worse_is_named_where_nothing_decides() -> None:
    """Without a judge, a reward model or pairs; a gate on regressions rests on it."""
    blank = paired_metric("degenerate", "degenerate answers", "share", "form", "lower", [1.0] * 9, [0.0] * 9)
    found = verdict("", [blank], [], [])
    assert (found.decision, found.decided_by, found.more_prompts) == ("no difference shown", "", None)
    assert found.sentence.startswith("Nothing that was computed says which model is better")
    assert found.sentence.endswith("But worse: degenerate answers.")
    assert found.regressions == [blank.sentence]


def test_an_unknown_name_cannot_decide() -> None:
    with pytest.raises(ValueError, match="nothing is called"):
        verdict("reward", [], [], [])


def test_a_loss_spread_over_the_regression_set_is_named() -> None:
    """8 categories lose 5 of 10 each: no category is shown to be worse (p = 1/16), the whole set is."""
    now, was, ids = [False] * 5 + [True] * 5, [True] * 10, [str(i) for i in range(10)]
    groups = [regression_group(f"c{i}", f"category {i}", now, was, ids) for i in range(8)]
    whole = regression_group("all", "the regression set", now * 8, was * 8, [str(i) for i in range(80)])
    found = comparison("judge", [], [win_rate("judge", GOOD, [])], [whole, *groups])
    assert found.regression[0].p_adjusted is None
    assert {group.finding for group in found.regression[1:]} == {"no difference shown"}
    assert found.verdict.sentence.endswith(
        "But worse: the regression set (category 0: 5 lost, category 1: 5 lost and category 2: 5 lost)."
    )


def test_categories_are_not_corrected_for_metrics() -> None:
    """A lost category of 8 items (p = 0.0078) is named although 12 metrics were tested, too."""
    lost = regression_group("sums", "arithmetic", [False] * 8, [True] * 8, [str(i) for i in range(8)])
    kept = regression_group("facts", "facts", [True] * 8, [True] * 8, [str(i) for i in range(8)])
    metrics = [
        paired_metric(f"m{i}", f"metric {i}", "", "form", "higher", [0.1, 0.2, 0.3] * 30, [0.2, 0.1, 0.3] * 30)
        for i in range(12)
    ]
    found = comparison("judge", metrics, [win_rate("judge", EQUAL, [])], [lost, kept])
    assert found.regression[0].finding == "worse"


def test_blank_answers_to_a_tenth_of_60_prompts_are_named_whatever_else_is_tested() -> None:
    """6 of 60: p = 0.031, which a correction for 12 other metrics would raise above 5 %."""
    blank = [1.0] * 6 + [0.0] * 54
    broken = paired_metric("degenerate", "degenerate answers", "share", "form", "lower", blank, [0.0] * 60)
    others = [
        paired_metric(f"m{i}", f"metric {i}", "", "form", "higher", [0.1, 0.2, 0.3] * 20, [0.2, 0.1, 0.3] * 20)
        for i in range(12)
    ]
    found = comparison("judge", [broken, *others], [win_rate("judge", EQUAL, [])])
    assert (found.metrics[0].p, found.metrics[0].p_adjusted) == (pytest.approx(2 / 2**6), None)
    assert found.verdict.sentence.endswith("But worse: degenerate answers.")


def test_a_judge_that_saw_few_prompts_decides_nothing() -> None:
    """12 of 200 pairs were judged before the endpoint died, all for the candidate."""
    found = comparison("judge", [], [win_rate("judge", ["candidate"] * 12 + [None] * 188, [])]).verdict
    assert found.decision == "no difference shown"
    assert "judge gave verdicts on 12 of 200 prompts" in found.sentence
    assert found.more_prompts is None


def test_people_may_vote_on_a_part_of_the_prompts() -> None:
    votes = win_rate("people", ["candidate"] * 30 + [None] * 170, [], failed={"without a vote": 170})
    assert comparison("people", [], [votes]).verdict.decision == "better"


def test_overlap_with_references_is_one_regression_however_it_is_measured() -> None:
    worse = [
        paired_metric(name, title, "", "reference", "higher", [0.1] * 50, [0.2, 0.3] * 25)
        for name, title in (("rouge_1", "ROUGE-1"), ("rouge_l", "ROUGE-L"), ("bleu", "BLEU"), ("ended", "ends"))
    ]
    found = comparison("judge", worse, [win_rate("judge", EQUAL, [])]).verdict
    assert [each.split(":")[0] for each in found.regressions] == ["ROUGE-L", "Ends"]
    assert found.regressions[0].endswith("Likewise ROUGE-1 and BLEU.")
    assert found.sentence.endswith("But worse: ROUGE-L and ends.")


@pytest.mark.parametrize(
    ("winners", "said"),
    [
        (GOOD, "Judged by judge, the candidate is better: it wins 70"),
        ([{"candidate": "baseline", "baseline": "candidate", "tie": "tie"}[w] for w in GOOD], "is worse: it wins 30"),
        (EQUAL, "Judged by judge, no difference shown: the candidate wins 50"),
    ],
)
def test_the_sentence_of_a_win_rate_says_what_it_shows(winners: list[Winner], said: str) -> None:
    assert said in comparison("judge", [], [win_rate("judge", winners, [])]).verdict.sentence
