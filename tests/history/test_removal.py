"""A run is removed whole, unless others were made from it, or a process is writing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.errors import CheckpointError
from prefine.history.removal import dependents_of, remove_results
from prefine.pipeline.records import PipelineLock, PipelineRecords, StageRecord
from prefine.runs.directory import RunDirectory
from prefine.runs.holding import held
from tests.history.runs import a_run
from tests.pipeline.conftest import desk as desk
from tests.pipeline.fake import Desk


def test_a_run_that_nothing_needs_is_removed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs/one")
    assert remove_results([run])[0][1] > 100
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_that_others_were_made_from_stays_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sft = a_run(Path("runs/sft"))
    a_run(Path("runs/deep/dpo"), "dpo", model="runs/sft")
    ppo = a_run(Path("runs/ppo"), "ppo", model="./runs/sft/model")
    a_run(Path("runs/sft2"))
    assert {str(each.path.name) for each in dependents_of(sft)} == {"dpo", "ppo"}
    with pytest.raises(CheckpointError, match=r"runs/sft is model\.name of .*, and 1 more: without it"):
        remove_results([sft])
    assert {each.path.name for each in dependents_of(sft, [ppo])} == {"dpo"}
    remove_results([sft], force=True)
    assert not sft.exists() and ppo.exists()


def test_a_run_that_is_being_written_stays(tmp_path: Path) -> None:
    run = a_run(tmp_path / "one")
    with RunDirectory.create(run, resume=True), pytest.raises(CheckpointError, match="is in use by another process"):
        remove_results([run])
    assert (run / "manifest.json").exists()


def test_a_folder_of_somebody_else_s_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="holds no run"):
        remove_results([tmp_path / "mine"])
    assert (tmp_path / "mine").exists()


def test_all_are_checked_before_the_first_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, sft = a_run(Path("runs/one")), a_run(Path("runs/sft"))
    dpo = a_run(Path("runs/dpo"), "dpo", model="runs/sft")
    with pytest.raises(CheckpointError, match=r"runs/sft is model\.name of"):
        remove_results([one, sft])
    with RunDirectory.create(dpo, resume=True), pytest.raises(CheckpointError, match="runs/dpo is in use"):
        remove_results([one, sft, dpo])
    assert one.exists() and sft.exists() and dpo.exists()
    assert len(remove_results([one, sft, dpo, one])) == 3
    assert list(Path("runs").iterdir()) == []
    monkeypatch.chdir(a_run(Path("runs/here")))
    remove_results([Path()])
    assert list((tmp_path / "runs").iterdir()) == []


def test_names_in_recipes_count_from_the_folders_of_the_run_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sft = a_run(tmp_path / "work/runs/sft")
    a_run(tmp_path / "work/runs/dpo", "dpo", model="runs/sft")
    assert [each.path.name for each in dependents_of(sft)] == ["dpo"]


def test_stages_of_a_pipeline_that_were_made_from_a_run(tmp_path: Path) -> None:
    sft = a_run(tmp_path / "desk/sft")
    records = PipelineRecords(tmp_path / "desk")
    with PipelineLock(records):
        for name, method, parent in (("better", "evaluate", "sft"), ("all", "report", "sft"), ("raw", "export", "dpo")):
            (tmp_path / "desk" / name).mkdir()
            records.write(name, StageRecord("done", "key", {"method": method, f"stage {parent}": "hash"}))
    assert [(each.path.name, each.field) for each in dependents_of(sft)] == [("better", "stage:sft")]


@pytest.fixture
def made(desk: Desk) -> Desk:
    """A pipeline that ran."""
    desk.run()
    return desk


def test_an_evaluation_that_an_export_waited_for_stays_unless_both_are_named(made: Desk) -> None:
    better, served = Path("out/better"), Path("out/served")
    with pytest.raises(CheckpointError, match=r"out/better is stage:better of .*out/served: without it"):
        remove_results([better])
    with (
        PipelineLock(PipelineRecords(Path("out"))),
        pytest.raises(CheckpointError, match="out is in use by process"),
    ):
        remove_results([served])
    assert [(place, size > 0) for place, size in remove_results([better, served])] == [(better, True), (served, True)]
    assert made.run().ran == ("better", "served")


def test_a_pipeline_is_removed_with_all_its_stages(made: Desk) -> None:
    a_run(Path("runs/other"), model="out/dpo")
    with pytest.raises(CheckpointError, match=r"out is model\.name of .*runs/other: without it"):
        remove_results([Path("out")])
    Path("out/mine.txt").write_text("mine")
    with pytest.raises(
        CheckpointError, match=r"out also holds mine\.txt, which is not of its pipeline\. Move it away\."
    ):
        remove_results([Path("out")], force=True)
    Path("out/mine.txt").unlink()
    with (
        PipelineLock(PipelineRecords(Path("out"))),
        pytest.raises(CheckpointError, match="out is in use by process"),
    ):
        remove_results([Path("out")], force=True)
    with held(Path("out/dpo")), pytest.raises(CheckpointError, match="out/dpo is in use by another process"):
        remove_results([Path("out")], force=True)
    assert made.run().ran == ()
    assert [place for place, _ in remove_results([Path("out"), Path("out/sft")], force=True)] == [Path("out")]
    assert not Path("out").exists()


def test_what_is_set_aside_is_removed_while_no_process_runs_the_pipeline(made: Desk) -> None:
    old = Path("out/.pipeline/old")
    (old / "dpo.1").mkdir(parents=True)
    with (
        PipelineLock(PipelineRecords(Path("out"))),
        pytest.raises(CheckpointError, match="out is in use by process"),
    ):
        remove_results([old])
    remove_results([old])
    assert not old.exists() and made.run().ran == ()
