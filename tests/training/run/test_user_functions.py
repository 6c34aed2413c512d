"""Objectives and rewards that a program gives as functions: what they are called with, and what a resume asks."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prefine
from prefine.errors import CheckpointError, RecipeError, Stopped, TrainingError
from prefine.objectives import dpo
from prefine.objectives.dpo import PairLogprobs
from prefine.recipe.stage import StageRecipe
from prefine.training.run.user_functions import function_hash, function_name
from tests.training import tiny

Make = Callable[..., StageRecipe]
TWO = {"training.max_steps": 2}


def the_same(pairs: PairLogprobs) -> Tensor:
    """DPO's own objective."""
    return dpo.sigmoid(dpo.log_ratio_margin(pairs.policy, pairs.reference), pairs.beta)


def stops_after(step: int, metrics: Any, *, last: int) -> None:
    if step == last:
        raise Stopped("enough")


# --- Objectives ------------------------------------------------------------------------------------------------------


def test_an_objective_that_is_dpos_own_trains_the_same_weights(make: Make) -> None:
    own = prefine.dpo(make("dpo", "own", TWO), objective=the_same, display=False)
    builtin = prefine.dpo(make("dpo", "builtin", TWO), display=False)
    mine, theirs = tiny.weights(own.path), tiny.weights(builtin.path)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert own.recipe["dpo"]["loss"] == "function"
    manifest = tiny.manifest(own.path)
    assert manifest["code"]["objective"] == {"name": f"{__name__}:the_same", "sha256": [function_hash(the_same)]}
    (check,) = [check for check in manifest["self_checks"] if check["name"] == "objective"]
    # At policy = reference each loss is ln 2, and its slope is half of beta.
    assert f"losses {math.log(2):.4g} to {math.log(2):.4g}, largest slope {0.1 / 2:.4g}" in check["value"]


def test_nll_weight_is_added_to_an_objective(make: Make) -> None:
    changes = {**TWO, "dpo.nll_weight": 0.5}
    own = prefine.dpo(make("dpo", "own", changes), objective=the_same, display=False)
    builtin = prefine.dpo(make("dpo", "builtin", changes), display=False)
    assert [row["loss"] for row in own.metrics()] == [row["loss"] for row in builtin.metrics()]


@pytest.mark.parametrize(
    ("objective", "problem"),
    [
        (lambda pairs: 1.0, "objective: python:lambda returned float, not a tensor"),
        (
            lambda pairs: the_same(pairs).mean(),
            r"objective: python:lambda returned a tensor of shape \(\) for \d pairs",
        ),
        (lambda pairs: the_same(pairs).detach(), "objective: python:lambda returned losses that do not depend on"),
        (lambda pairs: 1 / 0, "objective: python:lambda raised ZeroDivisionError: division by zero"),
    ],
)
def test_objectives_that_return_something_else(objective: Any, problem: str, make: Make) -> None:
    made = make("dpo", changes=TWO)
    with pytest.raises(RecipeError, match=f"^{problem}"):
        prefine.dpo(made, objective=objective, display=False)
    assert prefine.dpo(made, objective=the_same, display=False).status == "finished", "the name is free again"


def test_an_objective_without_a_slope_fails_the_self_check(make: Make) -> None:
    with pytest.raises(TrainingError, match="self-check failed: objective: "):
        prefine.dpo(make("dpo", changes=TWO), objective=lambda pairs: 0 * the_same(pairs), display=False)


def test_a_recipe_says_whether_its_objective_is_a_function(make: Make) -> None:
    with pytest.raises(RecipeError, match=r"dpo.loss ipo has no effect, as a function is the objective"):
        prefine.dpo(make("dpo"), objective=the_same, dpo={"loss": "ipo"})
    with pytest.raises(RecipeError, match=r"dpo.loss is function, but no function was passed"):
        prefine.dpo(make("dpo"), dpo={"loss": "function"})
    with pytest.raises(RecipeError, match="length_normalized is true with loss 'function'"):
        prefine.dpo(make("dpo"), objective=the_same, dpo={"length_normalized": True})


def test_a_run_is_resumed_with_the_objective_it_began_with(make: Make) -> None:
    cut, whole = make("dpo", "cut", TWO), make("dpo", "whole", TWO)
    with pytest.raises(Stopped):
        prefine.dpo(cut, objective=the_same, display=False, on_step=partial(stops_after, last=2))
    for resumed in range(2):  # stopped, then finished
        with pytest.raises(CheckpointError, match="objective: python:lambda is not the function that this run began"):
            prefine.dpo(cut, resume=True, objective=lambda pairs: 2 * the_same(pairs), display=False)
        assert prefine.dpo(cut, resume=True, objective=the_same, display=False).status == "finished", resumed
    whole_run = prefine.dpo(whole, objective=the_same, display=False)
    assert tiny.differences(Path(cut.run), whole_run.path) == []


