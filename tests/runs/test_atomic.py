"""A file or folder written by prefine is there whole or not at all, and a full disk is said in plain words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from prefine.errors import CheckpointError, PrefineError, RecipeError
from prefine.runs.atomic import (
    atomic_write,
    discard,
    json_bytes,
    sha256_of_file,
    storage_errors,
    sweep_temporaries,
    temporary_folder,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "zwei ä\n")
    assert (tmp_path / "a.txt").read_bytes() == "zwei ä\n".encode()
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "model") as temporary:
        assert temporary.parent == tmp_path
        (temporary / "sub").mkdir(parents=True)
        (temporary / "sub" / "x").write_text("x")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "sub" / "x").read_text() == "x"
    assert names(tmp_path) == ["model"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc to tell a descriptor's file")
def test_contents_are_flushed_before_the_name_is_given_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the name is there with all its contents, or not at all."""
    events: list[str] = []
    real = Path.replace

    def fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink().relative_to(tmp_path)
        events.append(f"flush {'/'.join('*' if part.endswith('.tmp') else part for part in path.parts) or '.'}")

    def replace(path: Path, target: Path) -> Path:
        events.append(f"rename to {target.name}")
        return real(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    with atomic_write(tmp_path / "model") as temporary:
        (temporary / "sub").mkdir(parents=True)
        (temporary / "sub" / "x").write_text("x")
    assert events == ["flush */sub/x", "flush */sub", "flush *", "rename to model", "flush ."]
    events.clear()
    write_text(tmp_path / "a.txt", "one")
    assert events == ["flush *", "rename to a.txt", "flush ."]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), RecipeError("a", "B.")])
def test_an_exception_changes_nothing_and_passes_through(tmp_path: Path, error: BaseException) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(type(error)) as caught, atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        raise error
    assert caught.value is error
    with pytest.raises(ValueError, match="no"), atomic_write(tmp_path / "b") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("x")
        raise ValueError("no")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_existing_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with (
        pytest.raises(CheckpointError, match="a folder of that name exists"),
        atomic_write(tmp_path / "model") as temporary,
    ):
        pytest.fail("the work is not even begun")
    with pytest.raises(CheckpointError, match="a folder of that name"), atomic_write(tmp_path / "late") as temporary:
        temporary.write_text("x")
        (tmp_path / "late").mkdir()
    with pytest.raises(CheckpointError, match="a file is in the place of a folder"):
        write_text(tmp_path / "file", "x")
        with atomic_write(tmp_path / "file") as temporary:
            temporary.mkdir()
    assert names(tmp_path) == ["file", "late", "model"]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder .*nowhere\. Create it first"):
        write_text(tmp_path / "nowhere" / "a", "x")


def test_forgetting_to_write_is_a_bug_not_a_message(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nothing was written"), atomic_write(tmp_path / "a"):
        pass


def test_a_full_disk_leaves_the_old_file_and_says_why(
    tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(CheckpointError) as caught, largest_file(1000):
        write_text(path, "x" * 5000)
    assert str(caught.value).startswith(f"{path} could not be written: the file would be larger than ")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full. Free some space"),
        (errno.EDQUOT, "your disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission is denied"),
    ],
)
def test_storage_errors_are_said_in_plain_words(tmp_path: Path, code: int, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason), atomic_write(tmp_path / "a"):
        raise OSError(code, os.strerror(code))
    # What safetensors' Rust writer raises: the number is in its text only.
    with pytest.raises(CheckpointError, match=reason), atomic_write(tmp_path / "a"):
        raise RuntimeError(f"Error while serializing: I/O error: whatever (os error {code})")
    with pytest.raises(CheckpointError, match=reason), storage_errors(tmp_path):
        raise RuntimeError("it failed") from OSError(code, "inner")
    assert names(tmp_path) == []


def test_other_errors_keep_their_kind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        (tmp_path / "nowhere").read_bytes()
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path / "a"):
        Path("/nowhere/at/all").read_bytes()
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "a"):
        (tmp_path / "folder").read_bytes()
    with pytest.raises(PrefineError, match="inner"), storage_errors(tmp_path):
        raise PrefineError("inner", "Do it.") from OSError(errno.ENOSPC, "full")


