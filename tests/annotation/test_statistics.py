from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from scipy.stats import binomtest, fisher_exact

from prefine.annotation.records import Answer, Item, Judgement, Turn
from prefine.annotation.settling import settling
from prefine.annotation.statistics import (
    characters_of,
    consistency,
    fewest_seconds,
    paces,
    people_win_rate,
    side_bias,
    standings,
)
from tests.annotation.judging import judged, table


def test_an_item_counts_once_by_the_majority_of_its_votes() -> None:
    """Item by item: new; new (2 to 1); a tie (1 to 1); a tie; old; new, as the tie does not count against it."""
    votes = table({"ann": "nnntot", "bob": "nno on", "cem": "no   t"})
    found = people_win_rate(votes, "new", "old")
    assert (found.wins, found.ties, found.losses) == (3, 2, 1)
    assert found.rate is not None
    assert found.rate.value == pytest.approx(4 / 6)
    assert "the candidate wins 67" in found.sentence
    turned = people_win_rate(votes, "old", "new")
    assert (turned.wins, turned.ties, turned.losses) == (1, 2, 3)


def test_a_criterion_has_its_own_win_rate_and_other_models_do_not_count() -> None:
    votes = [*table({"ann": "nnn"}), *table({"ann": "oo"}, criterion="harmless"), judged(9, "ann", "x", ("old", "x"))]
    assert people_win_rate(votes, "new", "old").wins == 3
    found = people_win_rate(votes, "new", "old", "harmless")
    assert (found.judge, found.wins, found.losses) == ("people, harmless", 0, 2)
    assert people_win_rate(votes, "new", "x").finding == "not computed"


def test_people_who_prefer_longer_answers_are_found_out() -> None:
    votes = [judged(item, "ann", "new" if item % 4 else "old") for item in range(60)]
    lengths = {f"new-{item}": 100 + 10 * (item % 4) + item % 7 for item in range(60)}
    lengths |= {f"old-{item}": 104 for item in range(60)}
    found = people_win_rate(votes, "new", "old", lengths=lengths)
    assert found.warnings
    assert people_win_rate(votes, "new", "old").length_controlled is None


def sided(annotator: str, firsts: int, count: int) -> list[Judgement]:
    """Votes for the new model's answer, which is shown first in `firsts` of them."""
    return [judged(item, annotator, "new", first=0 if item <= firsts else 1) for item in range(1, count + 1)]


def test_a_side_bias_is_tested_exactly_and_corrected_for_the_number_of_annotators() -> None:
    everyone, ann, bob = side_bias([*sided("ann", 15, 20), *sided("bob", 10, 20), judged(40, "bob", "tie")])
    assert (everyone.annotator, everyone.first, everyone.decided) == (None, 25, 40)
    assert everyone.p == pytest.approx(binomtest(25, 40).pvalue)
    assert (ann.first, ann.decided) == (15, 20)
    assert ann.p == pytest.approx(0.04139, abs=1e-5)  # 2 · (C(20,15) + … + C(20,20)) / 2**20
    assert ann.p_adjusted == pytest.approx(2 * ann.p)
    assert not ann.shown
    assert bob.p == 1
    assert "no preference for a side shown" in ann.sentence
    assert side_bias(sided("ann", 18, 20))[1].shown
    assert (
        "the answer shown first was preferred in 18 of 20 decided votes, 90"
        in side_bias(sided("ann", 18, 20))[1].sentence
    )


def test_an_annotator_without_a_test_does_not_count_in_the_correction() -> None:
    found = side_bias([*sided("ann", 15, 20), judged(40, "bob", "tie")])
    assert found[1].p_adjusted == pytest.approx(found[1].p)
    assert (found[2].decided, found[2].p_adjusted, found[2].shown) == (0, 1.0, False)
    assert found[2].sentence == "bob: no vote for one of two answers."


def test_a_ranking_counts_with_one_pair() -> None:
    votes = [judged(1, "ann", "a", pair, vote=7) for pair in (("a", "b"), ("a", "c"), ("a", "d"))]
    assert side_bias(votes)[0].decided == 1


def test_hidden_repeats_show_how_consistent_an_annotator_is() -> None:
    votes = table({"ann": "nnoot", "bob": "nn"})
    again = [
        judged(item, "ann", winner, repeat=True) for item, winner in ((1, "new"), (2, "old"), (5, "tie"), (9, "new"))
    ]
    everyone, ann, bob = consistency([*again, *votes])
    assert (ann.same, ann.repeats) == (2, 3)  # item 9 came only once
    assert (everyone.same, everyone.repeats, bob.repeats) == (2, 3, 0)
    assert ann.sentence.startswith("ann: the same judgement on 2 of 3 hidden repeats, 67")
    assert bob.sentence == "bob: no hidden repeats yet."


