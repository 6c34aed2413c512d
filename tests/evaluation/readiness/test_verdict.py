"""Each finding at its go, caution and no-go, with the thresholds of the recipe, and the verdict as the worst of them.

Wilson's intervals that decide, to three decimals: 0 of 4 (0, 0.490), 40 of 100 (0.309, 0.498), 45 of 100 (0.356,
0.548), 55 of 100 (0.452, 0.644), 60 of 100 (0.502, 0.691), 70 of 100 (0.604, 0.781), 4 of 10 (0.168, 0.687).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine.evaluation.readiness.measures import Calibration, CalibrationBin, LengthBias
from prefine.evaluation.readiness.probes import SPOILERS, SWAPPED, Spoilt, Variance
from prefine.evaluation.readiness.verdict import Finding, Level, Measured, findings, verdict
from prefine.intervals import Share
from prefine.recipe.reward import ReadinessSection

GO, CAUTION, NO_GO = Level.GO, Level.CAUTION, Level.NO_GO
THANKS, DOUBLED, STUCK, BLANK = SPOILERS
EVEN = LengthBias(None, None, Share(0.5, 80), Share(0.5, 80), Share(0.9, 40), Share(0.9, 40))
UNMEASURED = LengthBias(None, None, None, None, None, None)


def calibrated(confidence: float, right: float, error: float) -> Calibration:
    return Calibration(error, [CalibrationBin(0.5, 1.0, confidence, Share(right, 100))])


FINE = Measured(
    accuracy=Share(0.9, 100),
    train_accuracy=Share(0.95, 100),
    calibration=calibrated(0.9, 0.9, 0.0),
    length=EVEN,
    variances=[Variance("padding", 0.0)],
    spoilt=[Spoilt(name, Share(0.0, 64), -1.0) for name in (*SPOILERS, SWAPPED)],
    suspects=3,
    looked_at=100,
    shared_prompts=0,
    std=1.0,
)


def found(name: str, limits: ReadinessSection | None = None, **changes: Any) -> Finding:
    """The one finding of that name about a fine model with these changes."""
    (finding,) = [
        each for each in findings(replace(FINE, **changes), limits or ReadinessSection()) if each.name == name
    ]
    return finding


def names(**changes: Any) -> set[str]:
    return {each.name for each in findings(replace(FINE, **changes), ReadinessSection())}


def limits(**values: Any) -> ReadinessSection:
    return ReadinessSection(**values)


def test_a_fine_model_is_a_go_in_every_respect_and_nothing_needs_a_meaning() -> None:
    told = findings(FINE, ReadinessSection())
    assert {each.level for each in told} == {GO}
    assert {each.meaning for each in told} == {""}
    assert all(each.found and each.rule for each in told)
    assert len({each.name for each in told}) == len(told)
    assert verdict(told) is GO


@given(st.lists(st.sampled_from(list(Level))))
def test_the_verdict_is_the_worst_level(levels: list[Level]) -> None:
    worst = next((level for level in (NO_GO, CAUTION) if level in levels), GO)
    assert verdict([Finding("x", level, "", "") for level in levels]) is worst


@given(st.lists(st.sampled_from(list(Level)), min_size=1))
def test_levels_are_plain_words(levels: list[Level]) -> None:
    assert {str(level) for level in levels} <= {"go", "caution", "no-go"}


# --- Accuracy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "level"),
    [(70, GO), (60, CAUTION), (55, NO_GO), (45, NO_GO), (30, NO_GO), (0, NO_GO), (100, GO)],
)
def test_held_out_accuracy(hits: int, level: Level) -> None:
    assert found("held-out accuracy", accuracy=Share(hits / 100, 100)).level is level


def test_held_out_accuracy_is_told_with_its_interval_and_rule() -> None:
    told = found("held-out accuracy", accuracy=Share(0.6, 100))
    assert told.found.replace("\u2060", "").replace("\u202f", " ") == "60 % of 100 pairs, interval 50–69 %"
    assert told.rule.replace("\u202f", " ") == "at least 65 %, and an interval above 50 %"
    assert "better than chance" in told.meaning


@pytest.mark.parametrize("share", [Share(0.0, 4), Share(0.3, 100), Share(0.4, 100)])
def test_below_a_coin_for_sure_the_columns_may_be_swapped(share: Share) -> None:
    swapped = found("held-out accuracy", accuracy=share)
    assert swapped.level is NO_GO
    assert "Are the columns chosen and rejected swapped" in swapped.meaning


@pytest.mark.parametrize("share", [Share(0.45, 100), Share(0.55, 100), Share(1.0, 1), Share(0.4, 10)])
def test_what_a_coin_could_have_is_guessing_and_no_word_of_swapped_columns(share: Share) -> None:
    guessing = found("held-out accuracy", accuracy=share)
    assert guessing.level is NO_GO
    assert "may be guessing" in guessing.meaning
    assert "swapped" not in guessing.meaning


def test_the_wanted_accuracy_is_the_recipes() -> None:
    share = Share(0.7, 100)
    assert found("held-out accuracy", limits(min_accuracy=0.71), accuracy=share).level is CAUTION
    assert found("held-out accuracy", limits(min_accuracy=0.7), accuracy=share).level is GO
    assert found("held-out accuracy", limits(min_accuracy=0.0), accuracy=Share(0.55, 100)).level is NO_GO


@pytest.mark.parametrize(
    ("count", "least", "level"), [(50, 50, GO), (49, 50, CAUTION), (49, 49, GO), (100, 101, CAUTION)]
)
def test_few_pairs_are_a_caution(count: int, least: int, level: Level) -> None:
    assert found("held-out pairs", limits(min_pairs=least), accuracy=Share(1.0, count)).level is level


# --- Training against held-out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "heldout", "widest", "level"),
    [
        (Share(0.95, 100), Share(0.7, 100), 0.2, CAUTION),  # from 0.888 to 0.781 at the least
        (Share(0.95, 100), Share(0.7, 100), 0.25, GO),  # exactly as far apart as may be
        (Share(0.95, 100), Share(0.8, 100), 0.2, GO),  # not far enough apart
        (Share(1.0, 10), Share(0.7, 10), 0.2, GO),  # the intervals overlap: (0.722, 1) and (0.397, 0.892)
        (Share(0.5, 100), Share(0.9, 100), 0.2, GO),  # better where it was not trained
    ],
)
def test_a_gap_between_train_and_held_out(train: Share, heldout: Share, widest: float, level: Level) -> None:
    told = found("training against held-out", limits(max_accuracy_gap=widest), train_accuracy=train, accuracy=heldout)
    assert told.level is level


def test_without_training_pairs_there_is_no_gap() -> None:
    assert "training against held-out" not in names(train_accuracy=None)


# --- Calibration -----------------------------------------------------------------------------------------------------


def test_calibration_at_its_threshold() -> None:
    at = {"calibration": calibrated(0.95, 0.8, 0.15)}
    assert found("calibration error", **at).level is GO
    assert found("calibration error", limits(max_calibration_error=0.149), **at).level is CAUTION
    assert "calibration error" not in names(calibration=None)


def test_whether_it_is_too_sure_or_not_sure_enough_is_said() -> None:
    assert "overconfident" in found("calibration error", calibration=calibrated(0.95, 0.6, 0.35)).meaning
    assert "underconfident" in found("calibration error", calibration=calibrated(0.55, 0.9, 0.35)).meaning


# --- Length ----------------------------------------------------------------------------------------------------------

SHORTER, LONGER = "pairs whose shorter answer was preferred", "prefers the longer answer"


@pytest.mark.parametrize(
    ("shorter", "longer", "level", "said"),
    [
        (Share(0.9, 40), Share(0.9, 40), GO, ""),
        (Share(0.3, 100), Share(0.9, 100), NO_GO, "length to quality"),
        (Share(0.3, 100), None, NO_GO, "length to quality"),
        (Share(0.7, 100), Share(1.0, 100), CAUTION, "length influences it"),  # (0.604, 0.781) against (0.963, 1)
        (Share(0.7, 100), Share(0.75, 100), GO, ""),
        (Share(0.0, 1), Share(1.0, 2), GO, ""),  # two pairs say nothing
        (Share(1.0, 40), None, GO, ""),
        (None, Share(1.0, 40), CAUTION, "In every pair people preferred the longer answer"),
    ],
)
def test_where_the_shorter_answer_was_preferred(
    shorter: Share | None, longer: Share | None, level: Level, said: str
) -> None:
    told = found(SHORTER, length=replace(EVEN, chosen_shorter=shorter, chosen_longer=longer))
    assert told.level is level
    assert said in told.meaning
    assert bool(told.meaning) == (level is not GO)


@pytest.mark.parametrize(
    ("people", "model", "level"),
    [
        (Share(0.5, 100), Share(0.5, 100), GO),
        (Share(0.5, 100), Share(0.8, 100), CAUTION),  # (0.404, 0.596) against (0.711, 0.867)
        (Share(0.5, 10), Share(0.8, 10), GO),  # the intervals overlap
        (Share(0.5, 1000), Share(0.65, 1000), GO),  # apart for sure, but not by 0.2
        (Share(0.8, 100), Share(0.3, 100), GO),  # likes it less than people do
    ],
)
def test_picking_the_longer_answer_more_often_than_people(people: Share, model: Share, level: Level) -> None:
    assert found(LONGER, length=replace(EVEN, people=people, model=model)).level is level


def test_the_excess_that_may_be_is_the_recipes() -> None:
    length = replace(EVEN, people=Share(0.5, 1000), model=Share(0.65, 1000))
    assert found(LONGER, limits(max_length_excess=0.1), length=length).level is CAUTION


def test_answers_of_equal_length_give_no_finding_about_length() -> None:
    assert not {SHORTER, LONGER} & names(length=UNMEASURED)


# --- Probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fooled", "level"),
    [
        (BLANK, Share(0.6, 10), NO_GO),
        (BLANK, Share(0.5, 10), CAUTION),  # not above a half, yet above 0.2
        (BLANK, Share(0.2, 10), GO),
        (STUCK, Share(0.51, 100), NO_GO),
        (STUCK, Share(0.25, 8), CAUTION),
        (THANKS, Share(1.0, 64), CAUTION),
        (THANKS, Share(0.4, 10), GO),  # may be as few as 0.168
        (DOUBLED, Share(0.6, 100), CAUTION),
        (DOUBLED, Share(0.25, 100), GO),  # may be 0.175
        (SWAPPED, Share(0.9, 64), CAUTION),
        (SWAPPED, Share(0.0, 64), GO),
    ],
)
def test_spoilt_answers(name: str, fooled: Share, level: Level) -> None:
    told = found(f"corrupted answers: {name}", spoilt=[Spoilt(name, fooled, 0.5)])
    assert told.level is level
    assert ("hardly uses the prompt" in told.meaning) == (name == SWAPPED and level is not GO)


def test_how_many_may_be_fooled_is_the_recipes() -> None:
    blank = {"spoilt": [Spoilt(BLANK, Share(0.3, 10), 0.1)]}
    name = f"corrupted answers: {BLANK}"
    assert found(name, limits(max_fooled=0.3), **blank).level is GO
    assert found(name, limits(max_fooled=0.1), **blank).level is CAUTION
    assert found(name, limits(max_fooled_no_go=0.2), **blank).level is NO_GO


@pytest.mark.parametrize(
    ("deviations", "most", "level"),
    [(0.1, 0.1, GO), (0.11, 0.1, CAUTION), (0.11, 0.2, GO), (0.5, 0.1, CAUTION), (0.51, 0.1, NO_GO)],
)
def test_a_score_that_moves_with_what_must_not_matter(deviations: float, most: float, level: Level) -> None:
    moved = [Variance("padding", deviations)]
    told = found("score changes with padding", limits(max_variance=most), variances=moved)
    assert told.level is level
    assert ("different scores" in told.meaning) == (level is NO_GO)


# --- Labels and prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suspects", "most", "level"), [(10, 0.1, GO), (11, 0.1, CAUTION), (11, 0.2, GO), (0, 0.1, GO)]
)
def test_labels_that_look_flipped(suspects: int, most: float, level: Level) -> None:
    told = found("labels that look flipped", limits(max_suspects=most), suspects=suspects, looked_at=100)
    assert told.level is level
    assert told.found.startswith(f"{suspects} of 100 ")


def test_prompts_that_were_trained_on_are_a_caution() -> None:
    told = found("prompts trained on", shared_prompts=1)
    assert (told.level, told.found) == (CAUTION, "1 pair")
    assert "prompts trained on" not in names(shared_prompts=0)


def test_every_finding_against_a_model_says_what_it_means() -> None:
    bad = replace(
        FINE,
        accuracy=Share(0.3, 10),
        train_accuracy=Share(1.0, 400),
        calibration=calibrated(1.0, 0.3, 0.7),
        length=replace(EVEN, people=Share(0.1, 100), model=Share(0.9, 100), chosen_shorter=Share(0.0, 40)),
        variances=[Variance("padding", 3.0)],
        spoilt=[Spoilt(name, Share(1.0, 64), 1.0) for name in (*SPOILERS, SWAPPED)],
        suspects=70,
        shared_prompts=4,
    )
    told = findings(bad, ReadinessSection())
    assert {each.level for each in told} == {CAUTION, NO_GO}
    assert all(each.meaning.endswith((".", "?")) for each in told)
    assert verdict(told) is NO_GO


def test_a_calibration_error_that_chance_explains_is_no_caution() -> None:
    """Ten pairs at 80 % confidence of which six are right: the error is 0.2; 0.8 lies in the interval of 6 of 10."""
    few = Calibration(0.2, [CalibrationBin(0.8, 0.9, 0.8, Share(0.6, 10))])
    many = Calibration(0.2, [CalibrationBin(0.8, 0.9, 0.8, Share(0.6, 400))])
    levels = [found("calibration error", calibration=each).level for each in (few, many)]
    assert levels == [Level.GO, Level.CAUTION]


# --- Rows and findings that agree with each other --------------------------------------------------------------------

WITHIN = "within chance"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (f"corrupted answers: {THANKS}", {"spoilt": [Spoilt(THANKS, Share(0.42, 12), 0.1)]}),
        (f"corrupted answers: {SWAPPED}", {"spoilt": [Spoilt(SWAPPED, Share(0.3, 20), 0.1)]}),
        ("training against held-out", {"train_accuracy": Share(1.0, 10), "accuracy": Share(0.7, 10)}),
        ("prefers the longer answer", {"length": replace(EVEN, people=Share(0.5, 10), model=Share(0.8, 10))}),
        (
            "calibration error",
            {"calibration": Calibration(0.2, [CalibrationBin(0.8, 0.9, 0.8, Share(0.6, 10))])},
        ),
    ],
)
def test_a_figure_beyond_its_limit_that_is_a_go_says_that_chance_explains_it(name: str, changes: Any) -> None:
    told = found(name, **changes)
    assert told.level is GO
    assert WITHIN in told.found
    assert WITHIN not in found(name).found


@given(
    fooled=st.integers(0, 40),
    tried=st.integers(1, 40),
    name=st.sampled_from([*SPOILERS, SWAPPED]),
)
def test_no_row_of_a_spoilt_answer_is_beyond_its_limit_without_a_word(fooled: int, tried: int, name: str) -> None:
    share = Share(min(fooled, tried) / tried, tried)
    told = found(f"corrupted answers: {name}", spoilt=[Spoilt(name, share, 0.0)])
    beyond = share.value > ReadinessSection().max_fooled
    assert (WITHIN in told.found) is (beyond and told.level is GO)


def test_a_model_that_knows_its_training_pairs_is_not_told_to_train_longer() -> None:
    """At the same time it is told that it knows them by heart."""
    by_heart = {"accuracy": Share(0.5, 100), "train_accuracy": Share(0.97, 200)}
    accuracy = found("held-out accuracy", **by_heart)
    assert accuracy.level is NO_GO
    assert "97" in accuracy.meaning and "Train longer" not in accuracy.meaning
    assert "memorised" in found("training against held-out", **by_heart).meaning
    learned_nothing = found("held-out accuracy", accuracy=Share(0.5, 100), train_accuracy=Share(0.52, 200))
    assert "Train longer" in learned_nothing.meaning


@pytest.mark.parametrize("accuracy", [Share(0.5, 100), Share(0.3, 100)])
def test_a_model_that_is_no_better_than_a_coin_judges_no_labels(accuracy: Share) -> None:
    told = found("labels that look flipped", accuracy=accuracy, suspects=50, looked_at=100)
    assert told.level is CAUTION
    assert "not good enough to judge labels" in told.meaning
    assert "correct or drop" in found("labels that look flipped", suspects=50, looked_at=100).meaning


def test_a_guessing_model_is_not_called_underconfident() -> None:
    told = found("calibration error", accuracy=Share(0.55, 100), calibration=calibrated(0.5, 0.8, 0.3))
    assert told.level is CAUTION
    assert "underconfident" not in told.meaning
