"""The cache lies where its variables say, and holds an entry whole, made by one process, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from prefine.errors import CheckpointError, PrefineError
from prefine.runs import cache
from prefine.runs.atomic import write_json
from prefine.runs.cache import MARKER, cache_directory, cache_entry, cache_items, remove_cache_item, whole


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("PREFINE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def test_default_is_below_home_and_is_not_created(empty_home: Path) -> None:
    assert cache_directory() == empty_home / ".cache" / "prefine"
    assert not (empty_home / ".cache").exists()


def test_prefine_cache_wins_over_the_systems(monkeypatch: pytest.MonkeyPatch, empty_home: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("PREFINE_CACHE", "~/mine")
    assert cache_directory() == empty_home / "mine"


def test_relative_prefine_cache_survives_a_change_of_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFINE_CACHE", "here")
    assert cache_directory() == tmp_path / "here"


@pytest.mark.parametrize(("value", "expected"), [("/xdg", "/xdg/prefine"), ("relative", None), ("", None)])
def test_xdg_cache_home_counts_when_absolute(
    monkeypatch: pytest.MonkeyPatch, empty_home: Path, value: str, expected: str | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_directory() == (Path(expected) if expected else empty_home / ".cache" / "prefine")


def test_macos_and_windows_conventions(monkeypatch: pytest.MonkeyPatch, empty_home: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_directory() == empty_home / "Library" / "Caches" / "prefine"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(empty_home / "Local"))
    assert cache_directory() == empty_home / "Local" / "prefine"


def test_no_home_directory_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(nobody))
    with pytest.raises(PrefineError, match="Set PREFINE_CACHE"):
        cache_directory()


NAME = "smollm2-135m-0123456789ab"


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache that is not there yet; returns where entries of kind "models" go."""
    monkeypatch.setenv("PREFINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def fill(folder: Path) -> None:
    (folder / "weights").write_bytes(b"weights")
    (folder / "sub").mkdir()
    (folder / "sub" / "config.json").write_text("{}")


def never(folder: Path) -> None:
    raise AssertionError("the entry was there")


def race(processes: int, folder: Path) -> list[int]:
    """Exit codes of processes that all want one entry at once; each notes in `folder` when it makes it."""
    code = f"""
import os, sys, time
from pathlib import Path
from prefine.runs.cache import cache_entry, whole
def make(entry):
    (Path({str(folder)!r}) / f"made-{{os.getpid()}}").touch()
    (entry / "tokenizer").write_text("x")
    time.sleep(0.3)
    (entry / "weights").write_text("x")
sys.stdin.read()
path, _ = cache_entry("models", {NAME!r}, make)
assert whole(path) and (path / "weights").exists()
"""
    command = [sys.executable, "-c", code]
    all_of_them = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(processes)]
    time.sleep(0.5)  # until they have imported what they need
    for process in all_of_them:
        assert process.stdin is not None
        process.stdin.close()
    return [process.wait(timeout=60) for process in all_of_them]


@pytest.mark.parametrize("before", ["nothing", "a damaged entry", "what a killed process left"])
def test_of_processes_that_race_one_makes_the_entry(shared: Path, tmp_path: Path, before: str) -> None:
    """Whichever wins, all end well, with one entry that is whole and nothing beside it."""
    if before == "a damaged entry":
        (shared / NAME).mkdir(parents=True)
        (shared / NAME / "tokenizer").write_text("x")
    elif before != "nothing":
        (shared / f".{NAME}.1-0123abcd.tmp").mkdir(parents=True)  # process 1 is alive
    assert race(3, tmp_path) == [0, 0, 0]
    assert len(list(tmp_path.glob("made-*"))) == 1
    assert sorted(path.name for path in shared.iterdir()) == [f".{NAME}.lock", NAME]


def test_an_entry_is_made_once(shared: Path) -> None:
    path, was_there = cache_entry("models", NAME, fill)
    assert (path, was_there) == (shared / NAME, False)
    assert cache_entry("models", NAME, never) == (path, True)
    assert (path / "sub" / "config.json").read_text() == "{}"


def damage_bit(entry: Path) -> None:
    (entry / "weights").write_bytes(b"wfights")


def damage_missing(entry: Path) -> None:
    (entry / "sub" / "config.json").unlink()


def damage_extra(entry: Path) -> None:
    (entry / "index.json").write_text("{}")


def damage_marker(entry: Path) -> None:
    (entry / MARKER).write_text("[" * 100_000)


def damage_old_layout(entry: Path) -> None:
    (entry / MARKER).unlink()


def damage_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("a file")


