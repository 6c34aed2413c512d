"""A stage runs when one of its inputs has changed, with those that need it and no others; it says which input."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from prefine.errors import RecipeError
from prefine.pipeline import inputs as inputs_module
from prefine.pipeline.records import PipelineRecords
from prefine.pipeline.standing import chosen, standings
from tests.pipeline.fake import STAGES, Desk

# A key of every stage, and the stages that run if it changes: its own and its children's.
CHANGED = {
    "sft": ("stages.sft.training.seed=4", set(STAGES)),
    "reward": ("stages.reward.reward.heads=2", {"reward", "ppo", "all"}),
    "dpo": ("stages.dpo.dpo.beta=0.3", {"dpo", "better", "served", "all"}),
    "ppo": ("stages.ppo.kl.coefficient=0.3", {"ppo", "all"}),
    "better": ("stages.better.samples=2", {"better", "served"}),
    "served": ("stages.served.dtype=float32", {"served"}),
    "all": ("stages.all.runs=[stage:sft, stage:reward, stage:dpo, stage:ppo]", {"all"}),
}


def to_run(desk: Desk, *overrides: str) -> dict[str, str]:
    """Stage -> why, of those that would run."""
    made = desk.pipeline(*overrides)
    found = standings(made, PipelineRecords(made.folder), chosen(made, None, None, False))
    return {each.stage.name: each.why for each in found if each.runs}


@pytest.mark.parametrize("name", STAGES)
def test_a_changed_key_runs_its_stage_and_its_children_only(desk: Desk, name: str) -> None:
    desk.run()
    assert to_run(desk) == {}
    override, expected = CHANGED[name]
    why = to_run(desk, override)
    assert set(why) == expected
    field = override.partition("=")[0].removeprefix(f"stages.{name}.")
    assert why[name].startswith(f"{field} was ")
    result = desk.run(override)
    assert set(desk.worked) == set(result.ran) == expected
    assert desk.run(override).ran == ()
    assert set(desk.run().ran) == expected  # and back


def test_a_stage_says_why_it_is_cached_or_runs(desk: Desk) -> None:
    assert to_run(desk)["sft"] == "it has not run yet"
    assert to_run(desk)["ppo"] == "sft and reward run first"
    desk.run()
    made = desk.pipeline()
    found = standings(made, PipelineRecords(made.folder), chosen(made, None, None, False))
    assert {each.state for each in found} == {"cached"}
    assert found[0].why == (
        "it ran with the same recipe, data, models and code, and left 1 file that are there unchanged"
    )
    why = to_run(desk, "stages.dpo.dpo.beta=0.3", "stages.dpo.training.seed=1")
    assert why["dpo"] == "training.seed was 0 and is 1; dpo.beta was 0.1 and is 0.3"
    assert why["better"] == "dpo runs first"


@pytest.mark.parametrize(
    ("file", "first", "expected"),
    [
        ("pairs.jsonl", "reward", {"reward", "dpo", "ppo", "better", "served", "all"}),
        ("questions.jsonl", "better", {"better", "served"}),
        ("gate.yaml", "better", {"better", "served"}),
    ],
)
def test_changed_content_of_a_file_runs_the_stages_that_read_it(
    desk: Desk, file: str, first: str, expected: set[str]
) -> None:
    desk.run()
    changed = Path(file).read_text() + "\n"
    Path(file).write_text(changed)
    why = to_run(desk)
    assert set(why) == expected
    stays = "; what was computed stays" if file == "gate.yaml" else ""
    assert why[first] == f"the content of {file} has changed{stays}"


def test_a_gate_may_be_written_in_the_pipeline(desk: Desk) -> None:
    desk.values["stages"]["better"]["gate"] = {"verdict": "not worse", "regression_set": "optional"}
    assert desk.pipeline().stages["served"].parents == ("dpo", "better")
    desk.run()
    why = to_run(desk, "stages.better.gate.verdict=better")
    assert set(why) == {"better", "served"}
    assert why["better"] == 'gate.verdict was "not worse" and is "better"; what was computed stays'


def test_a_file_that_is_only_touched_changes_nothing(desk: Desk) -> None:
    desk.run()
    os.utime("pairs.jsonl", (1, 1))
    assert to_run(desk) == {}


def test_a_result_that_was_changed_or_lost_is_made_again(desk: Desk) -> None:
    desk.run()
    Path("out/dpo/weights").write_text("mine")
    assert to_run(desk)["dpo"] == "out/dpo/weights was changed"
    Path("out/dpo/weights").unlink()
    assert to_run(desk)["dpo"] == "out/dpo/weights is missing"
    assert set(desk.run().ran) == {"dpo"}  # the same bytes: nobody else needs to run
    assert to_run(desk) == {}


def test_changed_code_runs_a_stage_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.run()
    real = inputs_module.code_digest
    monkeypatch.setattr(inputs_module, "code_digest", lambda method: "new" if method == "dpo" else real(method))
    why = to_run(desk)
    assert set(why) == {"dpo", "better", "served", "all"}
    assert why["dpo"] == "prefine's code of this stage has changed"


def test_a_reward_function_s_module_is_an_input(desk: Desk) -> None:
    Path("mine.py").write_text("def points(rows): return [0.0] * len(rows)\n")
    overrides = ("stages.ppo.reward.name=mine:points",)
    desk.run(*overrides)
    Path("mine.py").write_text("def points(rows): return [1.0] * len(rows)\n")
    assert to_run(desk, *overrides)["ppo"] == "the content of mine:points has changed"


def test_a_model_in_a_folder_is_an_input(desk: Desk) -> None:
    Path("model").mkdir()
    Path("model/weights").write_text("one")
    desk.run("stages.sft.model.name=./model")
    Path("model/weights").write_text("two")
    assert to_run(desk, "stages.sft.model.name=./model")["sft"] == "the content of ./model has changed"


def test_from_and_only_use_the_others_as_they_are(desk: Desk) -> None:
    desk.run()
    assert set(desk.run("stages.sft.training.seed=3", "stages.dpo.dpo.beta=0.2", start="dpo").ran) == {
        *("dpo", "better", "served", "all")
    }
    made = desk.pipeline("stages.sft.training.seed=4")
    found = standings(made, PipelineRecords(made.folder), chosen(made, None, "dpo", True))
    assert {each.stage.name for each in found if each.runs} == {"dpo"}
    assert found[0].why == "not chosen: its result is used as it is, although training.seed was 0 and is 4"
    assert set(desk.run(only="served", force=True).ran) == {"served"}
    assert set(desk.run(force=True).ran) == set(STAGES)


def test_a_stage_that_is_not_there_is_named(desk: Desk) -> None:
    with pytest.raises(RecipeError, match=r"--from: There is no stage 'dop'\. Did you mean dpo\?"):
        chosen(desk.pipeline(), "dop", None, False)


def test_a_stage_that_another_process_runs_now_says_so(desk: Desk) -> None:
    """A lock whose process has ended, or gave it back, says nothing."""
    desk.run(only="sft")
    records = PipelineRecords(Path("out"))
    assert records.runner() is None
    done = records.read("sft")
    assert done is not None
    records.write("sft", replace(done, status="running", results={}))
    assert to_run(desk)["sft"] == "it was interrupted, and goes on where it was"
    Path("out/.pipeline/lock").write_text(f"{os.getppid()} {socket.gethostname()}\n")
    assert to_run(desk)["sft"] == f"process {os.getppid()} runs it now"
    os.utime("out/.pipeline/lock", (1, 1))  # older than the process of that number
    assert to_run(desk)["sft"] == "it was interrupted, and goes on where it was"


@pytest.mark.parametrize(
    "setting",
    [
        "training.keep_checkpoints=5",
        "training.trackers=[tensorboard]",
        "training.tracker_project=mine",
        "training.save_every_steps=7",
    ],
)
def test_what_resume_lets_change_makes_no_stage_out_of_date(desk: Desk, setting: str) -> None:
    desk.run()
    assert to_run(desk, f"stages.sft.{setting}") == {}


def test_steps_of_saving_count_where_guards_may_go_back(desk: Desk) -> None:
    guards = "stages.sft.guards.non_finite.action=roll_back"
    desk.run(guards)
    why = to_run(desk, guards, "stages.sft.training.save_every_steps=7")
    assert why["sft"] == "training.save_every_steps was 50 and is 7" and set(why) == set(STAGES)


def test_other_thresholds_of_readiness_run_the_reward_stage_s_assessment_alone(desk: Desk) -> None:
    desk.run()
    before = PipelineRecords(Path("out")).read("reward")
    looser = "stages.reward.readiness.min_accuracy=0.6"
    made = desk.pipeline(looser)
    found = {
        each.stage.name: each
        for each in standings(made, PipelineRecords(made.folder), chosen(made, None, None, False))
        if each.runs
    }
    assert set(found) == {"reward"} and found["reward"].keeps_result
    assert (found["reward"].state, found["reward"].why) == (
        "to resume",
        "readiness.min_accuracy was 0.65 and is 0.6: its readiness report is made again, without training",
    )
    assert desk.run(looser).ran == ("reward",)
    after = PipelineRecords(Path("out")).read("reward")
    assert before is not None and after is not None and (after.key, after.results) == (before.key, before.results)
    assert after.inputs["free readiness.min_accuracy"] == 0.6
    assert desk.run(looser).ran == ()
    assert desk.run(looser, "stages.reward.reward.heads=2").ran == ("reward", "ppo", "all")
