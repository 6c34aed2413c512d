"""Guards by hand, and against a plain restatement of their rule: when one acts, and which checkpoint is healthy."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine.recipe.dpo import DpoRecipe
from prefine.recipe.guards import GuardSection, NonFiniteGuard
from prefine.recipe.rl import PpoRecipe
from prefine.training.loop.contract import State
from prefine.training.loop.guards import Alarm, Guards, Limit
from prefine.training.rl.stage import PpoStage
from prefine.training.stages.dpo import DpoStage

Action = Literal["off", "warn", "stop", "roll_back"]
LIMIT = 1.0


def rule(
    name: str = "kl", *, patience: int = 1, action: Action = "roll_back", limit: float = LIMIT, **more: Any
) -> Limit:
    """A guard on the figure x, unless told otherwise."""
    section = GuardSection(limit=limit, patience=patience, action=action)
    return Limit(name, **{"figure": "x", "means": "it went far", **more}, section=section)


def acted(guards: Guards, values: list[float | None], **more: Any) -> list[int]:
    """Steps, counted from 1, at which a guard acts on a series of x; None is a step without it."""
    rows = [{"other": 0.0} if value is None else {"x": value} for value in values]
    return [step for step, row in enumerate(rows, start=1) if guards.check(step, row, **more) is not None]


# --- When one acts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patience", "values", "steps"),
    [
        (1, [0.0, 2.0, 0.0, 2.0], [2, 4]),
        (1, [2.0, 2.0, 2.0], [1]),  # once a streak, however long it is
        (2, [2.0, 0.0, 2.0, 2.0, 2.0, 2.0, 0.0, 2.0, 2.0], [4, 9]),
        (3, [2.0, 2.0, 0.0, 2.0, 2.0], []),
        (2, [2.0, None, 2.0], [3]),  # a step without the figure neither counts nor breaks a streak
    ],
)
def test_it_acts_when_the_figure_was_beyond_for_so_many_steps_in_a_row(
    patience: int, values: list[float | None], steps: list[int]
) -> None:
    assert acted(Guards([rule(patience=patience)]), values) == steps


def test_the_limit_itself_is_allowed_on_either_side() -> None:
    above, below = rule(), rule(below=True)
    assert [above.broken(value, 0.0) for value in (0.999, 1.0, 1.001)] == [False, False, True]
    assert [below.broken(value, 0.0) for value in (0.999, 1.0, 1.001)] == [True, False, False]


@pytest.mark.parametrize("below", [False, True])
def test_what_is_no_number_is_beyond_any_limit(below: bool) -> None:
    guards = Guards([rule(patience=2, below=below)])
    assert acted(guards, [math.nan, math.nan]) == [2]
    alarm = Guards([rule(below=below)]).check(1, {"x": math.nan})
    assert alarm is not None
    assert "x is nan" in alarm.words


def test_an_infinity_is_beyond_on_its_own_side_only() -> None:
    assert acted(Guards([rule()]), [-math.inf, math.inf]) == [2]
    assert acted(Guards([rule(below=True)]), [math.inf, -math.inf]) == [2]


def test_from_start_the_limit_is_on_the_change_since_the_first_step_that_has_the_figure() -> None:
    """0.3 above 0.5 is allowed, 0.3 above nothing is not what is asked."""
    guards = Guards([rule(limit=0.3, from_start=True)])
    assert acted(guards, [None, 0.5, 0.75, 0.8, 0.85, 0.1, 0.85]) == [5, 7]
    falling = Guards([rule(limit=-0.3, from_start=True, below=True)])
    assert acted(falling, [0.5, 0.25, 0.15]) == [3]


def test_off_never_acts_and_leaves_no_trace() -> None:
    guards, without = Guards([rule(action="off")], saved_step=2), Guards([], saved_step=2)
    assert acted(guards, [0.0, 9.0, math.nan]) == []
    acted(without, [0.0, 9.0, math.nan])
    assert guards.state() == without.state()
    assert guards.healthy_step == 2


def test_figures_of_evaluations_and_of_steps_do_not_mix() -> None:
    """A bad evaluation between two bad steps is not a third, nor the other way round."""
    guards = Guards([rule("of steps", patience=3), rule("of evaluations", patience=2, heldout=True)])
    assert guards.check(1, {"x": 2.0}) is None
    assert guards.check(1, {"x": 2.0}, heldout=True) is None
    assert guards.check(2, {"x": 2.0}) is None
    alarm = guards.check(2, {"x": 2.0}, heldout=True)
    assert alarm is not None
    assert alarm.guard == "of evaluations"
    alarm = guards.check(3, {"x": 2.0})
    assert alarm is not None
    assert alarm.guard == "of steps"


def test_a_change_is_that_of_steps_or_of_evaluations_but_not_from_one_to_the_other() -> None:
    of_steps, of_evaluations = rule("a", from_start=True), rule("b", from_start=True, heldout=True)
    guards = Guards([of_steps, of_evaluations])
    assert guards.check(0, {"x": -5.0}, heldout=True) is None
    assert guards.check(1, {"x": 5.0}) is None, "the first step cannot have changed"
    assert guards.check(2, {"x": 6.5}) is not None
    assert guards.check(2, {"x": -4.5}, heldout=True) is None


Series = list[dict[str, float]]
values = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, math.inf, -math.inf, math.nan])
series = st.lists(st.dictionaries(st.sampled_from(["x", "y"]), values), max_size=14)
some_rules = st.lists(
    st.builds(
        rule,
        name=st.integers(0, 1_000).map(str),
        figure=st.sampled_from(["x", "y"]),
        limit=st.sampled_from([-1.0, 0.0, 1.0]),
        patience=st.integers(1, 3),
        action=st.sampled_from(["off", "warn", "stop", "roll_back"]),
        below=st.booleans(),
        from_start=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda each: each.name,
)


def beyond(each: Limit, value: float, first: float) -> bool:
    """The rule in other words: the figure, or its change, on the wrong side of the limit."""
    if math.isnan(value) or (each.from_start and math.isnan(first)):
        return True
    limit = first + each.section.limit if each.from_start else each.section.limit
    return value < limit if each.below else value > limit


def alarms_at(rules: list[Limit], rows: Series) -> set[tuple[str, str]]:
    """(guard, action) of all that should act on the last row of a series, told from the series as a whole."""
    found = set()
    for each in rules:
        seen = [row[each.figure] for row in rows if each.figure in row]
        if not rows or each.figure not in rows[-1] or each.section.action == "off":
            continue
        wrong = [beyond(each, value, seen[0]) for value in seen]
        patience = each.section.patience
        if len(wrong) >= patience and all(wrong[-patience:]) and not all(wrong[-patience - 1 : -patience] or [False]):
            found.add((each.name, each.section.action))
    return found


@given(rules=some_rules, rows=series)
def test_guards_do_what_their_rule_says(rules: list[Limit], rows: Series) -> None:
    """On every prefix of any series: nothing acts, or one of those that should, and none that is less bad."""
    guards = Guards(rules, max_rollbacks=1)
    for step, row in enumerate(rows, start=1):
        wanted = alarms_at(rules, rows[:step])
        alarm = guards.check(step, row)
        if not wanted:
            assert alarm is None
            continue
        assert alarm is not None
        assert (alarm.guard, alarm.action) in wanted
        assert alarm.step == step
        if any(action != "warn" for _, action in wanted):
            assert alarm.action != "warn"


@given(rules=some_rules, rows=series, cut=st.integers(0, 14))
def test_restored_from_a_checkpoint_they_go_on_as_if_nothing_had_been(
    rules: list[Limit], rows: Series, cut: int
) -> None:
    whole, before = Guards(rules), Guards(rules)
    saved = None
    for step, row in enumerate(rows, start=1):
        one = whole.check(step, row)
        if saved is None:
            before.check(step, row)
            if step == cut:
                saved = Guards(rules)
                saved.load_state(State({}, json.loads(json.dumps(before.state().json))))
        else:
            assert saved.check(step, row) == one
        whole.saved_step = before.saved_step = step
        if saved is not None:
            saved.saved_step = step
    if saved is not None:
        assert json.dumps(saved.state()) == json.dumps(whole.state())


# --- Which of several, and what it may do ----------------------------------------------------------------------------


@pytest.mark.parametrize("worse", ["stop", "roll_back"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_worst_alarm_wins_whatever_their_order(worse: Action, order: int) -> None:
    rules = [rule("mild", action="warn"), rule("bad", action=worse), rule("mild too", action="warn")][::order]
    alarm = Guards(rules, max_rollbacks=1).check(1, {"x": 2.0})
    assert alarm is not None
    assert (alarm.guard, alarm.action) == ("bad", worse)


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_after_so_many_roll_backs_a_roll_back_means_stop(done: int) -> None:
    guards = Guards([rule()], max_rollbacks=2, rollbacks=done)
    alarm, over_nan = guards.check(1, {"x": 2.0}), guards.non_finite(1, "roll_back", "the loss became nan")
    assert alarm is not None
    assert alarm.action == over_nan.action == ("roll_back" if done < 2 else "stop")
    milder = Guards([rule(action="warn")], max_rollbacks=2, rollbacks=done).check(1, {"x": 2.0})
    assert milder is not None
    assert milder.action == "warn"


def test_an_alarm_says_what_was_found_on_which_side_of_what_for_how_long_and_what_it_means() -> None:
    guards = Guards([rule(patience=2, figure="kl_k3", limit=0.2, means="the policy has moved far")])
    guards.check(6, {"kl_k3": 0.5})
    alarm = guards.check(7, {"kl_k3": 0.41})
    assert alarm is not None
    assert alarm.words == "kl_k3 is 0.410, above 0.200 for 2 steps: the policy has moved far"
    low = Guards([rule(below=True, from_start=True, limit=-0.5)])
    low.check(1, {"x": 2.0})
    found = low.check(2, {"x": 1.25})
    assert found is not None
    assert found.words == "x is 1.250, below 1.500: it went far"
    assert Guards([]).non_finite(3, "stop", "the loss became nan") == Alarm(
        "non_finite", "stop", 3, "the loss became nan"
    )


def test_the_last_weights_are_looked_at_by_the_last_evaluation() -> None:
    """Figures of steps are of the weights they began with, so that no step tells of the last ones."""
    rules = [
        rule("kl", patience=3),
        rule("degenerate", figure="d", from_start=True),
        rule("off", action="off"),
        rule("gap", heldout=True),
        rule("not told", figure="z"),
    ]
    guards = Guards(rules)
    guards.check(1, {"x": 0.0, "d": 0.5})
    assert guards.check_last(7, {"x": 0.9, "d": 1.4}) == []
    found = guards.check_last(7, {"x": 2.0, "d": 1.6})
    assert [alarm.guard for alarm in found] == ["kl", "degenerate"]
    assert found[0].words == "x is 2.000, above 1.000 in the last evaluation: it went far"


def test_an_event_keeps_the_alarm_and_what_was_done() -> None:
    guards = Guards([])
    event = guards.record(Alarm("kl", "roll_back", 7, "far"), back_to_step=4)
    wanted = {"guard": "kl", "action": "roll_back", "at_step": 7, "words": "far", "back_to_step": 4}
    assert event == wanted
    assert guards.events == [wanted]


# --- Which checkpoint is healthy -------------------------------------------------------------------------------------


def run(guards: Guards, values: list[float], save_every: int = 1) -> list[int | None]:
    """The healthy step as known after each of some steps, each of them followed by a save where one is due."""
    healthy = []
    for step, value in enumerate(values, start=1):
        guards.check(step, {"x": value})
        healthy.append(guards.healthy_step)
        if step % save_every == 0:
            guards.saved_step = step
    return healthy


def test_a_good_step_proves_the_checkpoint_that_it_began_with_and_a_bad_one_does_not() -> None:
    """Step 4 is bad, so what step 3 saved is never proven; step 5's figures are of what step 4 saved, and are good."""
    guards = Guards([rule(patience=9)], healthy_step=0, saved_step=0)
    assert run(guards, [0.0, 0.0, 0.0, 2.0, 0.0, 2.0, 2.0]) == [0, 1, 2, 2, 4, 4, 4]


