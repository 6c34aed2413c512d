from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa, fleiss_kappa

from prefine.annotation.agreement import (
    agreement,
    agreement_by_annotator,
    agreement_by_criterion,
    agreement_of_pairs,
    cohen_kappa,
    krippendorff_alpha,
)
from prefine.annotation.ranking import ranking
from tests.annotation.judging import judged, table

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": sections A, B and C.
MEG_AND_OWEN = ("0100000010", "1110010000")
BEN_AND_GERRY = ("aabbdcccedda", "babbbccceddd")
FOUR_OBSERVERS = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def by_unit(observers: tuple[str, ...]) -> list[list[float]]:
    return [[float(ord(value)) for value in unit if value != "."] for unit in zip(*observers, strict=True)]


@pytest.mark.parametrize(
    ("observers", "level", "alpha"),
    [
        (MEG_AND_OWEN, "nominal", 0.095),
        (BEN_AND_GERRY, "nominal", 0.692),
        (FOUR_OBSERVERS, "nominal", 0.743),
        (FOUR_OBSERVERS, "ordinal", 0.815),
        (FOUR_OBSERVERS, "interval", 0.849),
    ],
)
def test_alpha_is_krippendorffs(observers: tuple[str, ...], level: str, alpha: float) -> None:
    assert krippendorff_alpha(by_unit(observers), level) == pytest.approx(alpha, abs=0.0005)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=2, max_size=12))
def test_alpha_of_complete_votes_is_fleiss_kappa_corrected_for_its_sample(units: list[list[int]]) -> None:
    """α = κ + (1 - κ) / n for n values, as α draws pairs of values without putting the first one back."""
    counts = np.array([[unit.count(value) for value in range(3)] for unit in units])
    found = krippendorff_alpha(units)
    if (counts.sum(axis=0) > 0).sum() == 1:
        assert found is None
        return
    kappa = fleiss_kappa(counts[:, counts.sum(axis=0) > 0])
    assert found == pytest.approx(kappa + (1 - kappa) / counts.sum())


def test_alpha_is_not_defined_without_two_values() -> None:
    assert krippendorff_alpha([[1.0, 1.0], [1.0, 1.0]]) is None
    assert krippendorff_alpha([[1.0], [2.0]]) is None
    assert krippendorff_alpha([]) is None


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        ([[75, 1, 4], [5, 4, 1], [0, 0, 10]], 0.676),  # Fleiss, Cohen and Everitt 1969, Psych. Bulletin 72, table 1
        ([[20, 5], [10, 15]], 0.4),  # observed 0.7, by chance 0.5
        ([[25, 25], [25, 25]], 0.0),
        ([[0, 5], [5, 0]], -1.0),
        ([[3, 0], [0, 3]], 1.0),
    ],
)
def test_kappa_is_the_published_one(counts: list[list[int]], kappa: float) -> None:
    assert cohen_kappa(counts) == pytest.approx(kappa, abs=0.0005)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 30), min_size=3, max_size=3), min_size=3, max_size=3),
    st.sampled_from([("none", None), ("linear", "linear"), ("quadratic", "quadratic")]),
)
def test_kappa_is_that_of_statsmodels(counts: list[list[int]], weights: tuple[str, str | None]) -> None:
    expected = cohens_kappa(np.array(counts), wt=weights[1], return_results=False)
    assert cohen_kappa(counts, weights[0]) == pytest.approx(expected)  # type: ignore[arg-type]


def test_kappa_is_not_defined_if_both_always_say_the_same_thing() -> None:
    assert cohen_kappa([[4, 0], [0, 0]]) is None
    assert cohen_kappa([[0, 0], [0, 0]]) is None


VOTES = {"ann": "nnootnonnoon", "bob": "nnootnoonoon", "cem": "nootonn nt n"}


def test_votes_give_ordinal_alpha_with_an_interval() -> None:
    found = agreement(table(VOTES))
    units = [[{"n": 1, "t": 2, "o": 3}[vote[i]] for vote in VOTES.values() if vote[i] != " "] for i in range(12)]
    assert found.value == pytest.approx(krippendorff_alpha(units, "ordinal"))
    assert (found.items, found.votes) == (12, 34)
    assert found.interval is not None
    assert found.interval.low < found.value < found.interval.high  # type: ignore[operator]
    assert found.sentence.startswith("All annotators: Krippendorff's α = 0.")
    assert "Below 0.667" in found.sentence


