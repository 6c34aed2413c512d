"""Whole runs that guards warn, stop or take back: what is put back, what goes more gently, and how often.

Most runs have a guard of the test's own, on a figure that is bad at the steps the test says; the last ones are real.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from prefine.errors import NotFiniteError, Stopped, TrainingError
from prefine.generation.writer import Writer
from prefine.recipe.dpo import DpoRecipe
from prefine.recipe.guards import Action, GuardSection
from prefine.recipe.kto import KtoRecipe
from prefine.recipe.orpo import OrpoRecipe
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.sft import SftRecipe
from prefine.recipe.stage import StageRecipe
from prefine.training.loop.checkpoint import Checkpoint, load_checkpoint, newest_valid
from prefine.training.loop.checkpointer import Checkpointer
from prefine.training.loop.contract import Sums
from prefine.training.loop.guards import Limit
from prefine.training.loop.loop import Loop
from prefine.training.loop.rollback import Rollback
from prefine.training.loop.run_log import RunLog
from prefine.training.rl.stage import PpoObjective, PpoStage, run_ppo
from prefine.training.run.stage import Objective, Stage
from prefine.training.stages.dpo import DpoObjective, DpoStage, run_dpo
from prefine.training.stages.kto import KtoObjective, KtoStage, run_kto
from prefine.training.stages.orpo import OrpoObjective, OrpoStage, run_orpo
from prefine.training.stages.sft import SftObjective, SftStage, run_sft
from tests.training import tiny
from tests.training.loop.test_processes import together

Make = Callable[..., StageRecipe]
STAGES: dict[str, type[Stage[Any, Any]]] = {
    "sft": SftStage,
    "dpo": DpoStage,
    "kto": KtoStage,
    "orpo": OrpoStage,
    "ppo": PpoStage,
}
OBJECTIVES: dict[str, type[Objective[Any]]] = {
    "sft": SftObjective,
    "dpo": DpoObjective,
    "kto": KtoObjective,
    "orpo": OrpoObjective,
    "ppo": PpoObjective,
}
QUICK = {"report.samples": 0, "training.self_checks": False, "training.max_steps": 7}
# Few and short answers; guards that T's own figures do not trip; all that a run may carry from one update to the next.
QUICK_PPO = {
    "rollout.max_new_tokens": 6,
    "rollout.heldout_prompts": 2,
    "ppo.epochs": 1,
    "guards.kl.limit": 10.0,
    "kl.controller": "adaptive",
    "kl.horizon": 50,
    "reward.scale": "running",
    "guards.reward_spread.action": "off",  # a few answers of six bytes are often rewarded alike
}


def recipe(make: Make, stage: str, name: str = "run", **changes: Any) -> StageRecipe:
    """A short run; `training__epochs=2` is training.epochs: 2."""
    told = {key.replace("__", "."): value for key, value in changes.items()}
    return make(stage, name, {**QUICK, **(QUICK_PPO if stage == "ppo" else {}), **told})


def acted(made: StageRecipe) -> list[dict[str, Any]]:
    """What guards did but for warnings: an estimate of the KL on a few bytes is often negative."""
    return [event for event in events(made) if event["action"] != "warn"]


def train(made: StageRecipe, resume: bool = False) -> str:
    """Run a recipe as the command line does; returns what it said."""
    text = io.StringIO()
    said = Console(file=text)
    if isinstance(made, PpoRecipe):
        run_ppo(made, resume, said)
    elif isinstance(made, DpoRecipe):
        run_dpo(made, resume, said)
    elif isinstance(made, KtoRecipe):
        run_kto(made, resume, said)
    elif isinstance(made, OrpoRecipe):
        run_orpo(made, resume, said)
    else:
        assert isinstance(made, SftRecipe)
        run_sft(made, resume, said)
    return text.getvalue()


def troubled(
    patched: pytest.MonkeyPatch,
    stage: str,
    bad: Sequence[set[int]],
    *,
    action: Action = "roll_back",
    patience: int = 1,
    name: str = "trouble",
) -> None:
    """Runs begun now have one more guard, on a figure that is bad at steps bad[n] after n roll-backs (or the last)."""
    kind, objective = STAGES[stage], OBJECTIVES[stage]
    real_step, real_guards = objective.step, kind.guards
    rule = Limit(name, name, GuardSection(limit=0.5, patience=patience, action=action), "so the test wants it")

    def step(self: Objective[Any], loop: Loop, trees: Any) -> dict[str, float]:
        now = bad[min(loop.state.guards.rollbacks, len(bad) - 1)]
        return {**real_step(self, loop, trees), name: float(loop.position.step + 1 in now)}

    patched.setattr(objective, "step", step)
    patched.setattr(kind, "guards", lambda self: (*real_guards(self), rule))


def events(made: StageRecipe) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tiny.manifest(Path(made.run))["guard_events"]
    return found


def steps(made: StageRecipe) -> list[int]:
    return [row["step"] for row in tiny.metrics(Path(made.run)) if row["kind"] == "train"]


def figures(made: StageRecipe, name: str, kind: str = "train") -> dict[int, float]:
    """One figure by step."""
    return {row["step"]: row[name] for row in tiny.metrics(Path(made.run)) if row["kind"] == kind and name in row}


def checkpoints(made: StageRecipe) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (Path(made.run) / "checkpoints").glob("step-*"))


def saved_at(made: StageRecipe, step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    return load_checkpoint(Checkpoint(Path(made.run) / "checkpoints" / f"step-{step:08d}", step))


def assert_result_is(made: StageRecipe, weights: dict[str, Tensor]) -> None:
    """The saved model holds these weights of a checkpoint."""
    named = {name.replace(".default", ""): weight for name, weight in weights.items()}
    result = tiny.weights(Path(made.run))
    assert result
    assert all(torch.equal(named[name], weight) for name, weight in result.items())


# --- One roll-back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_roll_back_puts_everything_back_but_goes_more_gently(
    stage: str, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Step 4 is bad: step 3's good figures prove what step 2 saved, and nothing proves what step 3 saved.

    What the checkpoint held before is compared with what memory held right after: that is what was saved again.
    """
    clean = recipe(make, stage, "clean")
    train(clean)
    made = recipe(make, stage, training__keep_checkpoints=100)
    troubled(monkeypatch, stage, [{4}, set()])
    left: list[tuple[list[int], list[dict[str, Any]]]] = []
    real_load, real_cut = Checkpointer.load_step, RunLog.cut_after

    def loading(checkpoints: Checkpointer, step: int) -> None:
        shutil.copytree(checkpoints.run.checkpoints / f"step-{step:08d}", tmp_path / "before")
        real_load(checkpoints, step)

    def cutting(log: RunLog, *arguments: Any) -> None:
        real_cut(log, *arguments)
        left.append((checkpoints(made), tiny.metrics(Path(made.run))))

    monkeypatch.setattr(Checkpointer, "load_step", loading)
    monkeypatch.setattr(RunLog, "cut_after", cutting)
    said = train(made)

    (tensors, state), (tensors_now, now) = load_checkpoint(Checkpoint(tmp_path / "before", 2)), saved_at(made, 2)
    assert tensors.keys() == tensors_now.keys()
    for group, members in tensors.items():
        assert members.keys() == tensors_now[group].keys()
        assert all(torch.equal(tensor, tensors_now[group][name]) for name, tensor in members.items()), group
    assert all(state[name] == now[name] for name in ("position", "watch", "rng"))
    assert state["position"]["step"] == 2
    halved = {name: [rate / 2 for rate in state["scheduler"][name]] for name in ("base_lrs", "_last_lr")}
    assert now["scheduler"] == state["scheduler"] | halved
    for group, group_now in zip(state["optimizer"]["groups"], now["optimizer"]["groups"], strict=True):
        assert group_now == group | {"lr": group["lr"] / 2, "initial_lr": group["initial_lr"] / 2}
    doubled = {"kl_coefficient": 2 * state["stage"]["kl_coefficient"]} if stage == "ppo" else {}
    assert now["stage"] == state["stage"] | doubled
    assert now["guards"]["rollbacks"] == 1

    there, rows = left[-1]
    assert there == [0, 1, 2], "later checkpoints are gone"
    assert {row["step"] for row in rows} == {0, 1, 2}
    (event,) = acted(made)
    assert rows[-1] == {"kind": "guard", "step": 2, **event}
    assert [(row["step"], row["trouble"]) for row in event.pop("given_up")] == [(3, 0.0), (4, 1.0)]
    words = "trouble is 1.000, above 0.500: so the test wants it"
    told = {"guard": "trouble", "action": "roll_back", "at_step": 4, "words": words, "back_to_step": 2}
    assert event == {**told, "changed": {"learning_rate": 5e-3, **doubled}}
    assert f"guard trouble at step 4: {words}; the run goes back to step 2" in said
    assert steps(made) == [1, 2, 3, 4, 5, 6, 7], "each once, as done last"
    rates, usual = figures(made, "learning_rate"), figures(clean, "learning_rate")
    assert rates == {step: rate if step <= 2 else rate / 2 for step, rate in usual.items()}
    assert tiny.manifest(Path(made.run))["status"] == "finished"