# --- Rewards ---------------------------------------------------------------------------------------------------------


def test_a_function_is_a_reward(make: Make) -> None:
    asked: list[dict[str, Any]] = []

    def letters(rows: list[dict[str, Any]]) -> list[float]:
        asked.extend(rows)
        return tiny.letters(rows)

    own = prefine.ppo(make("ppo", "own", {**TWO, **tiny.UNGUARDED}), reward=letters, display=False)
    builtin = prefine.ppo(make("ppo", "builtin", {**TWO, **tiny.UNGUARDED}), display=False)
    mine, theirs = tiny.weights(own.path), tiny.weights(builtin.path)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert own.recipe["reward"]["name"] == "python:letters"
    assert {"prompt", "response", "chosen"} <= asked[0].keys()
    code = tiny.manifest(own.path)["code"]
    assert code == {"reward.name": {"name": "python:letters", "sha256": [function_hash(letters)]}}


def test_a_reward_that_was_changed_goes_on_with_a_warning(make: Make) -> None:
    def first() -> Any:
        def reward(rows: list[dict[str, Any]]) -> list[float]:
            raise ValueError("not yet")

        return reward

    def second() -> Any:
        def reward(rows: list[dict[str, Any]]) -> list[float]:
            return tiny.letters(rows)

        return reward

    made = make("ppo", changes={"training.max_steps": 1, "rollout.heldout_prompts": 0, **tiny.UNGUARDED})
    with pytest.raises(TrainingError, match="reward: python:reward raised ValueError: not yet"):
        prefine.ppo(made, reward=first(), display=False)
    run = prefine.ppo(made, reward=second(), resume=True, display=False)
    assert any(
        line.startswith("reward.name: python:reward was changed while this run was stopped") for line in run.warnings
    )
    assert len(tiny.manifest(run.path)["code"]["reward.name"]["sha256"]) == 2


def test_several_rewards_may_be_functions(make: Make) -> None:
    def short(rows: list[dict[str, Any]]) -> list[float]:
        return [-float(len(row["response"])) for row in rows]

    more = [{"name": short, "weight": 0.1}]
    made = prefine.load_recipe("ppo", make("ppo"), reward={"name": tiny.letters, "more": more})
    assert (made.reward.name, made.reward.more[0].name) == ("tests.training.tiny:letters", "python:short")


def test_another_process_does_not_have_the_function(make: Make) -> None:
    with pytest.raises(RecipeError, match=r"^reward.name: python:nobody was passed from Python"):
        prefine.ppo(make("ppo"), reward={"name": "python:nobody"}, display=False)


# --- Names and hashes ------------------------------------------------------------------------------------------------


def test_a_name_finds_the_function_again_where_a_module_has_it() -> None:
    def inner(rows: Any) -> Any:
        return rows

    assert function_name(the_same) == f"{__name__}:the_same"
    assert function_name(inner) == "python:inner"
    assert function_name(lambda rows: rows) == "python:lambda"
    assert function_name(partial(inner)) == "python:inner"


def test_a_hash_is_of_what_a_function_says() -> None:
    typed: dict[str, Any] = {}
    for name, body in {"one": "x + 1", "same": "x + 1", "two": "x + 2"}.items():
        exec(f"def {name}(x): return {body}", typed)  # noqa: S102 - as typed at a prompt: there is no source
    assert function_hash(typed["one"]) == function_hash(typed["same"]) != function_hash(typed["two"])
    assert function_hash(partial(the_same, 1)) != function_hash(partial(the_same, 2))
    assert function_hash(the_same) != function_hash(stops_after)


def test_a_lambdas_hash_is_not_of_the_line_around_it() -> None:
    first = [function_hash(lambda x: x + 1), "the run"]
    again = [function_hash(lambda x: x + 1), "the run", "resume=True"]
    assert first[0] == again[0] != function_hash(lambda x: x + 2)


def test_a_hash_is_the_same_in_every_process() -> None:
    """Addresses of functions and the order of sets, which Python draws anew for each process, are no part of it."""
    code = (
        "from functools import partial\n"
        "from prefine.training.run.user_functions import function_hash\n"
        "typed = {}\n"
        'exec(\'def one(x): return x in {"a", "b", "c", "d"}\\ndef two(x, key): return x\', typed)\n'
        "print(function_hash(partial(typed['two'], key=typed['one'])))"
    )
    hashes = set()
    for seed in ("1", "2", "3"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        hashes.add(done.stdout)
    assert len(hashes) == 1
