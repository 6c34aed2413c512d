"""What is read off a reward model's scores: pairs out of records, and every figure worked by hand or by an oracle."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from prefine.errors import DataError
from prefine.evaluation.readiness import measures
from prefine.evaluation.readiness.assess import Readiness, assess, work
from prefine.evaluation.readiness.pairs import JudgedPair, ScoredAnswer, as_trained_on, judge
from prefine.evaluation.readiness.verdict import Level
from prefine.intervals import Share, evenly_chosen
from prefine.models.scoring.scorer import Question, RewardModel, Score
from prefine.recipe.reward import ReadinessSection
from prefine.records import Conversation, Message, Preference, Vote

Judge = Callable[[str, str], float]


class Fake(RewardModel):
    """A reward model that is a function of prompt and answer, for each of its heads. A token is a word.

    Args:
        heads: score(prompt, answer) each.
        longest: words of the longest answer that fits.

    Attributes:
        asked: questions it was asked so far.
    """

    def __init__(self, *heads: Judge, longest: int = 10**9) -> None:
        self.name = "fake"
        self.scale = None
        self.tokenizer = None
        self.asked = 0
        self._heads = heads
        self._longest = longest

    def score(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        """One question at a time."""
        for question in questions:
            self.asked += 1
            fits = all(words("", answer) <= self._longest for answer in question.answers)
            yield [self.one(question.prompt, answer) for answer in question.answers] if fits else None

    def lengths(self, question: Question) -> list[int] | None:
        """Words."""
        return [words(question.prompt[-1].content, answer) for answer in question.answers]

    @property
    def network(self) -> None:
        """None: it is a function."""

    def one(self, prompt: Conversation, answer: str) -> Score:
        """One answer's score."""
        heads = tuple(float(head(prompt[-1].content, answer)) for head in self._heads)
        return Score(statistics.fmean(heads), heads, len(answer.split()))


def words(prompt: str, answer: str) -> float:
    """Longer is better."""
    return len(answer.split())


def sensible(prompt: str, answer: str) -> float:
    """Words of the prompt are good, each once; every word costs a little."""
    said = answer.split()
    return len(set(said) & set(prompt.split())) - 0.1 * len(said)


def asked(text: str) -> Conversation:
    return (Message(role="user", content=text),)


def preference(prompt: str, chosen: str, rejected: str, **more: object) -> Preference:
    return Preference.model_validate(
        {"prompt": asked(prompt), "chosen": chosen, "rejected": rejected, **more}, strict=True
    )


def vote(prompt: str, completion: str, label: bool) -> Vote:
    return Vote(prompt=asked(prompt), completion=completion, label=label)


def judged(reward: RewardModel, records: Iterable[Preference | Vote]) -> list[JudgedPair]:
    """The pairs of records that all fit."""
    return [pair for pair in judge(reward, records) if pair is not None]


def pair(
    margin: float, *, chosen: int = 1, rejected: int = 1, group: str = "", data: float | None = None, apart: float = 0.0
) -> JudgedPair:
    """A pair with a margin, so many tokens, and heads that disagree so far."""
    better, worse = Score(margin, (margin,), chosen), Score(0.0, (0.0,), rejected)
    return JudgedPair(
        id=f"{margin}",
        group=group,
        chosen=ScoredAnswer(asked("Q"), "good", better),
        rejected=ScoredAnswer(asked("Q"), "bad", worse),
        data_margin=data,
        margin=margin,
        disagreement=apart,
    )


def pairs(*margins: float) -> list[JudgedPair]:
    return [pair(margin) for margin in margins]


# --- Records become pairs --------------------------------------------------------------------------------------------


def test_a_pair_has_its_scores_margin_and_disagreement() -> None:
    """Two heads say 3 - 1 = 2 and 4 - 5 = -1: 0.5 on the mean, 1.5 apart from it."""
    heads = ({"good answer": 3.0, "bad": 1.0}, {"good answer": 4.0, "bad": 5.0})
    reward = Fake(lambda prompt, answer: heads[0][answer], lambda prompt, answer: heads[1][answer])
    record = preference("Q", "good answer", "bad", id="p-1", margin=2.5, extra={"subset": "chat"})
    (found,) = judged(reward, [record])
    assert (found.id, found.group, found.data_margin, found.trained_on) == ("p-1", "chat", 2.5, False)
    assert (found.margin, found.disagreement) == (0.5, 1.5)
    assert (found.chosen.answer, found.chosen.score) == ("good answer", Score(3.5, (3.0, 4.0), 2))
    assert (found.rejected.answer, found.rejected.score) == ("bad", Score(3.0, (1.0, 5.0), 1))
    assert found.chosen.prompt == record.prompt
    assert (found.agrees, found.longer) == (True, 1)


