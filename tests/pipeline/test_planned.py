"""A pipeline's plan: what is cached costs nothing; the stages to run have their time, memory and disk, and a sum.

What does not fit gets settings of the pipeline with which it does.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefine.errors import DataError, MissingDataError, ModelError
from prefine.pipeline import planned as module
from prefine.pipeline.planned import plan_json, plan_lines, plan_pipeline
from prefine.planning.fit import Fit
from prefine.planning.machine import Machine
from prefine.planning.model_facts import ModelFacts
from prefine.planning.row_counts import RowCounts
from tests.pipeline.fake import Desk
from tests.planning.test_plan import BIG, GPU

GB = 10**9


@pytest.fixture
def parents(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Method -> the parents whose results its plan was given. A reward model cannot be planned."""
    seen: dict[str, list[str]] = {}
    here = Machine("cpu", "float32", 2 * GB)

    def plan(recipe: Any, *, method: str, parents: dict[str, str], machine: Machine, counts: RowCounts) -> Any:
        seen[method] = list(parents)
        if method == "reward":
            raise ModelError("its architecture is not known", "Name another.")
        size = {"sft": 1, "dpo": 3, "ppo": 2}[method]
        return SimpleNamespace(
            result=method,
            seconds=60.0 * size,
            peak_bytes=size * GB,
            disk_bytes=GB,
            machine=machine,
            fits=lambda limit: size * GB <= limit,
            as_json=lambda: {"peak_bytes": size * GB},
        )

    def fit(recipe: Any, *, budget_bytes: int, **known: Any) -> Fit:
        made = plan(recipe, **known)
        return Fit(budget_bytes, made, made)

    monkeypatch.setattr(module, "machine_for", lambda asked: here)
    monkeypatch.setattr(module, "plan_stage", plan)
    monkeypatch.setattr(module, "fit_stage", fit)
    return seen


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model has 7 billion weights, and the machine a GPU of 80 GB of which 22 GB are free."""
    monkeypatch.setattr(ModelFacts, "of", staticmethod(lambda name, revision=None: BIG))
    monkeypatch.setattr(module, "machine_for", lambda asked: replace(GPU, available_bytes=22 * GB))


def shown(desk: Desk, *overrides: str) -> list[str]:
    """The lines, with plain spaces."""
    return [line.replace("\u202f", " ") for line in plan_lines(plan_pipeline(desk.pipeline(*overrides)))]


def test_a_reward_model_that_is_only_assessed_again_costs_no_training(
    desk: Desk, parents: dict[str, list[str]]
) -> None:
    desk.run()
    lines = shown(desk, "stages.reward.readiness.min_accuracy=0.6")
    assert lines[-2:] == ["reward  not planned: it is not trained again, only assessed", "1 stage to run"]


def test_time_memory_and_disk_of_what_is_to_run(desk: Desk, parents: dict[str, list[str]]) -> None:
    lines = shown(desk)
    assert lines[0] == "sft     sft       to run     it has not run yet"
    assert parents == {"sft": [], "reward": ["sft"], "dpo": ["sft"], "ppo": ["sft", "dpo"]}
    assert "reward  not planned: its architecture is not known" in lines
    dpo = next(line for line in lines if line.startswith("dpo ") and "peak" in line)
    assert "peak 3.00 GB, more than the 2.00 GB of this machine, disk 1.00 GB" in dpo
    total = next(line for line in lines if line.startswith("7 stages to run: 6 min"))
    assert total.endswith("peak 3.00 GB, disk 3.00 GB (without the 4 stages not planned)")
    assert lines[-2:] == ["", "  dpo: 3.00 GB is the least found, which does not fit; take a smaller model"]


def test_what_is_cached_costs_nothing(desk: Desk, parents: dict[str, list[str]]) -> None:
    desk.run()
    assert shown(desk)[-1] == "nothing is to run"
    lines = shown(desk, "stages.ppo.kl.coefficient=0.3")
    assert lines[-1].startswith("2 stages to run: 2 min") and "peak 2.00 GB, disk 1.00 GB" in lines[-1]
    found = {each["stage"]: each for each in plan_json(plan_pipeline(desk.pipeline()))}
    assert (found["dpo"]["state"], found["dpo"]["plan"]) == ("cached", {"peak_bytes": 3 * GB})
    assert found["reward"]["plan"] is None


@pytest.mark.usefixtures("small_gpu")
def test_what_does_not_fit_this_machine_gets_settings_that_do(desk: Desk) -> None:
    """They are options of this command and of prefine run; with them every stage fits."""
    lines = shown(desk)
    assert any("more than the 22.00 GB that are free of the 80.00 GB of this machine" in line for line in lines)
    pasted = shlex.split(lines[lines.index("to fit:") + 1])
    settings = [word for word in pasted if word != "--set"]
    assert settings and len(pasted) == 2 * len(settings)
    assert {word.split(".")[1] for word in settings} >= {"sft", "dpo"}
    again = shown(desk, *settings)
    assert "to fit:" not in again and not any("more than" in line for line in again)


@pytest.mark.usefixtures("small_gpu")
def test_a_given_size_takes_the_place_of_the_machines(desk: Desk) -> None:
    planned = plan_pipeline(desk.pipeline(), 79 * GB)
    assert plan_lines(planned, 79 * GB)[-1] == "each planned stage fits 79.00 GB as it is"
    found = {each["stage"]: each["fit"] for each in plan_json(plan_pipeline(desk.pipeline(), 12 * GB))}
    assert found["sft"]["budget_bytes"] == 12 * GB and found["sft"]["fits"]
    assert all(change["set"].startswith("stages.sft.") for change in found["sft"]["changes"])
    assert found["better"] is None


@pytest.mark.usefixtures("small_gpu")
def test_later_stages_are_planned_with_the_changes_of_earlier_ones(desk: Desk) -> None:
    """All weights of SFT become an adapter, which DPO trains further with its rank: no new adapter is counted."""
    desk.values["stages"]["sft"]["lora"] = None
    sft, _, dpo = plan_pipeline(desk.pipeline(), 30 * GB)[:3]
    assert sft.fit is not None and "stages.sft.lora={}" in sft.changes
    assert dpo.fit is not None and dpo.fit.before.result.adapter == sft.fit.plan.result.adapter


@pytest.mark.usefixtures("small_gpu")
def test_settings_of_ppo_and_its_reward_model_go_together(desk: Desk) -> None:
    """In 18 GB PPO fits with 4 bits, if its reward model has them, too: with its own weights it would not."""
    planned = plan_pipeline(desk.pipeline(), 18 * GB)
    settings = [change for each in planned for change in each.changes]
    assert {"stages.reward.model.quantization=nf4", "stages.ppo.model.quantization=nf4"} <= set(settings)
    lines = plan_lines(planned, 18 * GB)
    assert "    stages.reward.model.quantization: as of the policy, which shares its weights" in lines
    again = plan_pipeline(desk.pipeline(*settings), 18 * GB)
    assert not [each for each in again if each.changes] and all(each.fit.fits for each in again if each.fit)


@pytest.mark.usefixtures("small_gpu")
def test_a_finished_reward_model_stays_as_it_is(desk: Desk) -> None:
    desk.run()
    planned = plan_pipeline(desk.pipeline("stages.ppo.kl.coefficient=0.3"), 18 * GB)
    assert {each.split(".")[1] for stage in planned for each in stage.changes} == {"ppo"}


@pytest.mark.usefixtures("small_gpu")
def test_stages_whose_data_are_not_there_yet_are_planned_with_the_longest_rows(desk: Desk) -> None:
    """Stages that wait for them run first, and a run goes on to refuse."""
    for name in ("pairs", "questions"):
        Path(f"{name}.jsonl").unlink()
    planned = {each.standing.stage.name: each for each in plan_pipeline(desk.pipeline())}
    why = "its data are not there yet (pairs.jsonl: no such file or folder)"
    for name in ("reward", "dpo", "ppo"):
        plan = planned[name].plan
        assert (planned[name].standing.state, planned[name].standing.why) == ("to run", why)
        assert plan is not None and (plan.workload.rows, plan.seconds) == (None, None)
        assert plan.workload.source.startswith("assumed: every row has ")
    assert planned["better"].standing.why == "its data are not there yet (questions.jsonl: no such file or folder)"
    assert planned["served"].standing.why == "dpo and better run first"
    with pytest.raises(MissingDataError, match=r"stage reward: pairs\.jsonl: no such file or folder"):
        desk.run()


def test_data_that_are_there_and_cannot_be_read_are_refused(desk: Desk) -> None:
    with pytest.raises(DataError, match=r"its extension '\.yaml' is not one"):
        plan_pipeline(desk.pipeline("stages.sft.data.train=gate.yaml"))


@pytest.mark.usefixtures("small_gpu")
def test_a_cached_stage_is_not_to_be_changed(desk: Desk) -> None:
    desk.run()
    planned = {each.standing.stage.name: each for each in plan_pipeline(desk.pipeline("stages.ppo.kl.coefficient=0.3"))}
    assert planned["sft"].plan is not None and planned["sft"].fit is None
    assert planned["ppo"].fit is not None
