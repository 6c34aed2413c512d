"""`make` deletes what it made and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment that counts as installed, whose prefine only says how it was called."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "prefine"
    program.write_text('#!/bin/sh\nprintf "<%s>" prefine "$@"\necho\n')
    program.chmod(0o755)
    (folder / ".installed").touch()
    later = (ROOT / "pyproject.toml").stat().st_mtime + 100
    os.utime(folder / ".installed", (later, later))
    return folder


def make(target: str, *settings: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "-C", str(ROOT), target, *settings]
    own = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=own)


def test_the_quickstart_refuses_a_folder_of_other_files(venv: Path, tmp_path: Path) -> None:
    runs = tmp_path / "experiments"
    (runs / "sft").mkdir(parents=True)
    (runs / "sft" / ".lock").write_text("prefine run")
    done = make("quickstart", f"RUNS={runs}", f"VENV={venv}")
    assert done.returncode == 2
    assert f"RUNS: {runs} holds files that make quickstart did not write. Set RUNS to a new folder" in done.stderr
    assert "<prefine>" not in done.stdout
    assert (runs / "sft" / ".lock").exists()
    assert not (runs / ".quickstart").exists()


def test_the_quickstart_begins_anew_in_its_own_folder(venv: Path, tmp_path: Path) -> None:
    """Also where its name holds a space, and what else lies there stays."""
    runs, beside = tmp_path / "my runs", tmp_path / "my"
    beside.mkdir()
    for _ in range(2):
        done = make("quickstart", f"RUNS={runs}", f"VENV={venv}")
        assert done.returncode == 0, done.stderr
        pipeline = "prefine/recipes/pipelines/quickstart.yaml"
        assert f"<prefine><run><{pipeline}><--set><folder={runs}>" in done.stdout
        assert done.stdout.count("<prefine>") == 1
        assert not (runs / "sft").exists()
        (runs / "sft").mkdir()
        (runs / "mine").mkdir(exist_ok=True)
    assert (runs / "mine").exists()
    assert beside.exists()


def test_clean_removes_no_folder_but_an_environment(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = make("clean", f"VENV={tmp_path}")
    assert done.returncode == 2
    assert f"VENV: {tmp_path} is not a virtual environment and stays." in done.stderr
    assert (tmp_path / "notes.txt").exists()
