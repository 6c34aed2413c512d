"""Each warning appears where it is due, and not on a run without fault."""

from __future__ import annotations

from typing import Any

import pytest

from prefine.evaluation.cautions import cautions
from prefine.evaluation.charts import learning_charts
from prefine.evaluation.findings import headline, scales, tiles
from prefine.evaluation.run_facts import RunFacts

BEFORE = {"loss": 0.6931, "accuracy": 0.0, "margin": 0.0, "logp_chosen": -100.0, "policy_accuracy": 0.5}
AFTER = {"loss": 0.55, "accuracy": 0.8, "margin": 0.5, "logp_chosen": -99.0, "policy_accuracy": 0.7}


def facts(**changes: Any) -> RunFacts:
    heldout = {"count": 500, "before": BEFORE, "after": AFTER} | changes.pop("heldout", {})
    evaluation = {"heldout": heldout, "generation": changes.pop("generation", {})}
    whole: dict[str, Any] = {"train": [], "heldout": [], "samples": [], "manifest": {"stage": "dpo"}}
    given = {"heldout": changes.pop("rows", [])} | changes
    return RunFacts(name="run", evaluation=evaluation, **(whole | given))


def titles(run: RunFacts) -> str:
    return "\n".join(caution.title for caution in cautions(run))


def test_a_run_without_fault_has_no_warning() -> None:
    assert not cautions(facts())


def test_swapped_answers() -> None:
    assert "away from the preferred answers" in titles(facts(heldout={"after": AFTER | {"accuracy": 0.2}}))
    assert "away from" not in titles(facts(heldout={"after": AFTER | {"accuracy": 0.49}}))  # may be chance


def test_few_pairs() -> None:
    assert "20 held-out pairs: the intervals are wide." in titles(facts(heldout={"count": 20}))


@pytest.mark.parametrize(("shifts", "warned"), [([-1.0, -2.0, -1.5, -1.2], True), ([-1.0, 9.0, -12.0, 1.0], False)])
def test_falling_chosen_answers_are_warned_of_unless_chance_explains_them(shifts: list[float], warned: bool) -> None:
    changes = {"after": AFTER | {"logp_chosen": -101.0}, "pairs": [{"chosen_shift": shift} for shift in shifts]}
    assert ("chosen answers became less likely" in titles(facts(heldout=changes))) is warned


def test_what_the_run_said_itself_is_not_said_twice() -> None:
    said = "The chosen answers became less likely: their mean log-probability fell by 9.0 nats."
    run = facts(heldout={"after": AFTER | {"logp_chosen": -109.0}}, manifest={"stage": "dpo", "warnings": [said]})
    assert titles(run) == said


def test_held_out_loss_that_rises_again() -> None:
    rows = [{"step": step, "loss": loss} for step, loss in ((0, 0.69), (10, 0.5), (20, 0.6))]
    assert "lowest at step 10 (0.500) and has risen to 0.600 by step 20" in titles(facts(rows=rows))
    assert not cautions(facts(rows=rows[:2]))


def test_lengths_and_ends() -> None:
    short, long = ({"mean_tokens": tokens, "ended": ended} for tokens, ended in ((40.0, 1.0), (60.0, 0.7)))
    grown = titles(facts(generation={"before": short, "after": long}))
    assert "grew from 40 to 60 tokens" in grown
    assert "Fewer answers end by themselves" in grown
    assert "were cut at the limit" in titles(facts(generation={"before": long, "after": long}))


def test_a_preference_for_length_alone() -> None:
    pairs = [
        {"after_margin": 1.0 if longer else -1.0, "chosen_tokens": 10 + longer, "rejected_tokens": 10 + (not longer)}
        for longer in [True, False] * 15
    ]
    assert "learned to prefer longer answers" in titles(facts(heldout={"pairs": pairs}))
    assert "prefer longer" not in titles(facts(heldout={"pairs": [p | {"after_margin": 1.0} for p in pairs]}))


def test_a_failed_self_check() -> None:
    checks = [{"name": "first loss", "passed": False}, {"name": "first margin", "passed": True}]
    assert "1 self-check failed: first loss." in titles(facts(manifest={"stage": "dpo", "self_checks": checks}))


def test_accuracy_of_the_untrained_model_is_not_drawn() -> None:
    """Against the model as it was, all its rewards are 0: the 0 % that ties amount to would be a false start."""
    rows = [{"step": 0, "accuracy": 0.0, "margin": 0.0}, {"step": 5, "accuracy": 0.8, "margin": 0.5}]
    with_reference = learning_charts(facts(rows=rows))[0].drawing
    assert with_reference == learning_charts(facts(rows=rows[1:]))[0].drawing
    simpo = {"stage": "dpo", "recipe": {"dpo": {"loss": "simpo"}}}
    assert learning_charts(facts(rows=rows, manifest=simpo))[0].drawing != with_reference


def test_without_a_reference_accuracy_is_the_models_own_ranking() -> None:
    simpo = {"stage": "dpo", "recipe": {"dpo": {"loss": "simpo"}}}
    figures = {"before": {"accuracy": 0.5}, "after": {"accuracy": 0.75}}
    run = facts(manifest=simpo, heldout=figures)
    assert headline(run).sentence.replace("\u202f", " ") == (
        "The model now ranks the preferred answer first in 75 % of 500 held-out pairs, up from 50 %."
    )


def test_shares_stand_on_scales_with_an_interval_and_on_tiles_without() -> None:
    known, unknown = facts(), facts(heldout={"count": None})
    assert [scale.label for scale in scales(known)] == [
        "Moved towards the preferred answer by training",
        "Preferred answer ranked first",
    ]
    assert "Preferred answer ranked first" not in [tile.label for tile in tiles(known)]
    assert not scales(unknown)
    assert "Preferred answer ranked first" in [tile.label for tile in tiles(unknown)]