def test_only_the_step_right_after_a_checkpoint_can_prove_it() -> None:
    """Saved after 2 and 4; step 3 is bad, and step 4 tells of other weights than those saved after 2."""
    guards = Guards([rule(patience=9)], healthy_step=0, saved_step=0)
    assert run(guards, [0.0, 0.0, 2.0, 0.0, 0.0, 0.0], save_every=2) == [0, 0, 0, 0, 4, 4]


def test_where_evaluations_may_take_a_run_back_a_checkpoint_needs_a_good_one_after_it() -> None:
    """Steps 1 to 4 are good; nobody knows of the held-out figure until the evaluation after step 4."""
    guards = Guards([rule("gap", heldout=True), rule("kl", figure="y")], healthy_step=0, saved_step=0)
    for step in range(1, 5):
        guards.check(step, {"y": 0.0})
        assert (guards.healthy_step, guards.proven_step) == (0, step - 1)
        if step < 4:
            guards.saved_step = step
    guards.check(4, {"x": 0.0}, heldout=True)
    assert guards.healthy_step == 3
    guards.saved_step = 4
    guards.check(5, {"y": 0.0})
    assert guards.healthy_step == 4, "saved after the evaluation, of the weights that were evaluated"
    guards.saved_step = 5
    guards.check(6, {"y": 0.0})
    assert guards.healthy_step == 4
    alarm = guards.check(6, {"x": 2.0}, heldout=True)
    assert alarm is not None
    assert (guards.healthy_step, guards.proven_step) == (4, 5)
    assert [row["step"] for row in guards.history] == [5, 6, 6]


