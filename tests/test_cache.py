"""The cache lies where its variables say, and is only named, never made, by asking."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prefine.cache import cache_directory
from prefine.errors import PrefineError


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