def test_the_side_on_which_a_model_stands_does_not_change_alpha() -> None:
    turned = [
        judged(each.item, each.annotator, each.winner.rpartition("-")[0] or "tie", ("old", "new"))
        for each in table(VOTES)
    ]
    mixed = [a if a.item % 2 else b for a, b in zip(table(VOTES), turned, strict=True)]
    assert agreement(mixed).value == pytest.approx(agreement(table(VOTES)).value)


def test_an_annotator_is_compared_with_the_others_only() -> None:
    """Ann and Bob agree on all but one item, which Cem has not judged; Cem differs from both."""
    found = agreement_by_annotator(table(VOTES))
    assert found["cem"].value < found["bob"].value  # type: ignore[operator]
    assert found["ann"].value == pytest.approx(found["bob"].value)
    two = {name: VOTES[name] for name in ("ann", "bob")}
    of_two = agreement_by_annotator(table(two))
    assert of_two["ann"].value == pytest.approx(of_two["bob"].value)
    assert of_two["ann"].value == pytest.approx(agreement(table(two)).value)
    assert of_two["ann"].sentence.startswith("ann with the others: Krippendorff's α")


def test_two_annotators_have_cohens_kappa() -> None:
    found = agreement_of_pairs(table(VOTES))
    assert list(found) == [("ann", "bob"), ("ann", "cem"), ("bob", "cem")]
    # Rows ann, columns bob; o, t, n. They differ on item 8 only: ann says n and bob o.
    assert found["ann", "bob"].value == pytest.approx(
        cohens_kappa(np.array([[5, 0, 0], [0, 1, 0], [1, 0, 5]]), wt="linear").kappa
    )
    assert found["ann", "cem"].items == 10
    assert found["ann", "bob"].sentence.startswith("ann and bob: Cohen's κ = 0.8")


def test_criteria_are_counted_separately_and_repeats_not_at_all() -> None:
    harmless = table({"ann": "nnoo", "bob": "oonn"}, criterion="harmless")
    again = [judged(item, "bob", "old", repeat=True) for item in range(1, 13)]
    found = agreement_by_criterion([*table(VOTES), *harmless, *again])
    assert list(found) == ["harmless"]
    assert found["harmless"].value == pytest.approx(1 - 7 * 4 * 2 / (2 * 4 * 4))
    assert found["harmless"].interval is None  # four items are too few
    assert agreement([*table(VOTES), *harmless, *again]) == agreement(table(VOTES))


def test_what_is_not_known_is_said() -> None:
    assert "no item has votes of two annotators" in agreement(table({"ann": "no"})).sentence
    same = agreement(table({"ann": "nnnn", "bob": "nnnn"}))
    assert same.value is None
    assert "all votes are the same" in same.sentence
    perfect = agreement(table({"ann": "nnnoooo", "bob": "nnnoooo"}))
    assert perfect.value == 1
    assert perfect.interval is None  # no item differs, so a bootstrap has nothing to vary


def test_thumbs_agree_as_well() -> None:
    votes = [
        judged(item, who, "up" if (item + shift) % 3 else "down", ("new",))
        for who, shift in (("a", 0), ("b", 0))
        for item in range(9)
    ]
    votes[0] = judged(0, "a", "up", ("new",))
    found = agreement(votes)
    assert found.value == pytest.approx(krippendorff_alpha([[1, 0]] + [[bool(i % 3)] * 2 for i in range(1, 9)]))
    assert not math.isnan(found.value or math.nan)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_of_simulated_annotators_is_the_known_one(level: str) -> None:
    """Each gives the true value with a chance of √0.5, else one drawn like the true ones: α is 0.5 in the limit.

    Its standard error is about 0.013 with 2,000 items and three annotators.
    """
    rng = np.random.default_rng(8)
    shares = [0.4, 0.15, 0.45]
    true = rng.choice(3, (2_000, 1), p=shares)
    votes = np.where(rng.random((2_000, 3)) < math.sqrt(0.5), true, rng.choice(3, (2_000, 3), p=shares))
    assert krippendorff_alpha(votes.tolist(), level) == pytest.approx(0.5, abs=0.04)  # type: ignore[arg-type]


def test_a_ranking_is_one_vote_of_several_pairs() -> None:
    pairs = (("a", "b"), ("a", "c"), ("b", "c"))
    votes = [judged(item, who, pair[0], pair) for item in (1, 2) for who in ("ann", "bob") for pair in pairs]
    votes[0] = judged(1, "ann", "b", ("a", "b"))
    found = agreement(votes)
    assert (found.items, found.votes) == (2, 4)
    (pair,) = agreement_of_pairs(votes).values()
    assert (pair.items, pair.votes) == (2, 4)
    assert ranking(votes).votes == 4
