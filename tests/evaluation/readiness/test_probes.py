"""Spoilt answers fool the models that they are made to fool, company moves the scores it should, and sense passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest

from prefine.evaluation.readiness.assess import assess
from prefine.evaluation.readiness.pairs import JudgedPair
from prefine.evaluation.readiness.probes import FATAL, SPOILERS, SWAPPED, Spoilt, spoilt_answers, variances
from prefine.evaluation.readiness.verdict import Finding, Level
from prefine.models.scoring.scorer import Question, RewardModel, Score
from prefine.recipe.reward import ReadinessSection
from prefine.records import Preference
from tests.evaluation.readiness.test_measures import Fake, judged, preference, sensible, words

THANKS, DOUBLED, STUCK, BLANK = SPOILERS
COMPANY, PADDING, PROMPT = "other answers in the batch", "padding", "a prompt shared or repeated"


def records(count: int = 60) -> list[Preference]:
    """Prompts of three words that occur nowhere else; the good answer says them, and is the longer one now and then."""
    return [
        preference(
            f"parcel{number} late{number} lyon{number}",
            f"parcel{number} late{number} lyon{number}",
            "no idea at all" if number % 2 else "none",
        )
        for number in range(count)
    ]


def spoilt(reward: RewardModel, pairs: Sequence[JudgedPair] | None = None, std: float = 1.0) -> dict[str, Spoilt]:
    found = spoilt_answers(reward, judged(reward, records()) if pairs is None else pairs, std)
    return {each.name: each for each in found}


def moves(reward: RewardModel, count: int = 4, std: float = 1.0) -> dict[str, float]:
    pairs = judged(Fake(words), records(count))
    return {each.name: each.deviations for each in variances(reward, pairs, std)}


def told(reward: RewardModel, given: Sequence[Preference] | None = None) -> dict[str, Finding]:
    found = assess(reward, records() if given is None else given, ReadinessSection(), data="made up")
    return {each.name: each for each in found.findings}


# --- What the spoilers do --------------------------------------------------------------------------------------------


def test_what_each_spoiler_leaves_of_an_answer() -> None:
    said = {name: spoil("It left\nLyon.") for name, spoil in SPOILERS.items()}
    assert said == {
        THANKS: "It left\nLyon. Thanks!",
        DOUBLED: "It left\nLyon.\n\nIt left\nLyon.",
        STUCK: "It It It",
        BLANK: "",
    }
    assert set(FATAL) == {STUCK, BLANK}


def test_an_answer_to_another_prompt_is_the_next_pairs_and_the_last_ones_is_the_firsts() -> None:
    """Scores 1 where the answer is the prompt's own; three chosen answers lose exactly that."""
    reward = Fake(lambda prompt, answer: float(answer == prompt))
    seen: list[tuple[str, str]] = []
    noting = Fake(lambda prompt, answer: seen.append((prompt, answer)) or 0.0)
    pairs = judged(reward, [preference(name, name, "x y") for name in ("a b", "c d", "e f")])
    assert spoilt(reward, pairs)[SWAPPED].mean_change == -1.0
    spoilt(noting, pairs)
    assert [answer for prompt, answer in seen if answer != prompt and answer in {"a b", "c d", "e f"}] == [
        "c d",
        "e f",
        "a b",
    ]


def test_one_pair_has_no_other_prompts_answer() -> None:
    pairs = judged(Fake(words), records(1))
    assert set(spoilt(Fake(words), pairs)) == set(SPOILERS)


def test_shares_and_changes_by_hand() -> None:
    """Words are points: answers of 2 and 4 words. Doubling gives 2 and 4 more, mean 3; in deviations of 2 that is 1.5.

    Blank takes 2 and 4; "Thanks!" gives 1 each; stuck changes nothing, which is no loss; swapped, 2 and -2."""
    pairs = judged(Fake(words), [preference("Q", "a b", "x"), preference("R", "a b c d", "x")])
    found = spoilt(Fake(words), pairs, std=2.0)
    assert {name: (each.fooled.value, each.fooled.count, each.mean_change) for name, each in found.items()} == {
        THANKS: (1.0, 2, 0.5),
        DOUBLED: (1.0, 2, 1.5),
        STUCK: (1.0, 2, 0.0),
        BLANK: (0.0, 2, -1.5),
        SWAPPED: (0.5, 2, 0.0),
    }


def test_32_answers_at_most_are_spoilt() -> None:
    reward = Fake(words)
    pairs = judged(Fake(words), records(200))
    found = spoilt(reward, pairs)
    assert reward.asked <= 32 * 5
    assert {each.fooled.count for each in found.values()} == {32}


# --- Who is fooled ---------------------------------------------------------------------------------------------------


def test_a_model_that_rewards_length_is_fooled_by_doubling() -> None:
    found = told(Fake(words))[f"corrupted answers: {DOUBLED}"]
    assert found.level is Level.CAUTION
    assert "100" in found.found
    assert "cheap trick" in found.meaning


def test_a_model_that_scores_blank_highest_is_a_no_go() -> None:
    reward = Fake(lambda prompt, answer: 5.0 if not answer else sensible(prompt, answer))
    found = told(reward)
    assert found["held-out accuracy"].level is Level.GO
    assert found[f"corrupted answers: {BLANK}"].level is Level.NO_GO
    assert found[f"corrupted answers: {THANKS}"].level is Level.GO
    assert assess(reward, records(), ReadinessSection(), data="made up").verdict is Level.NO_GO


def test_a_model_that_counts_words_is_a_no_go_for_what_is_stuck() -> None:
    assert told(Fake(words))[f"corrupted answers: {STUCK}"].level is Level.NO_GO