def test_errors_about_the_name_itself_are_said_in_plain_words(tmp_path: Path) -> None:
    """Those of the path, of what is below or hidden beside it, of folders above, and all once its folder is gone."""
    folder = tmp_path / "run"
    missing = "could not be written: its folder does not exist"
    for file in (folder, folder / "x" / "y", tmp_path / "run.partial", tmp_path / ".run.1-0123abcd.tmp" / "x"):
        with pytest.raises(CheckpointError, match=missing) as caught, storage_errors(folder):
            file.read_bytes()
        assert isinstance(caught.value.__cause__, FileNotFoundError)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="a file is in the place of a folder"), storage_errors(folder):
        (tmp_path / "file").rename(folder)
        (folder / "x").read_bytes()
    with pytest.raises(CheckpointError, match=missing), storage_errors(tmp_path / "gone" / "run"):
        (tmp_path / "elsewhere").read_bytes()
    folder.unlink()
    folder.mkdir()
    with pytest.raises(CheckpointError, match=missing), atomic_write(folder / "a") as temporary:
        folder.rename(tmp_path / "renamed")
        temporary.write_text("x")


def test_files_get_the_mode_that_open_would_have_given(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "model") as temporary:
            temporary.mkdir()
            os.close(os.open(temporary / "private", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "model" / "private").stat().st_mode) == 0o644


def test_what_killed_writers_left_is_swept_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".a.txt.{dead.pid}-0123abcd.tmp").write_text("half")
    (tmp_path / f".step-1.{dead.pid}-0123abcd.tmp").mkdir()
    (tmp_path / f".step-1.{dead.pid}-0123abcd.tmp" / "x").write_text("half")
    (tmp_path / f".mine.{os.getpid()}-0123abcd.tmp").write_text("an earlier process of this number")
    (tmp_path / f".other.{os.getppid()}-0123abcd.tmp").write_text("being written")
    (tmp_path / ".hidden").write_text("the user's")
    (tmp_path / "a.tmp").write_text("the user's")
    sweep_temporaries(tmp_path)
    sweep_temporaries(tmp_path / "nowhere")
    assert names(tmp_path) == [".hidden", f".other.{os.getppid()}-0123abcd.tmp", "a.tmp"]


def test_in_a_users_folder_only_leftovers_of_one_name_are_swept(tmp_path: Path) -> None:
    ours, other = (f".{name}.{2**22 + 1}-0123abcd.tmp" for name in ("mine", "of.another"))  # no process is so high
    (tmp_path / ours).mkdir()
    (tmp_path / other).mkdir()
    sweep_temporaries(tmp_path, "mine")
    assert names(tmp_path) == [other]


def test_a_temporary_folder_goes_and_so_does_that_of_a_killed_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / f".exchange.{2**22 + 1}-0123abcd.tmp").mkdir()
    with temporary_folder("exchange") as first, temporary_folder("exchange") as second:
        assert names(tmp_path) == sorted([first.name, second.name])
        assert first.stat().st_mode & 0o077 == 0
        (first / "file").write_text("x")
    assert names(tmp_path) == []


def test_discard_removes_files_and_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    (tmp_path / "b").mkdir()
    write_text(tmp_path / "b" / "c", "x")
    discard(tmp_path / "a")
    discard(tmp_path / "b")
    assert names(tmp_path) == []


def test_json_keeps_order_and_text_and_has_no_nan(tmp_path: Path) -> None:
    value = {"z": 1, "a": [0.1, float("nan"), {"b": float("-inf")}], "text": "ä\udcff", "t": (1, None, True)}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "z": 1,\n  "a": [\n    0.1,\n    null,')
    assert text.endswith("}\n")
    assert json.loads(text) == {"z": 1, "a": [0.1, None, {"b": None}], "text": "ä\udcff", "t": [1, None, True]}
    assert json_bytes({"a": 1}) == b'{"a": 1}\n'


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_folder_that_is_renamed_while_a_file_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        pytest.raises(CheckpointError, match="was deleted or renamed in the meantime"),
        atomic_write(folder / "a") as path,
    ):
        path.write_text("x")
        folder.rename(tmp_path / "moved")
