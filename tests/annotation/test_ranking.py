from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from prefine.annotation.ranking import ranking
from prefine.annotation.records import Judgement
from tests.annotation.judging import judged


def of_counts(counts: dict[tuple[str, str], tuple[int, int, int]]) -> list[Judgement]:
    """Wins of the first, ties and wins of the second model; each vote on an item of its own."""
    found: list[Judgement] = []
    for pair, numbers in counts.items():
        for winner, number in zip((pair[0], "tie", pair[1]), numbers, strict=True):
            found += [judged(1 + len(found) + place, "ann", winner, pair) for place in range(number)]
    return found


def test_the_strengths_of_two_models_are_the_log_odds_of_the_wins() -> None:
    """30 wins, 10 ties and 10 losses are 35 of 50: log-odds ln(35 / 15), half of it on either side of 0."""
    found = ranking(of_counts({("new", "old"): (30, 10, 10)}))
    first, second = found.models
    assert (first.model, first.wins, first.ties, first.losses) == ("new", 30, 10, 10)
    assert (second.wins, second.ties, second.losses) == (10, 10, 30)
    assert first.strength == pytest.approx(math.log(35 / 15) / 2)
    assert second.strength == pytest.approx(-first.strength)
    assert first.over_next == pytest.approx(0.7)
    assert first.interval is not None
    assert first.interval.contains(first.strength)
    assert first.above_next
    assert found.sentences[0].startswith("1. new: strength +0.42 (95")
    assert "preferred to old in 70" in found.sentences[0]


COUNTS = {("a", "b"): (12, 3, 5), ("b", "c"): (9, 2, 9), ("c", "d"): (4, 0, 11), ("a", "d"): (7, 1, 6)}


def test_the_strengths_are_the_likeliest() -> None:
    names = "abcd"

    def loss(strengths: np.ndarray) -> float:
        total = 0.001 * strengths.sum() ** 2  # only differences count; this makes the mean 0
        for (one, other), (wins, ties, losses) in COUNTS.items():
            gap = strengths[names.index(one)] - strengths[names.index(other)]
            total += (wins + ties / 2) * np.logaddexp(0, -gap) + (losses + ties / 2) * np.logaddexp(0, gap)
        return float(total)

    expected = dict(zip(names, minimize(loss, np.zeros(4), tol=1e-10).x, strict=True))
    found = {each.model: each.strength for each in ranking(of_counts(COUNTS)).models}
    assert found == pytest.approx(expected, abs=1e-4)
    assert list(found) == sorted(found, key=lambda name: -expected[name])


def test_several_votes_on_an_item_are_not_more_items() -> None:
    """The same votes three times give the same strengths and intervals: items are what is drawn."""
    once = [judged(item, "ann", "new" if item % 3 else "old") for item in range(30)]
    thrice = [judged(each.item, who, each.winner.rpartition("-")[0]) for who in ("ann", "bob", "cem") for each in once]
    one, three = ranking(once), ranking(thrice)
    assert (one.items, one.votes, three.items, three.votes) == (30, 30, 30, 90)
    for single, triple in zip(one.models, three.models, strict=True):
        assert triple.strength == pytest.approx(single.strength)
        assert triple.interval == single.interval or (triple.interval and single.interval)
        assert triple.interval is not None
        assert single.interval is not None
        assert triple.interval.low == pytest.approx(single.interval.low)


def test_models_that_nobody_compared_are_not_ranked() -> None:
    found = ranking(of_counts({("a", "b"): (3, 0, 3), ("c", "d"): (2, 0, 2)}))
    assert found.models == ()
    assert found.sentences == ["No ranking: no votes compare a and b with c and d: add items that do."]


def test_a_model_that_always_won_has_no_finite_strength() -> None:
    found = ranking(of_counts({("a", "b"): (5, 0, 0), ("b", "c"): (3, 1, 3)}))
    assert found.models == ()
    assert "a won every comparison with the other models" in found.why_not
    with_a_tie = ranking(of_counts({("a", "b"): (5, 1, 0), ("b", "c"): (3, 1, 3)}))
    assert with_a_tie.models[0].model == "a"
    assert with_a_tie.models[0].interval is None  # in a third of the resamples a always wins
    assert with_a_tie.sentences[0].startswith("1. a: strength")
    assert "(no interval)" in with_a_tie.sentences[0]


def test_repeats_criteria_thumbs_and_answers_of_one_model_are_left_out() -> None:
    votes = of_counts({("new", "old"): (6, 0, 3)})
    more = [
        judged(1, "ann", "old", repeat=True),
        judged(1, "ann", "old", criterion="harmless"),
        judged(70, "ann", "up", ("new",)),
        judged(71, "ann", "tie", ("new", "new")),
    ]
    assert ranking([*votes, *more]) == ranking(votes)
    assert ranking(more[1:]).why_not == "there are no votes on answers of two models"


def test_a_model_without_votes_on_a_criterion_is_not_in_its_ranking() -> None:
    votes = of_counts({("a", "b"): (5, 0, 3), ("b", "c"): (4, 0, 2)})
    short = [judged(i, "ann", "a" if i % 3 else "b", ("a", "b"), criterion="short") for i in range(9)]
    found = ranking([*votes, *short], "short")
    assert [(each.model, each.wins, each.losses) for each in found.models] == [("a", 6, 3), ("b", 3, 6)]
