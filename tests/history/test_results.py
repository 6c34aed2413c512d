"""What takes disk space besides runs is found without a registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.errors import CheckpointError
from prefine.history.results import kind_of, other_results
from prefine.pipeline.records import PipelineLock, PipelineRecords, StageRecord
from prefine.runs.tags import change_tags
from tests.history.runs import a_run


def a_pipeline(folder: Path) -> Path:
    """A pipeline's folder with a run, an evaluation that was interrupted, and what was set aside."""
    a_run(folder / "sft")
    records = PipelineRecords(folder)
    with PipelineLock(records):
        records.write("sft", StageRecord("done", "key", {"method": "sft"}))
        records.write("better", StageRecord("running", "key", {"method": "evaluate"}))
        records.write("gone", StageRecord("done", "key", {"method": "export"}))
    (folder / "better").mkdir()
    (folder / "better" / ".lock").write_text("prefine evaluation")
    (folder / "better" / "parts").write_bytes(b"x" * 100)
    return folder


def test_pipelines_are_found_with_their_stages_that_are_no_runs(tmp_path: Path) -> None:
    one, two = a_pipeline(tmp_path / "one"), a_pipeline(tmp_path / "deep" / "two")
    old = two / ".pipeline" / "old" / "sft.1"
    old.mkdir(parents=True)
    (old / "weights").write_bytes(b"x" * 1000)
    found = other_results(tmp_path)
    assert [(each.path, each.kind, each.status) for each in found] == [
        (two / "better", "evaluate", "running"),
        (two, "pipeline", ""),
        (one / "better", "evaluate", "running"),
        (one, "pipeline", ""),
    ]
    assert found[0].size_bytes == 100 + len("prefine evaluation")
    assert (found[1].set_aside, found[1].set_aside_bytes) == (old.parent, 1000)
    assert found[3].set_aside is None and found[1].size_bytes >= found[3].size_bytes + 1000 - 100
    assert [each.path for each in other_results(one)] == [one / "better", one]


def test_what_can_be_removed_and_what_it_is(tmp_path: Path) -> None:
    desk = a_pipeline(tmp_path / "desk")
    (desk / ".pipeline" / "old").mkdir()
    kinds = [kind_of(each) for each in (desk, desk / "sft", desk / "better", desk / ".pipeline" / "old")]
    assert kinds == ["whole pipeline", "run", "result", "set-aside results of"]
    for other in (tmp_path, tmp_path / "none", desk / ".pipeline"):
        with pytest.raises(CheckpointError, match="holds no run"):
            kind_of(other)
    (desk / "mine").mkdir()
    (desk / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="also holds mine"):
        kind_of(desk)


def test_files_of_the_user_s_in_an_evaluation_or_an_export_stop_its_removal(tmp_path: Path) -> None:
    """Votes, notes and hidden files, also deep in an export; a killed start of a run is no result."""
    desk = a_pipeline(tmp_path / "desk")
    better, served = desk / "better", desk / "served"
    (served / "merged").mkdir(parents=True)
    (served / "merged" / "export.json").write_text('{"files": {"model.safetensors": {}}}')
    for name in ("model.safetensors", "README.md"):
        (served / "merged" / name).write_text("x")
    assert (kind_of(better), kind_of(served)) == ("result", "result")
    for added in (better / "project.db", better / ".env", served / ".git", served / "merged" / "notes.md"):
        added.write_text("mine")
        with pytest.raises(CheckpointError, match=f"also holds .*{added.name}, which prefine did not write"):
            kind_of(better if added.is_relative_to(better) else served)
        added.unlink()
    (desk / ".env").write_text("KEY=1")
    with pytest.raises(CheckpointError, match=r"also holds \.env"):
        kind_of(desk)
    start = tmp_path / "start"
    start.mkdir()
    (start / ".lock").write_text("prefine run")
    (start / "thesis.docx").write_text("mine")
    with pytest.raises(CheckpointError, match="holds no run"):
        kind_of(start)


def test_tagged_results_that_are_set_aside_stop_their_removal(tmp_path: Path) -> None:
    old = a_pipeline(tmp_path / "desk") / ".pipeline" / "old"
    a_run(old / "sft.1")
    change_tags(old / "sft.1", ["best"], [])
    with pytest.raises(CheckpointError, match=r"sft\.1 is tagged best"):
        kind_of(old)