def test_evaluations_that_only_warn_leave_checkpoints_to_the_steps() -> None:
    guards = Guards([rule("gap", heldout=True, action="warn")], healthy_step=0, saved_step=0)
    guards.check(1, {"x": 5.0}, heldout=True)
    assert run(guards, [0.0, 0.0]) == [0, 1]


def test_a_bad_evaluation_keeps_checkpoints_unproven_until_a_good_one() -> None:
    guards = Guards([rule("gap", heldout=True, patience=2)], healthy_step=0, saved_step=0)
    guards.check(1, {"x": 5.0}, heldout=True)
    assert run(guards, [0.0, 0.0]) == [0, 0]
    guards.check(2, {"x": 0.0}, heldout=True)
    guards.check(3, {"x": 0.0})
    assert guards.healthy_step == 2


def test_what_is_given_up_proves_nothing() -> None:
    """After a roll-back to 1, evaluations of what was given up are forgotten: a new checkpoint needs its own."""
    guards = Guards([rule("gap", heldout=True), rule("kl", figure="y")], max_rollbacks=1, healthy_step=1, saved_step=1)
    kept = guards.state()
    for step in range(2, 5):
        guards.check(step, {"y": 0.0})
        guards.check(step, {"x": 0.0}, heldout=True)
    guards.healthy_step = 1
    before = guards.state()
    guards.load_state(kept)
    guards.after_rollback(before)
    guards.check(2, {"y": 0.0})
    guards.saved_step = 2
    guards.check(3, {"y": 0.0})
    assert (guards.healthy_step, guards.proven_step) == (1, 2)


