"""A run's state from files that may be half written."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from prefine.errors import CheckpointError
from prefine.watching.reading import RunFiles, _Lines, _read_lines, is_locked
from tests.watching.conftest import Going


def test_half_written_and_damaged_lines_are_skipped(going: Going) -> None:
    with (going.path / "metrics.jsonl").open("ab") as file:
        file.write(b'not json\n[1]\n\xff\xfe\n{"kind": "train", "step": 21, "lo')
    files = RunFiles(going.path)
    assert files.read().step == 20
    with (going.path / "metrics.jsonl").open("ab") as file:
        file.write(b'ss": 0.5}\n')
    assert files.read().step == 21


def test_only_what_is_new_is_read_and_what_was_replaced_is_read_again(tmp_path: Path) -> None:
    """Lines are appended; then a roll-back cuts the file and writes other ones, more than there were."""
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"step": {step}, "loss": 1}}\n' for step in range(1000)))
    first = _read_lines(file, _Lines())
    with file.open("a") as more:
        more.write('{"step": 1000, "loss": 1}\n{"step": 10')
    marked = _Lines(first.read, first.end, [{"kept": True}])
    grown = _read_lines(file, marked)
    assert grown.rows == [{"kept": True}, {"step": 1000, "loss": 1}]
    assert len(grown.end) == 4096
    file.write_text("".join(f'{{"step": {step}, "loss": 2}}\n' for step in range(1002)))
    replaced = _read_lines(file, grown)
    assert [len(replaced.rows), replaced.rows[-1]["loss"]] == [1002, 2]
    file.write_text("")
    assert _read_lines(file, replaced).rows == []


def test_a_file_that_cannot_be_read_counts_as_it_was(going: Going) -> None:
    files = RunFiles(going.path)
    assert files.read().status == "running"
    (going.path / "manifest.json").write_text('{"stage": "dpo", "sta', encoding="utf-8")
    assert files.read().status == "running"
    going.write(status="finished")
    assert files.read().status == "finished" and files.read().ended


def test_the_time_left(going: Going) -> None:
    """20 of 40 steps of 2 s are left; then, by the steps that came while watching, which took 5 s each."""
    now = [1e9]
    files = RunFiles(going.path, clock=lambda: now[0])
    assert files.read().seconds_left == pytest.approx(40)  # the files are not older than the clock
    for number in (21, 22, 23):
        now[0] += 5
        going.step(number)
        latest = files.read()
    assert latest.seconds_left == pytest.approx(17 * 5)
    going.write(status="stopped")
    assert files.read().seconds_left is None


def test_a_roll_back_does_not_make_steps_of_negative_time(going: Going) -> None:
    files = RunFiles(going.path)
    files.read()
    (going.path / "metrics.jsonl").write_text('{"kind": "train", "step": 4, "loss": 1}\n', encoding="utf-8")
    assert (files.read().step, files.read().seen_step_s) == (4, None)


def test_a_run_is_lost_when_no_process_has_it_open(going: Going, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = (going.path / "metrics.jsonl").stat().st_mtime
    files = RunFiles(going.path, clock=lambda: changed + 300)
    monkeypatch.setattr("prefine.watching.reading.is_locked", lambda path: False)
    assert files.read().lost and files.read().ended
    for alive in (True, None):
        monkeypatch.setattr("prefine.watching.reading.is_locked", lambda path, alive=alive: alive)
        assert not files.read().ended
    monkeypatch.setattr("prefine.watching.reading.is_locked", lambda path: False)
    assert not RunFiles(going.path, clock=lambda: changed + 60).read().ended  # it may be loading its model elsewhere


def test_a_killed_run_on_a_disk_whose_clock_is_ahead_is_lost_too(going: Going, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [(going.path / "metrics.jsonl").stat().st_mtime - 3600]
    files = RunFiles(going.path, clock=lambda: now[0])
    monkeypatch.setattr("prefine.watching.reading.is_locked", lambda path: False)
    assert files.read().silent_s == 0
    now[0] += 100
    assert (files.read().silent_s, files.read().lost) == (100, False)
    now[0] += 100
    assert files.read().lost
    going.step(21)
    assert files.read().silent_s == 0


def test_locks_are_seen_without_taking_one(tmp_path: Path) -> None:
    path, listed = tmp_path / ".lock", tmp_path / "locks"
    path.write_bytes(b"prefine run")
    place = path.stat().st_ino
    listed.write_text(
        f"1: POSIX  ADVISORY  WRITE 1 fe:00:{place} 0 EOF\n1: -> FLOCK ADVISORY WRITE 2 fe:00:{place} 0 EOF\n"
    )
    assert is_locked(path, listed) is False
    with listed.open("a") as file:
        file.write(f"2: FLOCK  ADVISORY  WRITE 28548 fe:00:{place} 0 EOF\n")
    assert is_locked(path, listed) is True
    assert is_locked(tmp_path / "none", listed) is False
    assert is_locked(path, tmp_path / "none") is None
    if is_locked(path) is not None:  # this system lists them
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert is_locked(path)
        assert not is_locked(path)


def test_only_runs_are_watched(tmp_path: Path, going: Going) -> None:
    RunFiles(going.path).require_run()
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match="holds no run to watch"):
            RunFiles(folder).require_run()
    (tmp_path / ".lock").write_bytes(b"prefine run")  # a run whose model is being loaded
    RunFiles(tmp_path).require_run()
    assert RunFiles(tmp_path).read().status == "starting"