def test_both_answers_are_asked_about_in_one_question() -> None:
    reward = Fake(words)
    assert len(judged(reward, [preference("Q", "a b", "a"), preference("R", "a", "a b")])) == 2
    assert reward.asked == 2


def test_ties_are_left_out_and_pairs_without_an_id_are_numbered() -> None:
    records = [preference("Q", "a b", "a"), preference("Q", "x", "y", tie=True), preference("R", "a", "a b")]
    found = judged(Fake(words), records)
    assert [(each.id, each.margin) for each in found] == [("pair 1", 1.0), ("pair 2", -1.0)]


@pytest.mark.parametrize(
    ("extra", "group"),
    [
        ({"subset": "chat", "category": "other"}, "chat"),
        ({"category": "billing"}, "billing"),
        ({"subset": 7}, "7"),
        ({"subset": ["chat"], "category": "billing"}, "billing"),
        ({"topic": "billing"}, ""),
        ({}, ""),
    ],
)
def test_a_pairs_group_is_its_subset_or_category(extra: dict[str, object], group: str) -> None:
    (found,) = judged(Fake(words), [preference("Q", "a b", "a", extra=extra)])
    assert found.group == group


def test_an_answer_that_does_not_fit_leaves_a_hole_and_its_neighbours_alone() -> None:
    records = [preference("Q", "a b", "a"), preference("Q", "a b c d", "a"), preference("Q", "a", "a b")]
    found = list(judge(Fake(words, longest=3), records))
    assert [each and each.margin for each in found] == [1.0, None, -1.0]


def test_votes_become_pairs_as_they_come() -> None:
    """The first up goes with the first down, whatever their prompts; the fourth up is left over."""
    votes = [
        vote("A", "u one", True),
        vote("B", "u two x", True),
        vote("C", "d", False),
        vote("D", "u three x y", True),
        vote("E", "d d", False),
        vote("F", "d d d", False),
        vote("G", "u four", True),
    ]
    found = judged(Fake(words), votes)
    told = [(each.chosen.prompt[0].content, each.rejected.prompt[0].content, each.margin) for each in found]
    assert told == [("A", "C", 1.0), ("B", "E", 1.0), ("D", "F", 1.0)]
    assert [each.data_margin for each in found] == [None] * 3


@pytest.mark.parametrize("place", [0, 1])
def test_a_vote_that_does_not_fit_takes_its_pair_along_and_no_other(place: int) -> None:
    votes = [vote("A", "u u", True), vote("B", "d", False)]
    votes[place] = votes[place].model_copy(update={"completion": "much too long to fit"})
    after = [vote("C", "u u", True), vote("D", "d", False)]
    assert [each and each.margin for each in judge(Fake(words, longest=3), [*votes, *after])] == [None, 1.0]


@given(st.lists(st.booleans(), max_size=40))
def test_each_vote_is_used_once_and_in_its_order(labels: list[bool]) -> None:
    votes = [vote(f"Q{number}", "a", label) for number, label in enumerate(labels)]
    found = judged(Fake(words), votes)
    for wanted, side in ((True, "chosen"), (False, "rejected")):
        used = [getattr(each, side).prompt[0].content for each in found]
        assert used == [each.prompt[0].content for each in votes if each.label is wanted][: len(found)]
    assert len(found) == min(labels.count(True), labels.count(False))


def test_records_are_judged_while_they_come() -> None:
    endless = (preference(f"Q{number}", "a b", "a") for number in count())
    reward = Fake(words)
    assert len(list(islice(judge(reward, endless), 3))) == 3
    assert reward.asked == 3


def test_a_pair_learned_from_is_judged_by_the_head_that_left_it_out() -> None:
    reward = Fake(words, lambda prompt, answer: -words(prompt, answer))
    (found,) = judged(reward, [preference("Q", "a b c", "a")])
    assert found.margin == 0.0
    assert [as_trained_on(found, head).margin for head in (None, 0, 1)] == [0.0, 2.0, -2.0]
    assert [as_trained_on(found, head).trained_on for head in (None, 0, 1)] == [True] * 3


