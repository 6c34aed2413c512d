"""`prefine cache` shows what is in the cache, and `clean` removes it and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from prefine.cli.app import app
from prefine.runs.cache import cache_entry


def said(*arguments: str) -> str:
    shown = CliRunner().invoke(app, ["cache", *arguments])
    assert shown.exit_code == 0, shown.output
    return shown.output


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Path]:
    """A cache with a model of 2 MB, a damaged entry, what a killed process left, and a folder of the user's."""
    monkeypatch.setenv("PREFINE_CACHE", str(tmp_path / "cache"))

    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(b"x" * 2_000_000)

    model, _ = cache_entry("models", "smollm2-135m-0123456789ab", fill)
    damaged, _ = cache_entry("reference", "a" * 40, fill)
    (damaged / "weights").write_bytes(b"y")
    left = model.parent / ".smollm2-135m-000000000000.1-0123abcd.tmp"
    left.mkdir()
    mine = model.parent / "mine"
    mine.mkdir()
    return {"model": model, "damaged": damaged, "left": left, "mine": mine}


def test_it_lists(entries: dict[str, Path], tmp_path: Path) -> None:
    lines = said().splitlines()
    assert lines[0] == f"{tmp_path / 'cache'} (set PREFINE_CACHE to use another folder)"
    assert lines[1].split() == ["models", "0.0", "MB", "left", "over", entries["left"].name]
    assert lines[2].split() == ["models", "2.0", "MB", "whole", entries["model"].name]
    assert lines[3].split() == ["reference", "0.0", "MB", "damaged", "a" * 40]
    assert lines[4:] == ["3 in all, 2.0 MB"]
    assert said("list").splitlines() == lines


def test_it_lists_for_programs(entries: dict[str, Path], tmp_path: Path) -> None:
    told = json.loads(said("--json"))
    assert told["folder"] == str(tmp_path / "cache")
    assert {(each["kind"], each["name"], each["state"]) for each in told["items"]} == {
        ("models", entries["left"].name, "left over"),
        ("models", "smollm2-135m-0123456789ab", "whole"),
        ("reference", "a" * 40, "damaged"),
    }


def test_an_empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFINE_CACHE", str(tmp_path / "none"))
    assert said().splitlines()[1:] == ["0 in all, 0.0 MB"]
    assert said("clean") == "0 removed, 0.0 MB\n"
    assert not (tmp_path / "none").exists()


def test_it_cleans(entries: dict[str, Path]) -> None:
    with FileLock(entries["model"].with_name(f".{entries['model'].name}.lock")):
        told = said("clean").splitlines()
    assert told == [
        "2 removed, 0.0 MB",
        "smollm2-135m-0123456789ab is kept: another process may be writing it",
    ]
    assert [entries[name].exists() for name in ("model", "damaged", "left", "mine")] == [True, False, False, True]
    assert said("clean") == "1 removed, 2.0 MB\n"
    assert entries["mine"].exists()


def test_it_cleans_what_is_damaged(entries: dict[str, Path]) -> None:
    assert said("clean", "--damaged").startswith("2 removed")
    assert [entries[name].exists() for name in ("model", "damaged", "left", "mine")] == [True, False, False, True]
