"""Folders of runs, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def a_run(folder: Path, stage: str = "sft", loss: float = 2.0, model: str = "tiny", **manifest: Any) -> Path:
    """A finished run of a stage, with one held-out figure before and after."""
    folder.mkdir(parents=True)
    (folder / ".lock").write_text("prefine run")
    recipe = {"run": str(folder), "model": {"name": model}, "training": {"seed": 0, "learning_rate": 1e-4}}
    whole = {
        **{"prefine": "0.1.0", "stage": stage, "status": "finished", "started": "2026-01-01T00:00:00"},
        **{"run_id": "1", "recipe": recipe, "model": {"name": model, "compute_dtype": "float32"}},
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(whole))
    rows = [{"kind": "heldout", "step": step, "loss": found} for step, found in ((0, 2.5), (8, loss))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
