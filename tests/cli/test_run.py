"""prefine run: its options, exit codes and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.cli.app import main
from prefine.errors import Stopped
from prefine.pipeline.records import PipelineLock, PipelineRecords
from prefine.pipeline.work import StageResult
from prefine.recipe.pipeline_stage import PipelineStage
from tests.pipeline.conftest import desk as desk
from tests.pipeline.fake import Desk


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["run", "p.yaml", *words])
    shown = capsys.readouterr()
    return left.value.code or 0, shown.out, shown.err


@pytest.fixture(autouse=True)
def file(desk: Desk) -> None:
    desk.pipeline()


def test_a_dry_run_says_where_each_stage_stands_and_changes_nothing(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "--dry-run")
    assert code == 0
    assert out.splitlines()[0] == "sft     sft       to run     it has not run yet"
    assert out.splitlines()[3] == "ppo     ppo       to run     sft and reward run first"
    assert not Path("out").exists() and desk.worked == []
    desk.run()
    _, out, _ = run(capsys, "--dry-run", "--set", "stages.dpo.dpo.beta=0.3")
    states = {line.split()[0]: line[18:27].strip() for line in out.splitlines()}
    assert states == {
        **{"sft": "cached", "reward": "cached", "dpo": "to run", "ppo": "cached"},
        **{"better": "to run", "served": "to run", "all": "to run"},
    }


def test_options_that_exclude_each_other_and_unknown_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--from", "sft", "--only", "dpo")[2] == (
        "error: --from and --only are both given. Give one of them.\n"
    )
    code, _, err = run(capsys, "--only", "dop")
    assert (code, err) == (2, "error: --only: There is no stage 'dop'. Did you mean dpo?\n")


def test_a_launch_of_several_processes_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefine.training.loop.launch.launched", lambda: True)
    monkeypatch.setattr("prefine.training.loop.launch.first_to_say", lambda: True)
    monkeypatch.setattr("os._exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    assert run(capsys)[2].startswith("error: prefine run works in one process, and several were launched. ")


def test_a_second_process_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with PipelineLock(PipelineRecords(Path("out"))):
        code, out, err = run(capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: out is in use by process ")


def test_an_interrupted_pipeline_says_that_the_same_command_goes_on(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(stage: PipelineStage) -> StageResult | None:
        raise Stopped("stopped after step 3")

    desk.work = work
    monkeypatch.setattr("prefine.pipeline.running.PipelineView.display", None)
    code, _, err = run(capsys)
    assert (code, err) == (130, "interrupted in stage sft; what is done is kept; the same command continues\n")