@given(st.integers(0, 500), st.integers(1, 60))
def test_places_are_chosen_evenly(size: int, most: int) -> None:
    chosen = list(evenly_chosen(size, most))
    assert len(chosen) == min(size, most)
    assert len(set(chosen)) == len(chosen)
    assert all(0 <= place < size for place in chosen)
    if size and most > 1:
        assert (chosen[0], chosen[-1]) == (0, size - 1)
    gaps = {after - before for before, after in pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1


# --- Accuracy --------------------------------------------------------------------------------------------------------


def test_accuracy_counts_the_higher_score_and_an_equal_one_is_no_agreement() -> None:
    share = measures.accuracy(pairs(2.0, 0.1, -3.0, 0.0))
    assert share is not None
    assert (share.value, share.count) == (0.5, 4)
    assert measures.accuracy([]) is None


def test_accuracy_by_group_keeps_the_order_of_the_data() -> None:
    data = [pair(1, group="b"), pair(1, group="a"), pair(-1, group="b"), pair(-1), pair(1, group="a")]
    told = [(part.name, part.accuracy.value, part.accuracy.count) for part in measures.by_group(data)]
    assert told == [("b", 0.5, 2), ("a", 1.0, 2), ("(none)", 0.0, 1)]


def test_without_groups_there_are_no_parts() -> None:
    assert measures.by_group(pairs(1, -1)) == []
    assert measures.by_group([]) == []


def test_accuracy_by_the_datas_margin_is_by_quarters() -> None:
    """Eight pairs of margins 1 to 8, two a quarter; those that do not say how much better are left out."""
    data = [pair(1 if size > 4 else -1, data=float(size)) for size in (8, 1, 7, 2, 6, 3, 5, 4)]
    found = measures.by_data_margin([*data, pair(1), pair(-1)])
    told = [(part.name, part.accuracy.value, part.accuracy.count) for part in found]
    assert told == [
        ("1.00 to 2.00", 0.0, 2),
        ("3.00 to 4.00", 0.0, 2),
        ("5.00 to 6.00", 1.0, 2),
        ("7.00 to 8.00", 1.0, 2),
    ]
    assert measures.by_data_margin(pairs(1, -1)) == []


def test_accuracy_by_the_models_margin_goes_by_its_size() -> None:
    found = measures.by_score_margin(pairs(-0.25, 4, -1, 3))
    told = [(part.name, part.accuracy.value) for part in found]
    assert told == [("0.25 to 0.25", 0.0), ("1.00 to 1.00", 0.0), ("3.00 to 3.00", 1.0), ("4.00 to 4.00", 1.0)]
    assert [part.accuracy.count for part in measures.by_score_margin(pairs(1))] == [1]
    assert measures.by_score_margin([]) == []


SIZES = st.lists(st.sampled_from([0.0, 0.001, 0.002, 1.0, 2.0, 3.0]), max_size=30)


@given(SIZES)
def test_no_pair_is_lost_between_the_parts(sizes: list[float]) -> None:
    """Margins are often whole numbers or nearly equal."""
    for found in (
        measures.by_data_margin([pair(1, data=size) for size in sizes]),
        measures.by_score_margin(pairs(*sizes)),
    ):
        assert sum(part.accuracy.count or 0 for part in found) == len(sizes)
        assert len(found) <= 4


# --- Calibration -----------------------------------------------------------------------------------------------------


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_calibration_by_hand() -> None:
    """Ten pairs at 0.95, nine of them right, and ten at 0.65, five right: (10 · 0.05 + 10 · 0.15) / 20 = 0.1."""
    sure, unsure = logit(0.95), logit(0.65)
    found = measures.calibration(pairs(*[sure] * 9, -sure, *[unsure] * 5, *[-unsure] * 5))
    assert found is not None
    assert found.error == pytest.approx(0.1)
    first, last = found.bins
    assert (first.low, first.high, last.low, last.high) == pytest.approx((0.6, 0.7, 0.9, 1.0))
    assert (first.confidence, last.confidence) == pytest.approx((0.65, 0.95))
    assert (first.accuracy.value, first.accuracy.count, last.accuracy.value, last.accuracy.count) == (0.5, 10, 0.9, 10)


def test_a_model_that_is_right_as_often_as_it_is_sure_has_no_error() -> None:
    sure = logit(0.75)
    found = measures.calibration(pairs(sure, sure, sure, -sure))
    assert found is not None
    assert found.error == pytest.approx(0.0, abs=1e-12)


def test_confidence_at_its_ends_has_a_bin() -> None:
    found = measures.calibration(pairs(0.0, 1e6, -1e6))
    assert found is not None
    assert [(one.confidence, one.accuracy.value, one.accuracy.count) for one in found.bins] == [
        (0.5, 0.0, 1),
        (1.0, 0.5, 2),
    ]
    assert measures.calibration([]) is None


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=40))
def test_the_calibration_error_is_its_textbook_sum(margins: list[float]) -> None:
    """Σ over bins of |pairs right - sum of confidences|, over all pairs (Guo et al. 2017, eq. 3 multiplied out)."""
    found = measures.calibration(pairs(*margins))
    assert found is not None
    sure = [1 / (1 + math.exp(-abs(margin))) for margin in margins]
    inside = [
        [i for i, own in enumerate(sure) if one.low <= own < one.high or own >= 1 == one.high] for one in found.bins
    ]
    # A confidence on a bin's very edge may fall to either side by rounding: then there is nothing to compare.
    if [len(own) for own in inside] != [one.accuracy.count for one in found.bins]:
        assert any(abs(10 * own - round(10 * own)) < 1e-9 for own in sure)
        return
    textbook = sum(abs(sum(margins[i] > 0 for i in own) - sum(sure[i] for i in own)) for own in inside) / len(margins)
    assert found.error == pytest.approx(textbook)
    assert 0 <= found.error <= 1


