from __future__ import annotations

import math
from statistics import fmean

import pytest

from prefine.annotation.priorities import expected_information, mixed_order, priorities
from prefine.errors import PrefineError


def entropy(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_information_is_the_entropy_of_the_mean_less_the_mean_entropy() -> None:
    """Two heads whose differences are 2, 1 and 1, -1: divided by their root mean squares, √2.5 and 1."""
    found = expected_information({1: [(2.0, 1.0), (0.0, 0.0)], 2: [(1.0, 0.0), (0.0, 1.0)]})
    chances = {1: [sigmoid(2 / math.sqrt(2.5)), sigmoid(1)], 2: [sigmoid(1 / math.sqrt(2.5)), sigmoid(-1)]}
    for item, own in chances.items():
        assert found[item] == pytest.approx(entropy(fmean(own)) - fmean(map(entropy, own)))
    assert found[2] > 10 * found[1]


def test_heads_that_agree_tell_nothing_and_their_scale_does_not_count() -> None:
    scores = {1: [(3.0, 0.5, 1.0), (1.0, 0.1, 0.0)], 2: [(0.0, 0.0, 0.4), (0.0, 0.0, 0.0)], 3: [(1.0, 1.0, 1.0)]}
    scaled = {item: [(a, 100 * b, c / 7) for a, b, c in answers] for item, answers in scores.items()}
    assert expected_information(scaled) == pytest.approx(expected_information(scores))
    same = {item: [(each, each) for each in values] for item, values in {1: (1.0, 0.0), 2: (4.0, 1.0)}.items()}
    assert expected_information(same) == pytest.approx({1: 0.0, 2: 0.0})
    assert expected_information(scores)[3] == 0
    assert expected_information({}) == {}
    assert expected_information({5: [(0.0, 0.0), (0.0, 0.0)]}) == {5: 0.0}


def test_an_item_with_several_answers_counts_with_the_mean_over_its_pairs() -> None:
    apart = {1: [(1.0, 2.0), (0.0, 4.0)], 2: [(1.0, 2.0), (3.0, 0.0)], 3: [(0.0, 4.0), (3.0, 0.0)]}
    together = {1: [(1.0, 2.0), (0.0, 4.0), (3.0, 0.0)]}
    assert expected_information(together)[1] == pytest.approx(fmean(expected_information(apart).values()))


def test_disagreement_needs_two_heads_and_finite_scores() -> None:
    with pytest.raises(PrefineError, match="has one head, and disagreement needs at least two"):
        expected_information({1: [(1.0,), (0.0,)]})
    with pytest.raises(PrefineError, match="not a finite number"):
        expected_information({1: [(1.0, math.nan), (0.0, 1.0)]})


def test_without_chance_the_most_informative_comes_first() -> None:
    information = {item: float(item * 37 % 101) for item in range(100)}
    assert mixed_order(information, 0, chance=0.0) == sorted(information, key=lambda item: -information[item])


def test_chance_fills_its_share_of_the_places() -> None:
    information = {item: float(item) for item in range(2_000)}
    order = mixed_order(information, 1, chance=0.2)
    assert sorted(order) == list(range(2_000))
    # Without chance the first 500 would be the 500 best; a fifth is drawn from all others, a quarter of them best, too.
    best = sum(item >= 1_500 for item in order[:500])
    assert 500 * 0.8 < best < 500 * 0.9
    assert mixed_order(information, 1, chance=0.2) == order
    assert mixed_order(information, 2, chance=0.2) != order
    assert mixed_order(information, 1, chance=1.0) != sorted(information)


def test_items_of_equal_information_come_in_random_order() -> None:
    assert mixed_order(dict.fromkeys(range(50), 0.0), 3, chance=0.0) != list(range(50))


def test_priorities_fall_along_the_order() -> None:
    scores = {item: [(float(item % 3), float(item % 5)), (1.0, 1.0)] for item in range(1, 11)}
    found = priorities(scores, seed=0)
    assert sorted(found.values()) == [float(number) for number in range(1, 11)]
    assert sorted(found, key=lambda item: -found[item]) == mixed_order(expected_information(scores), 0)
