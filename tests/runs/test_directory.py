"""A run belongs to one process at a time, is never overwritten, and its metrics survive kills and torn lines."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from prefine import __version__
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.rows import Problem
from prefine.data.tokens.store import StoreWriter
from prefine.data.tokens.trees import TokenTree
from prefine.errors import CheckpointError
from prefine.runs.directory import MetricsLog, RunDirectory, read_metrics, run_provenance
from prefine.runs.ownership import RECIPE_MARK


def test_the_paths_of_a_run() -> None:
    run = RunDirectory(Path("runs/x"))
    assert run.manifest == Path("runs/x/manifest.json")
    assert run.checkpoints == Path("runs/x/checkpoints")
    assert not run.holds_run


def test_a_new_run_is_made_with_its_folders(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "runs" / "a", resume=False) as run:
        assert run.path.is_dir()
        assert not run.holds_run


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, resume=False).close()
    (tmp_path / "manifest.json").write_text("")
    with pytest.raises(CheckpointError, match=r"already holds a run\. Add --resume"):
        RunDirectory.create(tmp_path, resume=False)
    RunDirectory.create(tmp_path, resume=True).close()


def test_a_resume_needs_a_run_and_leaves_nothing_where_none_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        RunDirectory.create(tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        RunDirectory.create(tmp_path / "nowhere", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match="a file is in the place of a folder"):
            RunDirectory.create(path, resume=False)


def everything(folder: Path) -> dict[str, bytes | None]:
    """What lies in a folder, byte for byte."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "name", ["notes.txt", "data/train.jsonl", "recipe.yaml", "quarantine.jsonl", "model/x", ".lock"]
)
def test_nothing_is_touched_in_a_folder_that_prefine_did_not_make(tmp_path: Path, name: str, resume: bool) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = everything(tmp_path)
    told = "holds no run to resume" if resume else r"holds other files .*Set run to the name of a new folder"
    with pytest.raises(CheckpointError, match=told):
        RunDirectory.create(tmp_path, resume=resume)
    assert everything(tmp_path) == before


def start_that_came_to_nothing(folder: Path) -> None:
    """What a start leaves that was refused before its manifest."""
    with RunDirectory.create(folder, resume=False) as run:
        run.data.mkdir()
        with StoreWriter(run.data / "train.arrow") as writer:
            writer.add(TokenTree((1, 2), ((3,),), (None,)), "{}")
        (run.data / "heldout.arrow").write_bytes(b"")
        (run.data / "prepared.json").write_text('{"key": "", "digests": {}}')
        (run.path / f".report.html.{os.getpid()}-00000000.tmp").mkdir()
        (run.path / "prefine").mkdir()
        run.recipe.write_text(RECIPE_MARK)
        with Quarantine(run.quarantine) as quarantine:
            quarantine.add("a.jsonl", 1, Problem("prompt", "is missing"), {"prompt": ""})


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.txt", "mine"),
        ("metrics.jsonl", '{"kind": "train", "step": 1}\n'),
        ("metrics.jsonl", ""),
        ("quarantine.jsonl", '{"prompt": "mine"}\n'),
        ("quarantine.jsonl", "mine"),
        ("data/train.arrow", "ARROW1 mine"),
        ("data/prepared.json", '{"mine": 1}'),
        ("data/notes.txt", "mine"),
        ("recipe.yaml", "mine"),
        ("report.html", "mine"),
        ("model/config.json", "{}"),
        ("checkpoints/step-00000001/state.json", "{}"),
    ],
)
def test_what_was_put_where_a_start_came_to_nothing_is_not_overwritten(
    tmp_path: Path, name: str, text: str, resume: bool
) -> None:
    start_that_came_to_nothing(tmp_path)
    RunDirectory.create(tmp_path, resume=resume).close()
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text(text)
    before = everything(tmp_path)
    shown = Path(name).name if name.startswith("data/") else name.split("/")[0]
    with pytest.raises(CheckpointError, match=rf"holds no manifest\.json, and {shown} in it may not be"):
        RunDirectory.create(tmp_path, resume=resume)
    assert everything(tmp_path) == before


def test_a_copy_without_hidden_files_is_known_by_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"prefine": "1", "stage": "sft", "recipe": {}}')
    RunDirectory.create(tmp_path, resume=True).close()
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    (tmp_path / ".lock").unlink()
    with pytest.raises(CheckpointError, match="holds no run"):
        RunDirectory.create(tmp_path, resume=True)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, resume=False).close()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is a folder, not a file\. Move it away"):
        RunDirectory.create(tmp_path, resume=True)
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="checkpoints is a file, not a folder"):
        RunDirectory.create(tmp_path, resume=True)


def test_a_name_that_is_too_long_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 300), tmp_path / ("x" * 300) / "run"):
        with pytest.raises(CheckpointError, match="the name is too long"):
            RunDirectory.create(path, resume=False)


@pytest.mark.parametrize("to", ["deleted", "renamed", "replaced"])
def test_a_folder_that_goes_while_it_is_written_is_missed(tmp_path: Path, to: str) -> None:
    with RunDirectory.create(tmp_path / "run", resume=False) as run:
        run.require_here()
        run.path.rename(tmp_path / "elsewhere")
        if to == "replaced":
            run.path.mkdir()
        with pytest.raises(CheckpointError, match="was deleted or renamed while the run was going"):
            run.require_here()