def ranked(item: int, annotator: str, order: str, vote: int, *, repeat: bool = False) -> list[Judgement]:
    """A ranking without ties: the judgements on its pairs."""
    return [
        judged(item, annotator, min(pair, key=order.index), pair, vote=vote, repeat=repeat)
        for pair in combinations(sorted(order), 2)
    ]


def test_a_ranking_is_one_repeat() -> None:
    votes = ranked(1, "ann", "abcd", 1) + ranked(2, "ann", "abcd", 2)
    again = ranked(1, "ann", "abdc", 3, repeat=True) + ranked(2, "ann", "abcd", 4, repeat=True)
    found = consistency([*votes, *again])[1]
    assert (found.same, found.repeats) == (1, 2)


def test_a_ranking_is_one_observation_beside_the_majority() -> None:
    votes = [*ranked(1, "ann", "abcd", 1), *ranked(1, "bob", "abcd", 2), *ranked(1, "cem", "dcba", 3)]
    found = {each.annotator: each for each in standings(votes)}
    assert (found["cem"].agreed, found["cem"].judged) == (0, 1)
    assert (found["ann"].judged, found["ann"].others_judged) == (0, 1)  # bob and cem have no majority
    close = [*ranked(1, "ann", "abcd", 1), *ranked(1, "bob", "abcd", 2), *ranked(1, "cem", "abdc", 3)]
    assert (standings(close)[2].agreed, standings(close)[2].judged) == (1, 1)  # on five of six pairs


def test_an_item_with_several_answers_of_a_model_is_one_observation() -> None:
    pairs = [
        replace(judged(1, "ann", winner), answers=answers, winner=answers[("new", "old").index(winner)])
        for winner, answers in (("new", ("n1", "o1")), ("new", ("n2", "o1")), ("old", ("n1", "o2")))
    ]
    found = people_win_rate(pairs, "new", "old")
    assert (found.wins, found.ties, found.losses) == (1, 0, 0)
    assert settling(pairs, "new", "old").labels == 1


def test_who_differs_from_the_majority_of_the_others_is_an_outlier() -> None:
    right = "no" * 20
    wrong = "on" * 20
    found = {
        each.annotator: each for each in standings(table({"ann": right, "bob": right, "cem": right, "dan": wrong}))
    }
    assert (found["dan"].agreed, found["dan"].judged) == (0, 40)
    # Of ann's others, two say as ann does and dan does not.
    assert (found["ann"].agreed, found["ann"].judged) == (40, 40)
    assert (found["dan"].others_agreed, found["dan"].others_judged) == (120, 120)
    assert [name for name, each in found.items() if each.outlier] == ["dan"]
    assert found["dan"].p == pytest.approx(fisher_exact([[0, 40], [120, 0]], alternative="less").pvalue)
    assert "dan: agrees with the majority on 0 of 40 items, 0" in found["dan"].sentence
    assert "less often than the others" in found["dan"].sentence


def test_of_two_annotators_neither_is_the_outlier() -> None:
    found = standings(table({"ann": "nnnnnnnnnn", "bob": "oooooooooo"}))
    assert [each.agreed for each in found] == [0, 0]
    assert not any(each.outlier for each in found)


def test_an_annotator_without_common_items_has_no_standing() -> None:
    found = standings([*table({"ann": "nnn", "bob": "nno"}), judged(9, "cem", "new")])
    assert found[2].sentence == "cem: cannot be compared with other annotators: too few common items."
    # An item on which the others are as many for each side does not count.
    assert standings(table({"ann": "n", "bob": "n", "cem": "o"}))[2].judged == 1
    assert standings(table({"ann": "n", "bob": "n", "cem": "o"}))[0].judged == 0


def test_votes_are_too_fast_if_nobody_could_have_read_the_answers() -> None:
    """Answers of 360 characters take 360 / 72 = 5 seconds at least."""
    item = Item(1, "1", (Turn("user", "a question" * 100),), "", (Answer("a", "x" * 200), Answer("b", "y" * 160)))
    characters = dict.fromkeys(range(1, 21), characters_of([item])[1])
    assert characters[1] == 360
    votes = [judged(i, "ann", "new", seconds=4.9 if i <= 12 else 5.1) for i in range(1, 21)]
    votes += [judged(i, "bob", "new", seconds=6.0) for i in range(1, 21)]
    ann, bob = paces(votes, characters)
    assert (ann.too_fast, ann.votes, bob.too_fast) == (12, 20, 0)
    assert ann.hasty
    assert not bob.hasty
    assert ann.sentence.startswith("ann: too fast to have read the answers: 12 of 20 votes, 60")
    assert fewest_seconds(10_000) == 15
    assert paces([judged(1, "ann", "new", seconds=0.0)], characters)[0].sentence == "ann: no times are known."