def test_a_model_that_never_reads_the_prompt_is_told_of_swapped_answers() -> None:
    quality = {each.chosen: 1.0 for each in records()}
    found = told(Fake(lambda prompt, answer: quality.get(answer, 0.0)))
    assert found[f"corrupted answers: {SWAPPED}"].level is Level.CAUTION
    assert found["held-out accuracy"].level is Level.GO
    assert found[f"corrupted answers: {BLANK}"].level is Level.GO


def test_a_sensible_model_passes_every_probe() -> None:
    found = told(Fake(sensible))
    probed = [each for name, each in found.items() if name.startswith(("corrupted", "score changes"))]
    assert len(probed) == 5 + 3
    assert {each.level for each in probed} == {Level.GO}
    assert all(each.mean_change < 0 for each in spoilt(Fake(sensible)).values())


# --- What must not matter --------------------------------------------------------------------------------------------


class Companions(Fake):
    """Its scores rise with the questions computed together: by 1 from place to place in a call."""

    def score(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        for place, question in enumerate(questions):
            yield [_raised(self.one(question.prompt, answer), place) for answer in question.answers]

    def score_padded(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        return Fake.score(self, questions)


class Padded(Fake):
    """Its scores move with padding: each padded row by as much as the longest answer of the call is longer."""

    def score_padded(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        together = list(questions)
        longest = max(words("", answer) for question in together for answer in question.answers)
        for question in together:
            yield [_raised(self.one(question.prompt, one), longest - words("", one)) for one in question.answers]


class Neighbours(Fake):
    """Its scores move by 1 for each other answer to the same question."""

    def score(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        for question in questions:
            others = len(question.answers) - 1
            yield [_raised(self.one(question.prompt, answer), others) for answer in question.answers]


class RoundsOnPadded(Fake):
    """All padded rows, alone or not, give scores 0.5 higher: another kernel, and no fault of padding's."""

    def score_padded(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        for scores in self.score(questions):
            yield None if scores is None else [_raised(score, 0.5) for score in scores]


def _raised(score: Score, by: float) -> Score:
    return Score(score.score + by, tuple(head + by for head in score.heads), score.tokens)


def test_scores_that_depend_on_nothing_else_do_not_move() -> None:
    assert moves(Fake(sensible)) == {COMPANY: 0.0, PADDING: 0.0, PROMPT: 0.0}
    assert moves(RoundsOnPadded(sensible)) == {COMPANY: 0.0, PADDING: 0.0, PROMPT: 0.0}


def test_scores_that_depend_on_the_batch_show_in_deviations() -> None:
    """Four pairs have eight answers: the last of them is raised by 7, which is 3.5 deviations of 2."""
    assert moves(Companions(sensible), std=2.0) == {COMPANY: 3.5, PADDING: 0.0, PROMPT: 3.5}


def test_scores_that_depend_on_padding_show_there_alone() -> None:
    """Answers have 1, 3 or 4 words: the shortest is padded by 3."""
    assert moves(Padded(sensible)) == {COMPANY: 0.0, PADDING: 3.0, PROMPT: 0.0}


def test_scores_that_depend_on_an_answers_neighbour_show_there_alone() -> None:
    assert moves(Neighbours(sensible)) == {COMPANY: 0.0, PADDING: 0.0, PROMPT: 1.0}


@pytest.mark.parametrize(
    ("reward", "name"),
    [(Companions(sensible), COMPANY), (Padded(sensible), PADDING), (Neighbours(sensible), PROMPT)],
)
def test_a_score_that_moves_is_no_go_or_a_caution_by_how_far(reward: RewardModel, name: str) -> None:
    """By 0.4 standard deviations in company here, by more than 0.5 with the others."""
    found = told(reward)
    assert found[f"score changes with {name}"].level is (Level.CAUTION if name == COMPANY else Level.NO_GO)


def test_one_pair_is_enough_to_be_tried_and_four_are_most() -> None:
    assert moves(Padded(sensible), count=1) == {COMPANY: 0.0, PADDING: 2.0, PROMPT: 0.0}
    reward = Fake(sensible)
    moves(reward, count=100)
    assert reward.asked == 5 * 8  # alone, in company, both again on padded rows, and with a shared prompt


# --- Probes that say nothing -----------------------------------------------------------------------------------------


def test_an_answer_of_one_word_is_not_spoilt_by_being_stuck_on_it() -> None:
    """One word stuck on itself is the same word: no model can take points off, so nothing is said of it."""
    yes_or_no = [preference(f"Is it parcel{number} ?", f"parcel{number}", "no idea") for number in range(60)]
    found = told(Fake(sensible), yes_or_no)
    assert f"corrupted answers: {STUCK}" not in found
    assert found[f"corrupted answers: {BLANK}"].level is Level.GO


def test_another_answer_to_the_same_prompt_is_no_answer_to_another() -> None:
    """Data often has several pairs a prompt, one after the other."""
    together = [
        preference(f"parcel{number} late{number}", f"parcel{number} late{number} now{more}", "no idea")
        for number in range(12)
        for more in range(6)
    ]
    assert told(Fake(sensible), together)[f"corrupted answers: {SWAPPED}"].level is Level.GO


def test_an_answer_too_long_when_doubled_is_spoilt_in_the_other_ways() -> None:
    """A model that likes blank best is not to pass because its data's answers are long."""
    reward = Fake(lambda prompt, answer: 9.0 if not answer else sensible(prompt, answer), longest=5)
    found = told(reward)
    assert found[f"corrupted answers: {BLANK}"].level is Level.NO_GO
