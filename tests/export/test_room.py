"""What is free for an export: on the machine, and within a container's limit."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from prefine.export.room import available_memory


@pytest.mark.parametrize(
    ("limits", "available"),
    [
        ({}, 1000),
        ({"a/b": ("max", "10")}, 1000),
        ({"a/b": ("400", "300")}, 150),  # 50 of the 300 are copies of files
        ({"a": ("900", "850"), "a/b": ("400", "300")}, 100),  # the group above has less left
        ({"a/b": ("100", "300")}, 0),
    ],
)
def test_a_control_groups_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, tuple[str, str]], available: int
) -> None:
    memory = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    for name, (most, current) in limits.items():
        group = tmp_path / "groups" / name
        group.mkdir(parents=True, exist_ok=True)
        for file, text in (("max", most), ("current", current), ("stat", "anon 9\ninactive_file 50\n")):
            (group / f"memory.{file}").write_text(text)
    (tmp_path / "own").write_text("1:cpu:/x\n0::/a/b\n")
    assert available_memory(tmp_path / "groups", tmp_path / "own") == available


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path / "none") > 0
