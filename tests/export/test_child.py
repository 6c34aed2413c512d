"""A program that works for an export: it ends with us, and what it fails of is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from prefine.errors import CheckpointError, ModelError
from prefine.export.child import run_program


def said(text: str, code: int = 1) -> list[str]:
    return [sys.executable, "-I", "-c", f"import sys; print({text!r}); sys.exit({code})"]


@pytest.mark.parametrize(
    "text", ["OSError: [Errno 28] No space left", "I/O error (os error 28)", "Disk quota exceeded"]
)
def test_a_full_disk_is_said_as_one(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"the conversion does not fit into .*: the disk is full"):
        run_program(said(text), tmp_path, "the conversion")


def test_a_disk_that_a_program_has_filled_is_seen_where_it_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"bytes": 2_000_000}
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, free["bytes"]))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"the conversion failed \(12 requested and 0 written\)"):
        run_program(said("12 requested and 0 written"), tmp_path, "the conversion")
    free["bytes"] = 4096
    with pytest.raises(CheckpointError, match="the disk is full"):
        run_program(said("12 requested and 0 written"), tmp_path, "the conversion")


def test_a_program_that_is_killed_says_that_memory_may_be_short(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", "import os; os.kill(os.getpid(), 9)"]
    with pytest.raises(ModelError, match="the conversion was ended by signal 9; was memory short"):
        run_program(command, tmp_path, "the conversion")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_program_ends_when_we_are_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    work = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys\nfrom pathlib import Path\nfrom prefine.export.child import run_program\n"
        f"run_program([sys.executable, '-I', '-c', {work!r}], Path({str(tmp_path)!r}), 'the conversion')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    ours = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        until = time.monotonic() + 30
        while not (note.is_file() and note.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        pid = int(note.read_text())
    finally:
        ours.kill()
        ours.wait()
    until = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" and time.monotonic() < until:
        time.sleep(0.02)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"
