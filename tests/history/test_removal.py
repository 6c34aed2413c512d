"""A run is removed whole, unless others were made from it, or a process is writing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.errors import CheckpointError
from prefine.history.removal import dependents_of, remove_run
from prefine.runs.directory import RunDirectory
from tests.history.runs import a_run


def test_a_run_that_nothing_needs_is_removed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs/one")
    assert remove_run(run) > 100
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_that_others_were_made_from_stays_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sft = a_run(Path("runs/sft"))
    a_run(Path("runs/deep/dpo"), "dpo", model="runs/sft")
    ppo = a_run(Path("runs/ppo"), "ppo", model="./runs/sft/model")
    a_run(Path("runs/sft2"))
    assert {str(each.path.name) for each in dependents_of(sft)} == {"dpo", "ppo"}
    with pytest.raises(CheckpointError, match=r"runs/sft is model\.name of .*, and 1 more: without it"):
        remove_run(sft)
    assert {each.path.name for each in dependents_of(sft, [ppo])} == {"dpo"}
    remove_run(sft, force=True)
    assert not sft.exists() and ppo.exists()


def test_a_run_that_is_being_written_stays(tmp_path: Path) -> None:
    run = a_run(tmp_path / "one")
    with RunDirectory.create(run, resume=True), pytest.raises(CheckpointError, match="is in use by another process"):
        remove_run(run)
    assert (run / "manifest.json").exists()


def test_a_folder_of_somebody_else_s_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="holds no run"):
        remove_run(tmp_path / "mine")
    assert (tmp_path / "mine").exists()
