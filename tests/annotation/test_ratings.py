from __future__ import annotations

import pytest

from prefine.annotation.ratings import DRAW, LOSS, WIN, majority, rated, value_of
from tests.annotation.judging import judged


def test_a_value_is_from_the_side_of_the_first_model_of_the_alphabet() -> None:
    assert value_of(judged(1, "ann", "new", ("old", "new"))) == WIN
    assert value_of(judged(1, "ann", "old", ("old", "new"))) == LOSS
    assert value_of(judged(1, "ann", "tie")) == DRAW
    assert value_of(judged(1, "ann", "down", ("new",))) == LOSS


def test_the_later_of_two_judgements_counts_and_repeats_do_not() -> None:
    votes = [judged(1, "ann", "new"), judged(1, "ann", "old"), judged(1, "ann", "new", repeat=True)]
    (unit,) = rated(votes)
    assert unit.values == {"ann": LOSS}
    assert rated(votes, "harmless") == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [([WIN, WIN, LOSS], WIN), ([WIN, LOSS], None), ([DRAW], DRAW), ([], None), ([WIN, DRAW, LOSS], None)],
)
def test_the_majority_is_a_single_value(values: list[float], expected: float | None) -> None:
    assert majority(values) == expected
