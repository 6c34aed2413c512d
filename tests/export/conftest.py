"""Finished runs on T, once a session, and a reload without a process of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.export.here import reload_here
from tests.training import tiny
from tests.training.conftest import draw_nothing


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T's folder."""
    return tiny.save_model(tmp_path_factory.mktemp("T") / "base")


@pytest.fixture(scope="session")
def trained(base: Path, no_cache_outside: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """trained("dpo", changes): the folder of a finished run of four steps, beside its base."""
    root = tmp_path_factory.mktemp("runs")
    data = tiny.write_rows(root / "pairs.jsonl", tiny.pairs(60))

    def run(stage: str, changes: dict[str, object] | None = None) -> Path:
        folder = root / f"{stage}{len(list(root.iterdir()))}" / "run"
        shutil.copytree(base, folder.parent / "base")
        short = {"training.max_steps": 4, "training.save_every_steps": None, "report.samples": 0}
        if stage == "reward":
            del short["report.samples"]
        with pytest.MonkeyPatch.context() as patched:
            draw_nothing(patched)
            tiny.train(tiny.recipe(stage, folder, folder.parent / "base", data, {**short, **(changes or {})}))
        return folder

    return run


@pytest.fixture(scope="session")
def dpo_run(trained: Callable[..., Path]) -> Path:
    """Read only."""
    return trained("dpo", {"lora.dropout": 0.0})


@pytest.fixture
def dpo_copy(dpo_run: Path, tmp_path: Path) -> Path:
    """The same to change: RUN in a folder with its base."""
    shutil.copytree(dpo_run.parent, tmp_path / "copy")
    return tmp_path / "copy" / "run"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are loaded again here: importing torch in another process takes seconds."""
    reload_here(monkeypatch)