def test_probability_is_the_sigmoid_and_never_overflows() -> None:
    assert measures.probability(0.0) == 0.5
    assert measures.probability(math.log(3)) == pytest.approx(0.75)
    assert measures.probability(-math.log(3)) == pytest.approx(0.25)
    assert (measures.probability(1e9), measures.probability(-1e9)) == (1.0, 0.0)


# --- Length ----------------------------------------------------------------------------------------------------------


def test_length_bias_by_hand() -> None:
    """Four uneven pairs: the chosen one is longer in three; the model likes the longer one in two of them and in the
    fourth. The fifth is even."""
    data = [
        pair(1, chosen=9, rejected=3),
        pair(2, chosen=5, rejected=4),
        pair(-1, chosen=8, rejected=2),
        pair(-1, chosen=2, rejected=8),
        pair(-1, chosen=4, rejected=4),
    ]
    found = measures.length_bias(data)
    shares = (found.people, found.model, found.chosen_longer, found.chosen_shorter)
    assert [share and (share.value, share.count) for share in shares] == [
        (0.75, 4),
        (0.75, 4),
        (pytest.approx(2 / 3), 3),
        (0.0, 1),
    ]
    assert found.pair_correlation is None  # five pairs are too few


def test_answers_of_equal_length_say_nothing_about_length() -> None:
    found = measures.length_bias(pairs(*range(1, 13)))
    shares = (found.people, found.model, found.chosen_longer, found.chosen_shorter)
    assert shares == (None,) * 4
    assert found.correlation is None


def test_the_correlations_are_spearmans() -> None:
    draw = random.Random(1)
    data = [pair(draw.gauss(0, 1), chosen=draw.randint(1, 9), rejected=draw.randint(1, 9)) for _ in range(30)]
    found = measures.length_bias(data)
    sides = [side.score for each in data for side in (each.chosen, each.rejected)]
    over_all = spearmanr([side.tokens for side in sides], [side.score for side in sides]).statistic
    differences = [each.chosen.score.tokens - each.rejected.score.tokens for each in data]
    within = spearmanr(differences, [each.margin for each in data]).statistic
    assert found.correlation is not None
    assert found.pair_correlation is not None
    assert found.correlation[0] == pytest.approx(over_all)
    assert found.pair_correlation[0] == pytest.approx(within)
    assert found.pair_correlation[1].contains(within)


def test_a_model_without_an_opinion_does_not_prefer_length() -> None:
    """Equal scores pick neither answer."""
    found = measures.length_bias([pair(0, chosen=1, rejected=5), pair(0, chosen=1, rejected=9)])
    assert found.model is None
    assert found.people == Share(0.0, 2)


# --- Suspects --------------------------------------------------------------------------------------------------------


def test_suspects_are_improbable_labels_the_worst_first() -> None:
    below = [-2.0, -9.0, -1.5]  # σ(-1.4) is 0.198 and σ(-1.3) 0.214
    assert [each.margin for each in measures.suspects(pairs(3, -2, -1.3, 0, -9, -1.5), 0.2)] == sorted(below)
    assert measures.suspects(pairs(3, 0.1), 0.2) == []