@pytest.mark.parametrize(
    "damage", [damage_bit, damage_missing, damage_extra, damage_marker, damage_old_layout, damage_file]
)
def test_a_damaged_entry_is_made_again(
    shared: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A changed bit, a lost or added file, no marker: there is no proof, so it does not count."""
    caplog.set_level("INFO", "prefine")
    path, _ = cache_entry("models", NAME, fill)
    damage(path)
    assert not whole(path)
    assert cache_entry("models", NAME, fill) == (path, False)
    assert whole(path)
    assert f"{NAME} in the cache is damaged or of an older release: it is made again" in caplog.text


def test_a_desktops_hidden_file_damages_nothing(shared: Path) -> None:
    path, _ = cache_entry("models", NAME, fill)
    (path / ".DS_Store").write_bytes(b"\0")
    assert whole(path)


def test_an_entry_that_fails_leaves_nothing(shared: Path) -> None:
    def dies(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_entry("models", NAME, dies)
    assert [path.name for path in shared.iterdir()] == [f".{NAME}.lock"]
    assert cache_entry("models", NAME, fill)[1] is False  # and the lock was given back


def test_waiting_is_said(shared: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level("INFO", "prefine")
    monkeypatch.setattr(cache, "_SECONDS_BEFORE_SAYING_SO", 0.05)
    started, go_on = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        started.set()
        assert go_on.wait(30)
        fill(folder)

    maker = threading.Thread(target=cache_entry, args=("models", NAME, slow))
    maker.start()
    assert started.wait(30)
    threading.Timer(0.3, go_on.set).start()
    assert cache_entry("models", NAME, never) == (shared / NAME, True)
    maker.join()
    assert f"waiting for another process, which is making {shared / NAME}" in caplog.text


@pytest.fixture
def read_only(shared: Path) -> Iterator[Path]:
    """The cache on a disk that can be read only."""
    cache_entry("models", NAME, fill)
    disk = shared.parent
    bind = ["mount", "--bind", "-o", "ro", str(disk), str(disk)]
    if os.geteuid() != 0 or subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        yield shared
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_cache_serves_what_it_has(read_only: Path) -> None:
    assert cache_entry("models", NAME, never) == (read_only / NAME, True)


@pytest.mark.parametrize(("kind", "name"), [("models", "smollm2-135m-000000000000"), ("reference", "b" * 40)])
def test_a_read_only_cache_names_the_remedy(read_only: Path, kind: str, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"the file system is read-only\. Set PREFINE_CACHE to a folder that"):
        cache_entry(kind, name, fill)
    item = next(item for item in cache_items() if item.path == read_only / NAME)
    with pytest.raises(CheckpointError, match="the file system is read-only"):
        remove_cache_item(item)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_serves(shared: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then two may make one entry; who comes second takes the first one's. What may be in use is not removed."""

    def unlocked(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", unlocked)
    left = shared / ".smollm2-135m-000000000000.1-0123abcd.tmp"
    left.mkdir(parents=True)

    def overtaken(folder: Path) -> None:
        fill(folder)
        if not (shared / NAME).exists():
            shutil.copytree(folder, shared / NAME)
            write_json(shared / NAME / MARKER, {"files": cache._listing(folder)})

    assert cache_entry("models", NAME, overtaken) == (shared / NAME, True)
    assert [remove_cache_item(item) for item in cache_items()] == [False, True]
    assert left.exists()
    assert not (shared / NAME).exists()


@pytest.mark.parametrize(
    "name", ["", "models", "..", "../smollm2-135m-0123456789ab", "mistral-20261126030018", "a" * 40]
)
def test_an_entrys_name_is_one_that_the_cache_knows(shared: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no name for a cache entry"):
        cache_entry("models", name, never)


def test_items_and_their_removal(shared: Path) -> None:
    """What is not prefine's stays, wherever PREFINE_CACHE points; so does what a process is making just now."""
    path, _ = cache_entry("models", NAME, fill)
    damaged, _ = cache_entry("reference", "a" * 40, fill)
    (damaged / "weights").unlink()
    old = damaged.parent / f"{'b' * 40}.safetensors"
    old.write_bytes(b"12345")
    left = shared / ".smollm2-135m-000000000000.999999999-0123abcd.tmp"
    left.mkdir()
    busy = shared / ".smollm2-135m-ffffffffffff.999999999-0123abcd.tmp"
    busy.mkdir()
    mine = [
        shared / "my-model",
        shared / "mistral-20261126030018",  # a date, which is hexadecimal too
        shared / "smollm2-135m-202611260300",
        damaged.parent / ("c" * 40),  # a commit
        shared / ".mistral-20261126030018.999999999-0123abcd.tmp",
    ]
    for folder in mine:
        folder.mkdir()
    items = cache_items()
    states = {item.path: (item.kind, item.state) for item in items}
    assert states == {
        path: ("models", "whole"),
        left: ("models", "left over"),
        busy: ("models", "left over"),
        damaged: ("reference", "damaged"),
        old: ("reference", "damaged"),
    }
    assert next(item.size_bytes for item in items if item.path == old) == 5
    with FileLock(shared / ".smollm2-135m-ffffffffffff.lock"):
        assert [item.path for item in items if not remove_cache_item(item)] == [busy]
    assert [item.path for item in cache_items()] == [busy]
    assert all(folder.exists() for folder in mine)


def test_the_next_entry_sweeps_what_others_left(shared: Path) -> None:
    shared.mkdir(parents=True)
    left, busy = (shared / f".smollm2-135m-{digest * 12}.1-0123abcd.tmp" for digest in "0f")
    left.write_text("x")
    busy.write_text("x")
    with FileLock(shared / ".smollm2-135m-ffffffffffff.lock"):
        cache_entry("models", NAME, fill)
    assert not left.exists()
    assert busy.exists()


def test_an_unfinished_entry_that_its_maker_completes_meanwhile_is_listed(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maker renames it between two looks at it."""
    left = shared / f".{NAME}.1-0123abcd.tmp"
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"weights")
    real = Path.stat

    def renaming(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = real(path, follow_symlinks=follow_symlinks)
        if path == left / "weights":
            left.rename(shared / NAME)
        return found

    monkeypatch.setattr(Path, "stat", renaming)
    assert [(item.path, item.state) for item in cache_items()] == [(left, "left over")]