def test_the_healthy_checkpoint_outlives_many_saves(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One checkpoint is kept; those after steps 3 to 5 are not proven, as steps 4 to 6 are bad."""
    made = recipe(make, "sft", training__keep_checkpoints=1)
    troubled(monkeypatch, "sft", [{4, 5, 6}, set()], patience=3)
    kept: list[list[int]] = []
    real = Checkpointer.save

    def saving(checkpointer: Checkpointer, **more: Any) -> None:
        real(checkpointer, **more)
        kept.append(checkpoints(made))

    monkeypatch.setattr(Checkpointer, "save", saving)
    train(made)
    (event,) = events(made)
    assert (event["at_step"], event["back_to_step"]) == (6, 2)
    assert [row["step"] for row in event["given_up"]] == [3, 4, 5, 6]
    # Until the next step has proven the newest, the one before stays; step 2 stays while all after it are in doubt.
    assert kept[:6] == [[0], [0, 1], [1, 2], [2, 3], [2, 4], [2, 5]]
    assert kept[6] == [2], "after the roll-back"
    assert kept[7:] == [[2, 3], [3, 4], [4, 5], [5, 6], [6, 7]]


def test_bad_again_at_once_it_goes_back_to_the_same_checkpoint(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(make, "sft", training__keep_checkpoints=1)
    troubled(monkeypatch, "sft", [{4}, {3}, set()])
    train(made)
    assert [(event["at_step"], event["back_to_step"]) for event in events(made)] == [(4, 2), (3, 2)]
    assert [event["changed"]["learning_rate"] for event in events(made)] == [5e-3, 2.5e-3]
    assert steps(made) == [1, 2, 3, 4, 5, 6, 7]


def test_where_nothing_is_proven_it_goes_back_to_the_start(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(make, "sft", training__save_every_steps=None)
    troubled(monkeypatch, "sft", [{5}, set()])
    train(made)
    assert [(event["at_step"], event["back_to_step"]) for event in events(made)] == [(5, 0)]
    assert [row["step"] for row in events(made)[0]["given_up"]] == [1, 2, 3, 4, 5]
    assert steps(made) == [1, 2, 3, 4, 5, 6, 7]
    assert list(figures(made, "loss", "heldout")) == [0, 3, 6, 7]


# --- The end by a guard ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("action", "actions"), [("stop", ["stop"]), ("roll_back", ["roll_back", "roll_back", "stop"])])
def test_it_ends_on_the_last_healthy_weights(
    stage: str, action: Action, actions: list[str], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, or after max_rollbacks; finished, with model and report. Steps 1 and 2 were never given up."""
    clean = recipe(make, stage, "clean", training__keep_checkpoints=100)
    train(clean)
    made = recipe(make, stage, guards__max_rollbacks=2)
    troubled(monkeypatch, stage, [{4}], action=action)
    said = train(made)
    assert [event["action"] for event in events(made)] == actions
    assert {(event["at_step"], event["back_to_step"]) for event in events(made)} == {(4, 2)}
    assert_result_is(made, saved_at(clean, 2)[0]["weights"])
    run = Path(made.run)
    assert "the run ends on the weights of step 2" in said
    assert (tiny.manifest(run)["status"], checkpoints(made)[-1]) == ("finished", 2)
    assert steps(made) == [1, 2]
    assert [row["action"] for row in tiny.metrics(run) if row["kind"] == "guard"] == actions
    rates = [event["changed"]["learning_rate"] for event in events(made)[:-1]]
    assert rates == [5e-3, 2.5e-3][: len(rates)]
    assert (run / "report.html").exists()
    assert f"{run} is finished already" in train(made, resume=True)


def test_stopped_at_the_first_step_the_result_is_what_was_loaded(
    make: Make, monkeypatch: pytest.MonkeyPatch, real_report: None
) -> None:
    """A fresh adapter changes nothing: its B is 0. The report is drawn of no step at all."""
    made = recipe(make, "sft")
    troubled(monkeypatch, "sft", [{1}], action="stop")
    train(made)
    assert steps(made) == []
    of_b = [weight for name, weight in tiny.weights(Path(made.run)).items() if "lora_B" in name]
    assert of_b
    assert not any(weight.any() for weight in of_b)
    assert (Path(made.run) / "report.html").stat().st_size > 10_000


def test_a_report_is_drawn_of_a_run_that_went_back(
    make: Make, monkeypatch: pytest.MonkeyPatch, real_report: None
) -> None:
    made = recipe(make, "dpo")
    troubled(monkeypatch, "dpo", [{4}, set()])
    train(made)
    assert "<svg" in (Path(made.run) / "report.html").read_text("utf-8")


@pytest.mark.parametrize("every", [1, 3])
def test_what_is_told_of_the_result_was_measured_with_it(
    every: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 6 is bad, so it ends on step 4's weights; the last evaluation before was of steps 5 or 3."""
    made = recipe(make, "dpo", training__evaluate_every_steps=every)
    troubled(monkeypatch, "dpo", [{6}], action="stop")
    train(made)
    assert max(figures(made, "margin", "heldout")) == 4
    told = tiny.json.loads((Path(made.run) / "evaluation.json").read_text())["heldout"]
    assert told["after"]["margin"] == figures(made, "margin", "heldout")[4]
    assert sum(pair["after_margin"] for pair in told["pairs"]) / told["count"] == pytest.approx(told["after"]["margin"])


def test_the_best_weights_are_not_those_of_a_step_that_was_given_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out loss falls with every step; after the end on step 3, step 4's may not come back as the best."""
    made = recipe(make, "sft", training__keep_best=True, training__evaluate_every_steps=1)
    clean = recipe(make, "sft", "clean", training__keep_checkpoints=100, training__evaluate_every_steps=1)
    train(clean)
    losses = list(figures(clean, "loss", "heldout").values())
    assert losses == sorted(losses, reverse=True)
    troubled(monkeypatch, "sft", [{5}], action="stop")
    train(made)
    assert tiny.manifest(Path(made.run))["kept_step"] == 3
    assert_result_is(made, saved_at(clean, 3)[0]["weights"])


# --- Warnings --------------------------------------------------------------------------------------------------------


def untroubled_rows(made: StageRecipe) -> list[dict[str, Any]]:
    return [row for row in tiny.metrics(Path(made.run)) if row["kind"] != "guard"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_warning_changes_nothing_but_what_is_told(stage: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, StageRecipe] = {}
    for action in ("off", "warn"):
        made[action] = recipe(make, stage, action)
        with monkeypatch.context() as patched:
            troubled(patched, stage, [{2, 3, 4, 6, 7}], action=action, patience=2)
            said = train(made[action])
    assert [(event["action"], event["at_step"]) for event in events(made["warn"])] == [("warn", 3), ("warn", 7)]
    assert events(made["off"]) == []
    assert said.count("warning at step ") == 2
    assert "warning at step 3: trouble is 1.000, above 0.500 for 2 steps: so the test wants it" in said
    assert untroubled_rows(made["off"]) == untroubled_rows(made["warn"])
    apart = tiny.differences(Path(made["off"].run), Path(made["warn"].run))
    assert apart == ["metrics.jsonl"], "by the guard's rows"


def test_a_warning_does_not_change_where_another_guard_goes_back_to(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, StageRecipe] = {}
    for action in ("off", "warn"):
        made[action] = recipe(make, "sft", action)
        with monkeypatch.context() as patched:
            troubled(patched, "sft", [{4}, set()])
            troubled(patched, "sft", [{1, 2, 3}], action=action, name="mild")
            train(made[action])
    assert [event["back_to_step"] for event in events(made["off"])] == [2]
    assert [event["back_to_step"] for event in events(made["warn"]) if event["action"] != "warn"] == [2]
    assert tiny.differences(Path(made["off"].run), Path(made["warn"].run)) == ["metrics.jsonl"]


# --- Stopped, killed, resumed ----------------------------------------------------------------------------------------

# Two roll-backs, then the end: at step 4 back to 2, at step 6 back to 4, at step 7 for good to 5.
TWICE_AND_OUT = [{4}, {6}, {7}]


def stop_when_asked(numbers: Collection[int], patched: pytest.MonkeyPatch) -> None:
    """Runs begun now are asked to stop at these of the points at which they look, counted from 1 over all of them."""
    real, looks = Loop.__post_init__, itertools.count(1)

    def asked(loop: Loop) -> None:
        real(loop)
        loop.stop_requested = lambda: next(looks) in numbers

    patched.setattr(Loop, "__post_init__", asked)


def stops_and_resumes(made: StageRecipe, points: Collection[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """Train to the end, with a stop at these safe points and a new start after each; how many stops there were."""
    stops = 0
    with monkeypatch.context() as patched:
        stop_when_asked(points, patched)
        while True:
            try:
                train(made, resume=stops > 0)
                return stops
            except Stopped:
                stops += 1
                assert tiny.manifest(Path(made.run))["status"] == "stopped"


@pytest.mark.parametrize(("stage", "safe_points"), [("sft", 8), ("dpo", 8), ("kto", 8), ("orpo", 8), ("ppo", 8 + 11)])
def test_stopped_at_any_safe_point_and_resumed_is_the_same_run(
    stage: str, safe_points: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with two roll-backs and an end by a guard: stopped at all its safe points, and at a single one.

    PPO also stops between the optimiser steps of an update. The loop is the same for all stages, so that SFT alone is
    stopped at each single point.
    """
    troubled(monkeypatch, stage, TWICE_AND_OUT)
    changes = {"guards__max_rollbacks": 2, "training__keep_checkpoints": 1}
    whole = recipe(make, stage, "whole", **changes)
    train(whole)
    assert [(event["action"], event["back_to_step"]) for event in events(whole)] == [
        ("roll_back", 2),
        ("roll_back", 4),
        ("stop", 5),
    ]
    singles = range(1, safe_points + 1) if stage == "sft" else [safe_points // 2]
    for number, points in enumerate([range(1, 1000), *([single] for single in singles)]):
        cut = recipe(make, stage, f"cut-{number}", **changes)
        assert stops_and_resumes(cut, points, monkeypatch) == min(safe_points, len(points))
        assert not tiny.differences(Path(whole.run), Path(cut.run)), points
        assert events(whole) == events(cut)
        assert checkpoints(whole) == checkpoints(cut)


def test_stopped_between_saves_it_goes_back_where_it_would_have(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves at 2, 4 and 6; step 5 is bad, so that step 2 is the last healthy one, whoever stopped at step 3."""
    troubled(monkeypatch, "sft", [{5}, set()])
    whole, cut = (recipe(make, "sft", name, training__save_every_steps=2) for name in ("whole", "cut"))
    train(whole)
    assert [event["back_to_step"] for event in events(whole)] == [2]
    with monkeypatch.context() as patched:
        stop_when_asked([3], patched)
        with pytest.raises(Stopped, match="after step 3 of 7"):
            train(cut)
    train(cut, resume=True)
    assert [event["back_to_step"] for event in events(cut)] == [2]
    assert not tiny.differences(Path(whole.run), Path(cut.run))


def dying(number: int) -> None:
    """From now on this process, a forked one, kills itself before the `number`th renaming within a roll-back."""
    apply, replace, rename = Rollback._apply, Path.replace, Path.rename
    within, count = [False], iter(range(1, 1000))

    def acting(rollback: Rollback, alarm: Any) -> bool:
        within[0] = True
        went_on = apply(rollback, alarm)
        within[0] = False
        return went_on

    def deadly(real: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def renaming(path: Path, target: Path) -> Path:
            if within[0] and next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(path, target)

        return renaming

    for name, value in (("replace", deadly(replace)), ("rename", deadly(rename))):
        setattr(Path, name, value)
    Rollback._apply = acting  # type: ignore[method-assign]


@pytest.mark.usefixtures("warm")
def test_killed_at_any_write_of_a_roll_back_it_is_the_same_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either roll-back and of the end: before each file or folder is put in its place or taken away."""
    troubled(monkeypatch, "sft", TWICE_AND_OUT)
    changes = {"guards__max_rollbacks": 2, "training__keep_checkpoints": 2, "training__evaluate_every_steps": None}
    whole = recipe(make, "sft", "whole", **changes)
    train(whole)
    apart, writes = {}, 0
    while True:
        cut = recipe(make, "sft", f"cut-{writes}", **changes)

        def attempt(number: int = writes + 1, made: StageRecipe = cut) -> None:
            dying(number)
            train(made)

        if tiny.forked(attempt) == 0:
            break
        writes += 1
        train(cut, resume=True)
        found = tiny.differences(Path(whole.run), Path(cut.run))
        found += [] if events(whole) == events(cut) else ["events"]
        apart |= {writes: found} if found else {}
    assert writes >= 9
    assert not apart


def test_time_is_counted_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(make, "sft", guards__max_rollbacks=3)
    troubled(monkeypatch, "sft", [{3}, {5}, {7}, set()])
    began = time.perf_counter()
    train(made)
    elapsed = time.perf_counter() - began
    assert len(events(made)) == 3
    assert tiny.manifest(Path(made.run))["seconds"] <= elapsed + 0.1


# --- A loss or gradient that is no number ----------------------------------------------------------------------------

NAN = {
    "loss": lambda loss: loss * float("nan"),
    "gradient norm": lambda loss: loss + (loss - loss.detach()) * 1e38,
}


def breaking(patched: pytest.MonkeyPatch, stage: str, what: str, calls: Callable[[int], bool]) -> None:
    """The stage's loss is no number in those of its calls, counted from 0 over all of a process's runs."""
    kind = OBJECTIVES[stage]
    real, count = kind.loss, iter(range(1000))

    def broken(self: Objective[Any], model: Any, batch: Any) -> Sums:
        sums = real(self, model, batch)
        return replace(sums, loss=NAN[what](sums.loss)) if calls(next(count)) else sums

    patched.setattr(kind, "loss", broken)


@pytest.mark.parametrize("what", NAN)
@pytest.mark.parametrize("stage", STAGES)
def test_once_not_finite_it_dumps_the_batch_goes_back_and_on(
    stage: str, what: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(make, stage, guards__non_finite={"action": "roll_back"})
    breaking(monkeypatch, stage, what, lambda call: call == 7)
    said = train(made)
    (event,) = acted(made)
    assert (event["guard"], event["action"]) == ("non_finite", "roll_back")
    bad = event["at_step"]
    assert event["back_to_step"] == bad - 2, "nothing proves what the step before it saved"
    assert re.match(rf"the {what} became (nan|inf) at step {bad}; its batch is in ", event["words"])
    assert f"; the run goes back to step {bad - 2}" in said
    dump = tiny.json.loads((Path(made.run) / "non-finite-batch.json").read_text())
    assert (dump["step"], dump["what"]) == (bad, what)
    assert dump["input_ids"]
    assert steps(made) == [1, 2, 3, 4, 5, 6, 7]
    assert event["changed"]["learning_rate"] == 5e-3
    assert tiny.manifest(Path(made.run))["status"] == "finished"
    assert all(weight.isfinite().all() for weight in tiny.weights(Path(made.run)).values())


@pytest.mark.parametrize("stage", STAGES)
def test_for_ever_not_finite_it_goes_back_so_often_and_then_ends_on_healthy_weights(
    stage: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"guards__non_finite": {"action": "roll_back"}, "guards__max_rollbacks": 2}
    made = recipe(make, stage, training__keep_checkpoints=100, **changes)
    breaking(monkeypatch, stage, "loss", lambda call: call >= 7)
    said = train(made)
    run = Path(made.run)
    assert [row["action"] for row in tiny.metrics(run) if row["kind"] == "guard"] == ["roll_back", "roll_back", "stop"]
    assert re.search(
        r"guard non_finite at step \d: the loss became nan .*; the run ends on the weights of step \d", said
    )
    assert tiny.manifest(run)["status"] == "finished"
    assert all(weight.isfinite().all() for weight in tiny.weights(run).values())


@pytest.mark.parametrize("heldout", [False, True])
def test_logits_that_are_no_numbers_take_a_run_back(heldout: bool, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where weights have gone wrong, PPO sees it first in what they write: in an update, or in an evaluation."""
    made = recipe(make, "ppo", training__evaluate_every_steps=3)
    real, count = Writer.write, iter(range(1000))
    bad = 4 if heldout else 5  # written to: held-out prompts, those of updates 1 to 3, held-out ones, those of update 4

    def write(self: Writer, *arguments: Any, **named: Any) -> Any:
        if next(count) == bad:
            raise NotFiniteError("the model's logits are not finite", "Look.")
        return real(self, *arguments, **named)

    monkeypatch.setattr(Writer, "write", write)
    said = train(made)
    (event,) = acted(made)
    assert (event["guard"], event["action"]) == ("non_finite", "roll_back")
    assert event["at_step"] == (3 if heldout else 4)
    assert event["back_to_step"] == 2
    assert f"guard non_finite at step {event['at_step']}: the model's logits are not finite; the run goes back" in said
    assert tiny.manifest(Path(made.run))["status"] == "finished"


@pytest.mark.parametrize("stage", STAGES)
def test_with_stop_it_is_an_error_that_leaves_the_last_checkpoint_and_can_be_resumed(
    stage: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PPO alone has guards that go back, and so a checkpoint of step 0."""
    changes = {"guards__non_finite": {"action": "stop"}, "training__keep_checkpoints": 100}
    whole, made = recipe(make, stage, "whole", **changes), recipe(make, stage, **changes)
    train(whole)
    with monkeypatch.context() as patched:
        breaking(patched, stage, "loss", lambda call: call == 7)
        with pytest.raises(
            TrainingError, match=r"the loss became nan at step \d; its batch is in .*--resume"
        ) as raised:
            train(made)
    run, failed_at = Path(made.run), int(str(raised.value).partition("at step ")[2][0])
    newest = newest_valid(run / "checkpoints")
    assert newest is not None
    assert newest.step == failed_at - 1
    assert checkpoints(made) == list(range(0 if stage == "ppo" else 1, failed_at))
    for step in checkpoints(made):
        ours, theirs = (saved_at(each, step)[0]["weights"] for each in (made, whole))
        assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items()), step
    assert tiny.manifest(run)["status"] == "failed"
    train(made, resume=True)
    assert not tiny.differences(Path(whole.run), run)
    assert events(made) == []


# --- Real trouble ----------------------------------------------------------------------------------------------------


def test_a_fall_of_the_chosen_answers_warns_or_ends_on_healthy_weights(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Answers that share all but one letter: what pushes one down pushes both. Off, the fall goes on and on."""
    ending = "is the answer to it, surely"
    rows = [{"prompt": f"question {i}", "chosen": f"a {ending} {i}", "rejected": f"b {ending} {i}"} for i in range(30)]
    data = str(tiny.write_rows(tmp_path / "pairs.jsonl", rows))
    taught = recipe(make, "sft", "taught", data__train=data, training__epochs=8, training__max_steps=None)
    train(taught)
    made: dict[str, StageRecipe] = {}
    for action in ("off", "warn", "stop"):
        guard = {"limit": 5.0, "patience": 2, "action": action}
        made[action] = recipe(
            make,
            "dpo",
            action,
            data__train=data,
            model__name=taught.run,
            training__epochs=5,
            training__max_steps=20,
            training__keep_checkpoints=100,
            guards__chosen_fall=guard,
        )
        said = train(made[action])
    fall = figures(made["off"], "chosen_fall")
    first = min(step for step in fall if fall[step] > 5 and fall.get(step - 1, 0.0) > 5)
    assert max(fall.values()) > 10
    assert figures(made["warn"], "chosen_fall") == fall
    assert (events(made["warn"])[0]["at_step"], events(made["warn"])[0]["action"]) == (first, "warn")
    assert not [row for row in tiny.differences(Path(made["off"].run), Path(made["warn"].run)) if "weights" in row]
    (event,) = events(made["stop"])
    assert event["at_step"] == first
    healthy = event["back_to_step"]
    assert healthy < first - 2
    assert all(fall[step] <= 5 for step in range(1, healthy + 2)), "what was kept was measured, and had not fallen so"
    assert_result_is(made["stop"], saved_at(made["off"], healthy)[0]["weights"])
    assert "the chosen answers become unlikely, too; dpo.nll_weight or a lower learning rate prevents that" in said


# --- Two processes ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_go_back_as_one_does(stage: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    steady = {"lora__dropout": 0.0, "training__learning_rate": 1e-3}
    troubled(monkeypatch, stage, [{4}, set()])
    one, two = (recipe(make, stage, name, **steady) for name in ("one", "two"))
    train(one)
    assert together(lambda rank: train(two)) == [0, 0]
    assert [(event["at_step"], event["back_to_step"]) for event in events(two)] == [(4, 2)]
    alone, shared = tiny.metrics(Path(one.run)), tiny.metrics(Path(two.run))
    assert [(row["kind"], row["step"]) for row in alone] == [(row["kind"], row["step"]) for row in shared]
    assert figures(two, "loss") == pytest.approx(figures(one, "loss"), rel=1e-4, abs=1e-4)
    assert figures(two, "learning_rate") == figures(one, "learning_rate")
    for name, weight in tiny.weights(Path(one.run)).items():
        torch.testing.assert_close(tiny.weights(Path(two.run))[name], weight, rtol=0, atol=2e-5)


@pytest.mark.usefixtures("warm")
def test_an_evaluation_that_differs_in_its_last_bits_is_judged_alike(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process evaluates by itself; the limit lies between the two figures."""
    rule = Limit("gap", "gap", GuardSection(limit=0.5, action="stop"), "so the test wants it", heldout=True)
    real = SftObjective.evaluate

    def evaluate(self: SftObjective) -> dict[str, float]:
        row = real(self)
        return {**row, "gap": 0.5 + (1e-9 if os.environ.get("RANK") == "1" else -1e-9) if row["loss"] < 5.4 else 0.0}

    monkeypatch.setattr(SftStage, "guards", lambda self: (rule,))
    monkeypatch.setattr(SftObjective, "evaluate", evaluate)
    made = recipe(make, "sft")
    assert together(lambda rank: train(made)) == [0, 0]
    assert tiny.manifest(Path(made.run))["status"] == "finished"
    assert events(made) == [], "the main process decides"