def test_only_one_process_may_write_a_run_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from prefine.runs.directory import RunDirectory\n"
        f"run = RunDirectory.create(Path({str(tmp_path)!r}), resume=False)\n"
        "run.manifest.write_text('{}'); print('open', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(CheckpointError, match=r"in use by another process\. Wait"):
            RunDirectory.create(tmp_path, resume=True)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with RunDirectory.create(tmp_path, resume=True), pytest.raises(CheckpointError, match="in use"):
            RunDirectory.create(tmp_path, resume=True)
        RunDirectory.create(tmp_path, resume=True).close()


def test_opening_a_run_sweeps_what_a_killed_writer_left(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    RunDirectory.create(tmp_path, resume=False).close()
    run.checkpoints.mkdir()
    run.manifest.write_text("{}")
    for folder in (run.path, run.checkpoints):
        (folder / f".x.{os.getpid()}-00000000.tmp").mkdir()
    RunDirectory.create(tmp_path, resume=True).close()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "checkpoints", "manifest.json"]


# --- metrics.jsonl ---------------------------------------------------------------------------------------------


def test_metrics_are_read_as_written_and_non_finite_ones_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    with MetricsLog(path) as log:
        log.append({"step": 1, "loss": 0.1 + 0.2, "text": "ä\n"})
        assert read_metrics(path) == [{"step": 1, "loss": 0.1 + 0.2, "text": "ä\n"}]  # before closing
        log.append({"step": 2, "loss": math.nan, "more": [math.inf]})
        log.sync()
    assert read_metrics(path)[1] == {"step": 2, "loss": None, "more": [None]}


def test_resuming_drops_what_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append({"event": "start"})
        for step in range(1, 6):
            log.append({"step": step})
        log.truncate_after(3)
        log.append({"step": 4, "again": True})
    assert read_metrics(path) == [
        {"event": "start"},
        {"step": 1},
        {"step": 2},
        {"step": 3},
        {"step": 4, "again": True},
    ]


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b'{"step": 2}', b"\0\0\0\0", b'{"st\0\0\0\n', b"\xff"])
def test_a_torn_last_line_is_ignored_and_dropped_on_opening(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + torn)
    assert read_metrics(path) == [{"step": 1}]
    with MetricsLog(path) as log:
        log.append({"step": 2})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("line", ["x", "[1]", ""])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2 is not a JSON object"):
        read_metrics(path)


def test_a_full_disk_leaves_whole_lines(
    tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append({"step": 1})
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl could not be written"), largest_file(500):
            log.append({"step": 2, "text": "x" * 1000})
        assert path.read_bytes() == b'{"step": 1}\n'
        log.append({"step": 2})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_lines_that_a_checkpoint_knew_of_are_missed(tmp_path: Path) -> None:
    """Held-out rows come back; what was written after the checkpoint stays, and guards' lines do not count."""
    path = tmp_path / "metrics.jsonl"
    rows: list[dict[str, Any]] = [{"kind": "heldout", "step": 0, "loss": 5.756}]
    rows += [{"kind": "train", "step": step, "loss": math.nan} for step in (1, 2, 3)]
    with MetricsLog(path) as log:
        for row in rows:
            log.append(row)
        seal = log.seal(2)
        assert seal["lines"] == 3
        assert log.seal(3)["lines"] == 4
        log.append({"kind": "guard", "step": 1})
        assert not log.mend(seal)
        log.append({"kind": "heldout", "step": 2, "loss": 5.0})
        assert not log.mend(seal)
    whole = path.read_bytes().splitlines(keepends=True)
    for damaged in (whole[1:], [], [whole[0].replace(b"5.756", b"5.117"), *whole[1:]]):
        path.write_bytes(b"".join(damaged))
        with MetricsLog(path) as log:
            assert log.mend(seal)
            assert not [row for row in read_metrics(path) if row["kind"] == "heldout"][1:]
            assert read_metrics(path)[0] == rows[0]


@pytest.mark.usefixtures("no_rename_while_open")
def test_metrics_are_closed_while_they_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append({"kind": "heldout", "step": 0})
        seal = log.seal(0)
        log.append({"kind": "train", "step": 1})
        log.truncate_after(0)
        path.write_bytes(b"")
        assert log.mend(seal)
        log.append({"kind": "train", "step": 1})
    assert [row["step"] for row in read_metrics(path)] == [0, 1]


# --- The manifest ----------------------------------------------------------------------------------------------


def test_the_manifest_says_what_ran_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["prefine", "dpo", "--set", "a=b"]
    provenance = run_provenance(command)
    assert provenance["prefine"] == __version__
    assert provenance["command"] == command
    assert provenance["git_commit"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", str(provenance["started"]))
    libraries = provenance["libraries"]
    assert isinstance(libraries, dict)
    assert str(libraries["torch"]).startswith("2.")
    json.dumps(provenance)


def test_the_manifest_names_the_commit_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.hooksPath=/dev/null"]
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    git("init")
    assert run_provenance([])["git_commit"] is None
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    git("tag", "v1")
    assert re.fullmatch("[0-9a-f]{40}", str(run_provenance([])["git_commit"]))
    (tmp_path / "a").write_text("2")
    assert re.fullmatch("[0-9a-f]{40}-dirty", str(run_provenance([])["git_commit"]))


def test_run_directories_need_no_torch() -> None:
    code = "import prefine.runs.directory, prefine.recipe.loading, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
