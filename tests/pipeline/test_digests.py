"""Hashes are remembered by size and time, but never of a file that may still change within its clock's resolution."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from prefine.pipeline import digests as module
from prefine.pipeline.digests import KnownDigests


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, store = tmp_path / "weights", tmp_path / "digests.json"
    file.write_bytes(b"one")
    os.utime(file, (1000, 1000))
    known = KnownDigests(store)
    assert known.of_file(file) == sha256(b"one").hexdigest()
    known.save()
    monkeypatch.setattr(module, "sha256_of_file", lambda path: pytest.fail("read again"))
    assert KnownDigests(store).of_file(file) == sha256(b"one").hexdigest()


def test_a_young_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    known = KnownDigests(tmp_path / "digests.json")
    stamp = file.stat()
    assert known.of_file(file) == sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the same size and time
    assert known.of_file(file) == sha256(b"two").hexdigest()


def test_a_folder_s_hash_is_of_names_and_contents(tmp_path: Path) -> None:
    known = KnownDigests(tmp_path / "digests.json")
    for folder, name in (("a", "x"), ("b", "y"), ("c", "x")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("same")
        (tmp_path / folder / ".hidden").write_text(folder)
    one, two, three = (known.of_path(tmp_path / folder) for folder in "abc")
    assert one == three != two


def test_a_damaged_store_counts_as_empty(tmp_path: Path) -> None:
    store = tmp_path / "digests.json"
    store.write_text("[1")
    (tmp_path / "x").write_text("x")
    assert KnownDigests(store).of_file(tmp_path / "x") == sha256(b"x").hexdigest()
