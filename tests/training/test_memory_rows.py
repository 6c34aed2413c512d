"""A run on rows in memory is the run on a file of them, and resumes with the same rows alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefine.data.reading import memory_rows
from prefine.data.reading.memory_rows import memory_source
from prefine.errors import CheckpointError, DataError, Stopped
from prefine.recipe.stage import StageRecipe
from tests.training import tiny
from tests.training.test_resume import stop_after

Make = Callable[..., StageRecipe]


def test_a_run_on_rows_in_memory(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tiny.pairs(20)
    of_file = make("dpo", "file", {"data.train": str(tiny.write_rows(tmp_path / "rows.jsonl", rows))})
    in_memory = make("dpo", "memory", {"data.train": memory_source(rows)})
    tiny.train(of_file)

    with monkeypatch.context() as patched:
        stop_after(3, patched)
        with pytest.raises(Stopped):
            tiny.train(in_memory)

    with monkeypatch.context() as patched:  # as in another process, which was not given them
        patched.setattr(memory_rows, "_HELD", {})
        with pytest.raises(DataError, match="this process does not hold them"):
            tiny.train(in_memory, resume=True)
        assert memory_source(rows) == in_memory.data.train
        tiny.train(in_memory, resume=True)
    assert not tiny.differences(Path(of_file.run), Path(in_memory.run))
    summary = json.loads((Path(in_memory.run) / "data" / "prepared.json").read_text("utf-8"))
    assert summary["counts"]["train"]["files"] == [{"path": in_memory.data.train, "sha256": in_memory.data.train}]

    others = make("dpo", "memory", {"data.train": memory_source(tiny.pairs(21))})
    with pytest.raises(CheckpointError, match="was trained with another recipe"):
        tiny.train(others, resume=True)
