"""trackio: its local store is read back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.recipe.stage import StageRecipe
from tests.training import tiny
from tests.training.tracking.runs import THREE_STEPS, metrics_of, only_this_machine

pytest.importorskip("trackio", reason="trackio is not installed: docs/tracking.md says why, and when this last ran")

Make = Callable[..., StageRecipe]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where trackio keeps projects; it reads the environment when it is imported."""
    import trackio.sqlite_storage
    import trackio.utils

    folder = tmp_path / "trackio"
    for module in (trackio.utils, trackio.sqlite_storage, trackio):
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", folder)
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder


def logged(store: Path) -> list[tuple[int, dict[str, Any]]]:
    (database,) = store.glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    return [(step, json.loads(metrics)) for step, metrics in rows]


def test_trackio_has_figures_histograms_and_tables_on_this_machine(
    make: Make, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make("dpo", "named", {**THREE_STEPS, "training.trackers": ["trackio"], "training.tracker_project": "shop"})
    with only_this_machine() as attempts:
        tiny.train(made)
    assert not attempts
    assert "Trackio" not in capsys.readouterr().out
    run = Path(made.run)
    rows = logged(store)
    losses = [(step, values["loss"]) for step, values in rows if "loss" in values]
    assert losses == [(row["step"], row["loss"]) for row in metrics_of(run, "train")]
    assert [step for step, values in rows if "heldout/loss" in values] == [
        row["step"] for row in metrics_of(run, "heldout")
    ]
    shown = {name: value for _, values in rows for name, value in values.items()}
    assert shown["heldout_rows/margin"]["_type"] == "trackio.histogram"
    pairs = json.loads((run / "evaluation.json").read_text())["heldout"]["pairs"]
    assert sum(shown["heldout_rows/margin"]["values"]) == len(pairs)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [row["after"] for row in shown["samples"]["_value"]] == [sample["after"] for sample in samples]
    assert {"rolling/loss", "rss_gb"} <= shown.keys()