def test_heads_that_do_not_agree_on_the_side_suspect_nothing() -> None:
    found = measures.suspects([pair(-2, apart=2.5), pair(-2, apart=1.9), pair(-2, apart=2.0)], 0.2)
    assert [each.disagreement for each in found] == [1.9]


# --- All together ----------------------------------------------------------------------------------------------------


def answers(number: int, *, long: bool) -> tuple[str, str, str]:
    """A prompt, an answer that repeats its words, and one that does not, the good one short or long."""
    prompt = f"parcel{number} late{number} lyon{number}"
    good = f"parcel{number} late{number} lyon{number}"
    return (prompt, f"{good} so very sorry", "no idea") if long else (prompt, good, "no idea at all my friend")


def readiness(reward: RewardModel, records: Sequence[Preference]) -> Readiness:
    return assess(reward, records, ReadinessSection(), data="made up")


LENGTH = ("pairs whose shorter answer was preferred", "prefers the longer answer")


def length_levels(found: Readiness) -> list[Level]:
    return [finding.level for finding in found.findings if finding.name in LENGTH]


def test_a_set_where_longer_always_wins_is_called_out_and_a_balanced_one_is_not() -> None:
    longer = [preference(*answers(number, long=True)) for number in range(60)]
    balanced = [preference(*answers(number, long=number % 2 == 0)) for number in range(60)]
    for reward in (Fake(sensible), Fake(words)):
        assert Level.CAUTION in length_levels(readiness(reward, longer))
    assert length_levels(readiness(Fake(sensible), balanced)) == [Level.GO, Level.GO]


def test_a_model_that_scores_length_is_a_no_go_on_a_balanced_set() -> None:
    balanced = [preference(*answers(number, long=number % 2 == 0)) for number in range(60)]
    found = readiness(Fake(words), balanced)
    assert found.length.chosen_shorter is not None
    assert found.length.chosen_longer is not None
    assert (found.length.chosen_shorter.value, found.length.chosen_longer.value) == (0.0, 1.0)
    assert length_levels(found) == [Level.NO_GO, Level.CAUTION]
    assert found.verdict is Level.NO_GO


def test_flipped_labels_are_found_and_true_ones_are_not() -> None:
    """20 % of the labels flipped: a model that knows better finds all of them and no other."""
    flipped = set(random.Random(0).sample(range(100), 20))
    records = []
    for number in range(100):
        prompt, good, bad = answers(number, long=number % 2 == 0)
        both = (bad, good) if number in flipped else (good, bad)
        records.append(preference(prompt, *both, id=str(number)))
    found = readiness(Fake(sensible), records)
    assert {int(each.id) for each in found.suspects} == flipped
    assert found.accuracy.value == 0.8
    assert "labels that look flipped" in {reason.name for reason in found.reasons}


def test_pairs_learned_from_give_the_gap_of_the_whole_model() -> None:
    """Ties do not count; with one head nothing was left out, and the scores are those of all heads."""
    good = [preference(*answers(number, long=number % 2 == 0)) for number in range(8)]
    wrong = preference("parcel late lyon", "no idea", "parcel late lyon now")
    learned = [(preference("Q", "x", "y", tie=True), None), (wrong, None), (good[0], None)]
    found = assess(Fake(sensible), good, ReadinessSection(), data="made up", trained_on=learned)
    assert (found.looked_at, len(found.pairs)) == (10, 8)
    assert found.accuracy == Share(1.0, 8)
    assert found.train_accuracy == Share(0.5, 2)
    assert [(each.id, each.trained_on) for each in found.suspects] == [("pair 1", True)]


def test_a_flipped_pair_learned_by_heart_is_suspected_by_the_head_that_left_it_out() -> None:
    """Head 0 has left the flipped pair out and gives it -0.2 - 2.6; head 1 has learned it by heart."""
    records = [preference(*answers(number, long=number % 2 == 0)) for number in range(8)]
    known = preference("parcel late lyon", "no idea", "parcel late lyon now", id="flipped")
    by_heart = {"no idea": 9.0}
    reward = Fake(sensible, lambda prompt, answer: by_heart.get(answer, sensible(prompt, answer)))
    tied = preference("Q", "x", "y", tie=True)
    learned = [(tied, 1), (known, 0), (records[0], 0)]
    found = assess(reward, records, ReadinessSection(), data="made up", trained_on=learned)
    trained = [each for each in found.suspects if each.trained_on]
    assert [(each.id, each.margin) for each in trained] == [("flipped", pytest.approx(-2.8))]


