from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine.comparisons.result import AnswerOf, AnswerRow, Winner
from prefine.comparisons.win_rate import coverage, length_difference, win_rate
from prefine.intervals import Share

OTHER: dict[Winner | None, Winner | None] = {
    "candidate": "baseline",
    "baseline": "candidate",
    "tie": "tie",
    None: None,
}


def test_ties_count_one_half_and_are_left_out() -> None:
    """6 wins, 2 ties, 2 losses: (6 + 1) / 10, and 6 / 8 with Wilson's interval."""
    winners: list[Winner | None] = ["candidate"] * 6 + ["tie"] * 2 + ["baseline"] * 2 + [None]
    found = win_rate("judge", winners, [])
    assert (found.wins, found.ties, found.losses) == (6, 2, 2)
    assert found.rate is not None
    assert (found.rate.value, found.rate.count) == (0.7, 10)
    wilson = Share(0.75, 8).interval
    assert wilson is not None
    assert found.decided is not None
    assert (found.decided.value, found.decided.low, found.decided.high) == (0.75, wilson.low, wilson.high)
    assert found.p == pytest.approx(2 * (1 + 8 + 28) / 2**8)  # 6 or more of 8, both ways
    assert found.finding == "no difference shown"
    assert found.failed == {"no verdict": 1}
    assert found.warnings == ["No length-controlled win rate: the lengths of the answers are not known."]


@given(st.lists(st.sampled_from(["candidate", "tie", "baseline", None]), min_size=1, max_size=60))
def test_exchanged_models_mirror_everything(winners: list[Winner | None]) -> None:
    there, back = win_rate("judge", winners, []), win_rate("judge", [OTHER[winner] for winner in winners], [])
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    assert (there.p, there.more_prompts) == (back.p, back.more_prompts)
    assert OTHER.get({"better": "candidate", "worse": "baseline"}.get(there.finding)) == {  # type: ignore[call-overload]
        "better": "candidate",
        "worse": "baseline",
    }.get(back.finding)
    if there.rate is None or back.rate is None:
        assert there.rate is back.rate is None
        return
    assert there.rate.value == pytest.approx(1 - back.rate.value)
    assert there.rate.low == pytest.approx(1 - (back.rate.high or 0))


def test_equal_models_are_in_the_interval_in_95_percent_of_trials() -> None:
    """Exactly, over all outcomes of 30 prompts, for several shares of ties."""
    from scipy.stats import multinomial

    outcomes = [(wins, losses) for wins in range(31) for losses in range(31 - wins)]
    inside = {}
    for wins, losses in outcomes:
        if wins >= losses:
            found = win_rate("j", ["candidate"] * wins + ["baseline"] * losses + ["tie"] * (30 - wins - losses), [])
            assert found.rate is not None
            inside[wins, losses] = inside[losses, wins] = (found.rate.low or 0) <= 0.5
    shares = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    chances = [
        sum(
            multinomial.pmf([wins, losses, 30 - wins - losses], 30, [(1 - ties) / 2, (1 - ties) / 2, ties])
            for (wins, losses), is_inside in inside.items()
            if is_inside
        )
        for ties in shares
    ]
    assert all(0.94 <= chance <= 0.96 for chance in chances[1:])
    assert chances[0] == pytest.approx(0.957, abs=1e-3)  # 10 to 20 wins of 30


def test_a_judge_that_prefers_long_answers_is_named() -> None:
    """The longer answer wins 8 times of 9, and the candidate's is longer in 3 of 4 prompts."""
    lengths = [50.0, 50.0, 50.0, -50.0] * 30
    winners: list[Winner | None] = [
        ("candidate" if length > 0 else "baseline") if place % 9 else ("baseline" if length > 0 else "candidate")
        for place, length in enumerate(lengths)
    ]
    found = win_rate("judge", winners, lengths)
    assert found.rate is not None
    assert found.length_controlled is not None
    assert found.rate.value - found.length_controlled.value > 0.1
    assert len(found.warnings) == 1
    assert found.warnings[0].endswith("this judge prefers longer answers.")


def test_without_verdicts_nothing_is_computed() -> None:
    found = win_rate("judge", [None, None], [1.0, 2.0], failed={"429": 2}, spent={"requests": 6.0})
    assert (found.finding, found.why_not) == ("not computed", "the judge gave no verdict")
    assert found.failed == {"429": 2}
    assert found.spent == {"requests": 6.0}


def test_lengths_are_compared_in_characters() -> None:
    """An endpoint that counts no tokens, and tokenizers with other tokens, give no other length."""
    candidate, baseline = (
        AnswerOf(text=text, tokens=tokens, ended=True) for text, tokens in (("abcde", 0), ("abc", 9))
    )
    assert length_difference(AnswerRow(id="a", prompt=[], candidate=candidate, baseline=baseline)) == 2


def test_prompts_that_nobody_was_asked_about_are_not_missing() -> None:
    winners: list[Winner | None] = ["candidate", "tie", None, None, None]
    assert coverage(win_rate("judge", winners, [])) == (2, 5)
    assert coverage(win_rate("people", winners, [], failed={"without a vote": 3})) == (2, 2)
