"""A pipeline keeps what is finished, whatever ends it, and only one process runs it at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import prefine
from prefine.errors import CheckpointError, Paused, PrefineError, RecipeError, Stopped, TrainingError
from prefine.pipeline.records import PipelineLock, PipelineRecords
from prefine.pipeline.running import run_chosen
from prefine.pipeline.standing import chosen
from prefine.pipeline.work import StageResult
from prefine.recipe.pipeline import load_pipeline
from prefine.recipe.pipeline_stage import PipelineStage
from prefine.run import find_runs
from prefine.runs.holding import held
from prefine.runs.tags import change_tags, tags_of
from tests.pipeline.fake import STAGES, Desk


def ending(desk: Desk, name: str, error: BaseException) -> None:
    """Let the work of one stage end with an error."""

    def work(stage: PipelineStage) -> StageResult | None:
        if stage.name == name:
            (stage.folder / "half").write_text("half")
            raise error
        return None

    desk.work = work


def test_every_stage_runs_once_after_its_parents(desk: Desk) -> None:
    result = desk.run()
    assert tuple(desk.worked) == result.ran == ("sft", "reward", "dpo", "ppo", "better", "served", "all")
    again = desk.run()
    assert (again.ran, again.cached) == ((), STAGES)
    assert desk.worked == []


def test_a_failure_keeps_what_succeeded_and_says_what_to_do(desk: Desk) -> None:
    ending(desk, "dpo", TrainingError("the loss is not finite", "Lower training.learning_rate."))
    with pytest.raises(PrefineError) as caught:
        desk.run()
    assert str(caught.value) == (
        "stage dpo: the loss is not finite. Lower training.learning_rate. "
        "What is finished is kept: the same command goes on from here."
    )
    assert desk.worked == ["sft", "reward", "dpo"]
    assert "the loss is not finite" in Path("out/report.html").read_text()
    desk.work = lambda stage: None
    assert desk.run().ran == ("dpo", "ppo", "better", "served", "all")
    assert Path("out/dpo/half").exists()  # it went on in its folder
    assert "stage 3 of 7: dpo (dpo), to resume: it failed: the loss is not finite" in desk.view.said


@pytest.mark.parametrize("error", [Stopped("stopped after step 3"), KeyboardInterrupt()])
def test_an_interrupted_stage_goes_on_in_its_folder(desk: Desk, error: BaseException) -> None:
    ending(desk, "reward", error)
    with pytest.raises(Paused, match="interrupted in stage reward; what is done is kept"):
        desk.run()
    desk.work = lambda stage: None
    assert desk.run().ran == STAGES[1:]
    assert Path("out/reward/half").exists()


def interrupted(desk: Desk, name: str, *overrides: str) -> None:
    """Interrupt the pipeline in one stage."""
    ending(desk, name, Stopped("stopped"))
    with pytest.raises(Paused):
        desk.run(*overrides)
    desk.work = lambda stage: None


def test_an_interrupted_attempt_goes_on_when_its_inputs_are_set_back(desk: Desk) -> None:
    """As after a --set that was forgotten once."""
    interrupted(desk, "reward", "stages.reward.reward.heads=2")
    Path("out/reward/half").write_text("80 %")
    interrupted(desk, "reward")  # begins anew
    assert Path("out/reward/half").read_text() == "half"
    assert Path("out/.pipeline/old/reward.1/half").read_text() == "80 %"
    assert (
        "stage reward: its earlier attempt, which was interrupted, is set aside in out/.pipeline/old/reward.1; it goes "
        "on if its inputs are set back, and is deleted once the stage has run to its end with others"
    ) in desk.view.said
    interrupted(desk, "reward", "stages.reward.reward.heads=2", "stages.reward.training.keep_checkpoints=9")
    assert desk.worked == ["reward"]
    assert (
        "stage 2 of 7: reward (reward), to resume: it was interrupted, and goes on where it was; "
        "it is put back from out/.pipeline/old/reward.1"
    ) in desk.view.said
    assert Path("out/.pipeline/old/reward.2/half").read_text() == "half"
    assert desk.run("stages.reward.reward.heads=2").ran == STAGES[1:]
    assert list(Path("out/.pipeline/old").iterdir()) == []


def test_an_interrupted_attempt_stays_while_an_earlier_result_is_used_again(desk: Desk) -> None:
    desk.run()
    interrupted(desk, "dpo", "stages.dpo.dpo.beta=0.3")
    assert desk.run().ran == ()
    assert Path("out/.pipeline/old/dpo.2/half").exists()
    assert desk.run("stages.dpo.dpo.beta=0.3").ran == ("dpo", "better", "served", "all")
    assert Path("out/dpo/half").exists()


def test_a_bug_is_no_error_of_the_user_s(desk: Desk) -> None:
    ending(desk, "sft", ZeroDivisionError("division by zero"))
    with pytest.raises(ZeroDivisionError):
        desk.run()
    record = PipelineRecords(Path("out")).read("sft")
    assert record is not None and (record.status, record.reason) == ("failed", "ZeroDivisionError: division by zero")


def test_a_gate_that_is_not_passed_stops_the_export(desk: Desk) -> None:
    desk.gates["better"] = False
    result = desk.run()
    assert result.failed_gates == ("better",)
    assert "served" not in desk.worked and "all" in desk.worked
    assert "stage served is not run: the gate of better is not passed" in desk.view.said
    again = desk.run()
    assert (again.ran, again.failed_gates) == ((), ("better",))
    assert desk.run(only="served").failed_gates == ("better",)
    desk.gates["better"] = True
    assert desk.run("stages.better.samples=2").ran == ("better", "served")


def test_two_at_once_are_refused_in_one_line(desk: Desk) -> None:
    with PipelineLock(PipelineRecords(Path("out"))), pytest.raises(CheckpointError) as caught:
        desk.run()
    assert caught.value.lines == (
        f"out is in use by process {os.getpid()}, which runs this pipeline. "
        "Wait for it to end, or set another folder (--set folder=NEW).",
    )
    assert desk.worked == []
    desk.run()  # the lock is gone with its holder


def test_a_folder_that_the_pipeline_did_not_make_is_kept(desk: Desk) -> None:
    Path("out/dpo").mkdir(parents=True)
    Path("out/dpo/mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="out/dpo is there already, and this pipeline did not make it"):
        desk.run()
    assert Path("out/dpo/mine.txt").read_text() == "mine"
    assert desk.worked == ["sft", "reward"]


def test_a_page_of_somebody_else_s_is_kept(desk: Desk) -> None:
    Path("out").mkdir()
    Path("out/report.html").write_text("mine")
    with pytest.raises(CheckpointError, match="was not written by prefine"):
        desk.run()
    assert desk.worked == []


def test_only_needs_the_results_of_its_parents(desk: Desk) -> None:
    with pytest.raises(RecipeError, match="stage dpo needs the result of stage sft, which has none"):
        desk.run(only="dpo")
    assert desk.run(only="sft").ran == ("sft",)
    assert desk.run(only="dpo").ran == ("dpo",)


def test_missing_data_and_gates_are_refused_before_any_work(desk: Desk) -> None:
    with pytest.raises(PrefineError, match=r"stage dpo: nix\.jsonl: no such file or folder"):
        desk.run("stages.dpo.data.train=nix.jsonl")
    with pytest.raises(PrefineError, match=r"stage better: There is no gate file nix\.yaml"):
        desk.run("stages.better.gate=nix.yaml")
    with pytest.raises(PrefineError, match='stage better: gate: verdict is "no worse", but must be '):
        desk.run("stages.better.gate={verdict: no worse}")
    with pytest.raises(PrefineError, match="stage served: --to is 'gguff', and there is no format"):
        desk.run("stages.served.to=gguff")
    assert desk.worked == []


def test_a_damaged_record_counts_as_none(desk: Desk) -> None:
    desk.run()
    Path("out/.pipeline/stages/served.json").write_text("{")
    with pytest.raises(CheckpointError, match="out/served is there already"):
        desk.run()


def test_two_files_have_two_folders_and_one_does_not_take_the_other_s(desk: Desk) -> None:
    del desk.values["pipeline"], desk.values["folder"]
    made = desk.pipeline()
    assert (made.name, made.folder) == ("p", Path("runs/p"))
    desk.run()
    Path("p.yaml").rename("q.yaml")  # a renamed file may keep its folder
    again = load_pipeline(Path("q.yaml"), ["folder=runs/p"])
    assert run_chosen(again, chosen(again, None, None, False), desk.view).ran == ()
    with pytest.raises(RecipeError, match=r"runs/p holds the results of another pipeline, .*q\.yaml\. Set another"):
        desk.run("stages.sft.training.seed=4")
    assert desk.worked == [] and Path("runs/p/dpo/weights").is_file()
    desk.values["pipeline"] = "other"
    with pytest.raises(RecipeError, match="holds the results of another pipeline"):
        prefine.run_pipeline({**desk.values, "folder": "runs/p"}, display=False)


def test_a_stage_may_have_any_name(desk: Desk) -> None:
    desk.values["stages"] = {"digests": desk.values["stages"]["sft"], "lock": {"method": "report"}}
    desk.run()
    assert desk.run().cached == ("digests", "lock")


def test_a_blocked_export_says_that_an_earlier_one_remains(desk: Desk) -> None:
    desk.run()
    desk.gates["better"] = False
    assert desk.run("stages.better.samples=2").failed_gates == ("better",)
    assert (
        "stage served is not run: the gate of better is not passed; out/served still holds an earlier export"
        in desk.view.said
    )


def test_a_gate_about_another_model_does_not_let_an_export_pass(desk: Desk) -> None:
    desk.run()
    desk.run("stages.dpo.dpo.beta=0.3", only="dpo")
    result = desk.run("stages.dpo.dpo.beta=0.3", only="served", force=True)
    assert (result.ran, result.failed_gates) == ((), ("better",))
    assert any(
        "the gate of better is out of date (the result of stage dpo has changed)" in each for each in desk.view.said
    )
    desk.run("stages.dpo.dpo.beta=0.3", only="better")
    assert desk.run("stages.dpo.dpo.beta=0.3", only="served").ran == ("served",)
    Path("gate.yaml").write_text("verdict: better\n")
    assert desk.run("stages.dpo.dpo.beta=0.3", only="served", force=True).failed_gates == ("better",)


def test_a_gate_without_an_answer_is_not_passed(desk: Desk) -> None:
    del desk.gates["better"]
    assert desk.run().failed_gates == ("better",)
    assert "served" not in desk.worked


def test_a_result_is_kept_until_the_new_one_is_done(desk: Desk) -> None:
    desk.run()
    ending(desk, "dpo", TrainingError("no memory", "Lower it."))
    with pytest.raises(PrefineError, match=r"Its earlier result is in out/\.pipeline/old/dpo\.1, and is put back if"):
        desk.run("stages.dpo.dpo.beta=0.3")
    assert Path("out/.pipeline/old/dpo.1/weights").read_text() == "dpo"
    with pytest.raises(PrefineError, match="no memory"):  # another attempt leaves it where it is
        desk.run("stages.dpo.dpo.beta=0.4")
    assert Path("out/.pipeline/old/dpo.1/weights").read_text() == "dpo"
    again = desk.run()
    assert (again.ran, again.cached) == ((), STAGES)
    assert Path("out/dpo/weights").read_text() == "dpo" and not Path("out/dpo/half").exists()
    desk.work = lambda stage: None
    desk.run("stages.dpo.dpo.beta=0.3")
    assert list(Path("out/.pipeline/old").iterdir()) == []


def test_a_result_with_a_tag_is_kept_when_another_one_is_made(desk: Desk) -> None:
    desk.run()
    for number, beta in ((1, 0.3), (2, 0.4)):
        a_manifest = Path("out/dpo/manifest.json")
        a_manifest.write_text('{"stage": "dpo", "recipe": {}, "prefine": "1"}')
        change_tags(Path("out/dpo"), ["best", f"v{number}"], [])
        assert desk.run(f"stages.dpo.dpo.beta={beta}").ran == ("dpo", "better", "served", "all")
        kept = Path(f"out/dpo.kept-{number}")
        assert (kept / "weights").read_text() == "dpo" and tags_of(kept) == ["best", f"v{number}"]
        assert f"stage dpo: the earlier result that is tagged best v{number} is kept in {kept}" in desk.view.said
        assert list(Path("out/.pipeline/old").iterdir()) == []
    assert {str(run.path) for run in find_runs(Path())[0]} == {"out/dpo.kept-1", "out/dpo.kept-2"}
    assert desk.run("stages.dpo.dpo.beta=0.4", only="better").cached == ("better",)  # of the new result
    assert desk.run().ran == ("dpo", "better", "served", "all")  # the old one is not taken for the stage's


def test_an_evaluation_with_votes_of_people_is_kept_when_another_one_is_made(desk: Desk) -> None:
    """`prefine annotate compare` puts its project into the evaluation's folder."""
    desk.run()
    Path("out/better/project.db").write_bytes(b"votes")
    assert "better" in desk.run("stages.dpo.dpo.beta=0.3").ran
    assert Path("out/better.kept-1/project.db").read_bytes() == b"votes"
    assert "stage better: the earlier result that also holds project.db is kept in out/better.kept-1" in desk.view.said


def test_a_parent_whose_files_are_gone_is_refused_before_anything_is_moved(desk: Desk) -> None:
    desk.run()
    Path("out/sft/weights").write_text("mine")
    with pytest.raises(RecipeError, match="stage dpo needs the result of stage sft, but out/sft/weights was changed"):
        desk.run("stages.dpo.dpo.beta=0.3", only="dpo")
    assert Path("out/dpo/weights").is_file() and not Path("out/.pipeline/old").exists()


def test_a_folder_that_another_process_writes_is_neither_moved_nor_deleted(desk: Desk) -> None:
    desk.run()
    with held(Path("out/dpo")), pytest.raises(CheckpointError, match="out/dpo is in use by another process"):
        desk.run("stages.dpo.dpo.beta=0.3")
    assert Path("out/dpo/weights").is_file()


def test_force_begins_a_failed_stage_anew(desk: Desk) -> None:
    ending(desk, "sft", TrainingError("no memory", "Lower it."))
    with pytest.raises(PrefineError):
        desk.run()
    desk.work = lambda stage: None
    desk.run(only="sft", force=True)
    assert not Path("out/sft/half").exists()
    assert "stage 1 of 7: sft (sft), to run: --force" in desk.view.said