def test_the_spread_of_scores_and_what_did_not_fit() -> None:
    """Scores 3, 1, 1, 2 lie 0.829 around their mean."""
    records = [preference("Q", "a b c", "a"), preference("Q", "much too long for it", "a"), preference("R", "a", "a b")]
    found = assess(Fake(words, longest=3), records, ReadinessSection(), data="made up")
    assert found.std == pytest.approx(math.sqrt(11 / 16))
    assert (found.too_long, len(found.pairs)) == (1, 2)


def test_prompts_that_were_trained_on_are_counted() -> None:
    records = [preference(f"Q{number}", "a b", "a") for number in range(5)]
    found = assess(
        Fake(words),
        records,
        ReadinessSection(),
        data="made up",
        is_trained_prompt=lambda prompt: prompt[0].content in {"Q1", "Q3"},
    )
    (finding,) = [finding for finding in found.findings if finding.name == "prompts trained on"]
    assert (finding.level, finding.found) == (Level.CAUTION, "2 pairs")


def test_prompts_that_were_trained_on_are_counted_by_pairs() -> None:
    """Two votes make one pair, and a tie none."""
    votes = [vote(f"Q{number}", "a", number % 2 == 0) for number in range(4)]
    tied = [preference("Q", "a b", "a"), preference("R", "a", "b", tie=True)]
    for records, pairs_in_all in ((votes, "2 pairs"), (tied, "1 pair")):
        found = assess(Fake(words), records, ReadinessSection(), data="made up", is_trained_prompt=lambda prompt: True)
        assert [each.found for each in found.findings if each.name == "prompts trained on"] == [pairs_in_all]


@pytest.mark.parametrize(("count", "trained"), [(3, 1), (50, 7)])
def test_progress_goes_on_to_the_end_of_all_work(count: int, trained: int) -> None:
    """Records, answers made worse and what must not matter: the probes are a large part of the time."""
    told: list[int] = []
    records = [preference(f"Q{number}", f"a b{number}", "a") for number in range(count)]
    learned = [(record, None) for record in records[:trained]]
    assess(Fake(words), records, ReadinessSection(), data="made up", trained_on=learned, progress=told.append)
    assert told == list(range(1, work(count, trained) + 1))
    assert told[-1] == count + trained + min(count, 32) + 3


def test_a_pair_of_votes_is_two_rows_of_progress() -> None:
    told: list[int] = []
    votes = [vote(f"Q{number}", f"a b{number}", number % 2 == 0) for number in range(6)]
    assess(Fake(words), votes, ReadinessSection(), data="made up", progress=told.append)
    assert told[:3] == [2, 4, 6]


def test_the_scope_says_what_was_scored_and_which_setting_asks_for_more() -> None:
    records = [preference(f"Q{number}", f"a b{number}", "a") for number in range(4)]
    found = [
        assess(Fake(words), records, ReadinessSection(), data="made up", trained_on=learned, rows_in_all=in_all).scope
        for learned, in_all in (
            ([], None),
            ([(records[0], None)], (4, 1)),
            ([(records[0], None)], (40, 5000)),
        )
    ]
    spoilt = "4 preferred answers corrupted in 5 ways"
    assert found == [
        f"Scored for this report: 4 held-out rows and {spoilt}.",
        f"Scored for this report: 4 held-out rows, 1 training row and {spoilt}.",
        "Scored for this report: 4 of 40 held-out rows (readiness.heldout_pairs), 1 of 5,000 training rows "
        f"(readiness.trained_pairs) and {spoilt}.",
    ]


@pytest.mark.parametrize(
    "records",
    [[], [preference("Q", "a", "b", tie=True)], [vote("Q", "a", True)] * 3, [preference("Q", "too long a text", "b")]],
    ids=["nothing", "ties", "one kind of votes", "too long"],
)
def test_nothing_to_judge_by_is_an_error_that_says_what_to_give(records: list[Preference | Vote]) -> None:
    with pytest.raises(DataError, match=r"my\.jsonl: it holds no pair .* Give preferences"):
        assess(Fake(words, longest=3), records, ReadinessSection(), data="my.jsonl")