def test_figures_are_kept_from_the_step_that_proved_the_healthy_checkpoint() -> None:
    """For the event that tells what was given up: the healthy step's own successor, and what came after it."""
    guards = Guards([rule(patience=3), rule("off", figure="y", action="off")], healthy_step=0, saved_step=0)
    for step, value in enumerate([0.0, 0.5, 2.0, 3.0], start=1):
        guards.check(step, {"x": value, "y": 1.0, "loss": 7.0})
        guards.saved_step = step
    assert guards.healthy_step == 1
    assert guards.history == [{"step": 2, "x": 0.5}, {"step": 3, "x": 2.0}, {"step": 4, "x": 3.0}]


def test_going_back_forgets_the_streak_but_neither_the_events_nor_the_count() -> None:
    guards = Guards([rule(patience=2)], max_rollbacks=5, healthy_step=0, saved_step=0)
    saved = State({}, json.loads(json.dumps(guards.state().json)))
    assert acted(guards, [2.0, 2.0]) == [2]
    guards.record(Alarm("kl", "roll_back", 2, "far"))
    guards.rollbacks += 1
    before = guards.state()
    guards.load_state(saved)
    guards.after_rollback(before)
    assert [event["at_step"] for event in guards.events] == [2]
    assert guards.rollbacks == 1
    assert acted(guards, [2.0, 2.0, 0.0, 2.0, 2.0]) == [2, 5]


# --- What stages and recipes bring -----------------------------------------------------------------------------------


def test_every_guard_of_a_ppo_recipe_is_looked_at_with_what_the_recipe_says() -> None:
    made = PpoRecipe()
    rules = {each.name: each for each in PpoStage(made).guards()}
    named = {name for name, _ in made.guards if isinstance(getattr(made.guards, name), GuardSection)}
    assert named == {"kl", "entropy", "degenerate", "value_loss", "reward_spread", "reward_clipped", "proxy_gap"}
    assert all(rules[name].section is getattr(made.guards, name) for name in named)
    assert [name for name, each in rules.items() if each.heldout] == ["proxy_gap"]
    assert {name for name, each in rules.items() if each.below} == {"entropy", "reward_spread", "kl_negative"}
    assert [name for name, each in rules.items() if each.from_start] == ["degenerate"]


def test_of_dpo_only_the_chosen_answers_fall_is_looked_at() -> None:
    made = DpoRecipe.model_validate({"guards": {"chosen_fall": {"limit": 3.0, "action": "stop"}}})
    (found,) = DpoStage(made).guards()
    assert found.broken(3.01, 0.0)
    assert not found.broken(3.0, 0.0)
    assert (found.section.patience, found.section.action) == (5, "stop")


@pytest.mark.parametrize("action", ["off", "warn"])
def test_a_loss_that_is_no_number_cannot_be_waved_through(action: str) -> None:
    with pytest.raises(ValueError, match="stop"):
        NonFiniteGuard.model_validate({"action": action})
