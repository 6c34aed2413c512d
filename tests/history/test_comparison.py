"""Runs side by side: the figures of each, and only the fields in which their recipes differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.errors import CheckpointError, RecipeError
from prefine.history.comparison import compare_runs
from tests.history.runs import a_run


def test_figures_and_differing_fields(tmp_path: Path) -> None:
    one, two = a_run(tmp_path / "one"), a_run(tmp_path / "two", loss=1.5, model="other")
    found = compare_runs([one, two])
    assert found.names == ["one", "two"]
    rows = dict(found.rows)
    assert rows["stage"] == ["sft", "sft"]
    assert rows["model.name"] == ["tiny", "other"]
    assert not {"run", "training.seed"} & rows.keys()
    told = found.as_json()
    assert told["two"]["recipe"] == {"model.name": "other"}
    assert any("1.500" in value for value in told["two"]["figures"].values())


def test_one_run_or_the_same_twice_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "one")
    with pytest.raises(RecipeError, match="RUN: one run is named"):
        compare_runs([run])
    with pytest.raises(CheckpointError, match="is named twice"):
        compare_runs([run, run])
    with pytest.raises(CheckpointError, match="holds no run"):
        compare_runs([run, tmp_path])
