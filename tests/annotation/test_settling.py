from __future__ import annotations

import math

import pytest
from scipy.integrate import quad
from scipy.stats import beta

from prefine.annotation.settling import _log_evidence, settling
from tests.annotation.judging import judged, table


def evidence(wins: int, losses: int) -> float:
    """The mean likelihood ratio of rates from Beta(5, 5) to a rate of one half."""
    return float(quad(lambda rate: (2 * rate) ** wins * (2 - 2 * rate) ** losses * beta(5, 5).pdf(rate), 0, 1)[0])


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 5), (20, 9)])
def test_evidence_is_a_mean_likelihood_ratio(wins: int, losses: int) -> None:
    assert math.exp(_log_evidence(wins, losses)) == pytest.approx(evidence(wins, losses))
    # A martingale if the models are equal: the next verdict does not change it on average.
    following = (math.exp(_log_evidence(wins + 1, losses)) + math.exp(_log_evidence(wins, losses + 1))) / 2
    assert following == pytest.approx(math.exp(_log_evidence(wins, losses)))


def test_it_is_settled_where_the_evidence_first_reaches_twenty() -> None:
    needed = next(wins for wins in range(1, 50) if evidence(wins, 0) >= 20)
    found = settling(table({"ann": "n" * 20}), "new", "old")
    assert (found.leader, found.labels, found.leads_since) == ("new", 20, 1)
    assert found.settled_at == needed
    assert found.more is None
    assert found.p == pytest.approx(1 / evidence(20, 0))
    assert found.sentence == (
        f"new has been ahead since label 1 of 20. From label {needed} it is settled: you may stop labelling."
    )


def test_ties_are_no_evidence_and_labels_on_one_item_are_one_observation() -> None:
    once, tied = settling(table({"ann": "nnno"}), "new", "old"), settling(table({"ann": "nntntot"}), "new", "old")
    assert tied.p == once.p
    thrice = settling(table({"ann": "nnno", "bob": "nnno", "cem": "nnno"}), "new", "old")
    assert thrice.p == once.p
    assert (once.labels, tied.labels, thrice.labels) == (4, 7, 12)


def test_the_leader_is_the_one_who_has_been_ahead_without_a_break() -> None:
    """The balance of new is 1, 0, -1, -1, 0, 1, 2: ahead since the sixth label."""
    found = settling(table({"ann": "nootnnn"}), "new", "old")
    assert (found.leader, found.leads_since) == ("new", 6)
    level = settling(table({"ann": "noon"}), "new", "old")
    assert (level.leader, level.leads_since, level.more) == (None, None, None)
    assert level.sentence == "Neither model is ahead after 4 labels."
    assert settling([], "new", "old").sentence == "Neither model is ahead after 0 labels."


def test_items_come_in_the_order_of_their_last_labels() -> None:
    votes = [judged(1, "ann", "old", at=1.0), judged(2, "ann", "new", at=2.0), judged(1, "bob", "old", at=3.0)]
    votes.append(judged(3, "ann", "old", at=4.0))
    found = settling(votes, "new", "old")
    # new is ahead at label 1, nobody at label 3, old at label 4.
    assert (found.leader, found.leads_since, found.labels) == ("old", 4, 4)


def test_more_labels_are_as_many_as_settle_it_at_the_same_rate() -> None:
    votes = table({"ann": "nnnoo" * 4})
    found = settling(votes, "new", "old")
    assert found.settled_at is None
    assert found.more is not None
    factor = 1 + found.more / 20
    assert _log_evidence(12 * factor, 8 * factor) >= math.log(20)
    fewer = 1 + (found.more * 0.9 - 1) / 20
    assert _log_evidence(12 * fewer, 8 * fewer) < math.log(20)
    assert f"about {found.more} more labels would" in found.sentence


def test_a_lead_that_turned_after_it_was_settled_is_called_that() -> None:
    found = settling(table({"ann": "n" * 12 + "o" * 20}), "new", "old")
    assert found.leader == "old"
    assert found.settled_at is not None
    assert found.settled_at <= 12
    assert "settled it for the other model" in found.sentence


def test_repeats_and_other_criteria_settle_nothing() -> None:
    votes = table({"ann": "nno"})
    more = [judged(1, "ann", "old", repeat=True, at=99.0), *table({"ann": "oooo"}, criterion="harmless")]
    assert settling([*votes, *more], "new", "old") == settling(votes, "new", "old")
    assert settling([*votes, *more], "new", "old", "harmless").leader == "old"
