"""Twenty recorded steps of each stage on T: whatever changes them changes what users' runs compute.

If that is meant, record them again and say why in the commit:

    PREFINE_RECORD_GOLDEN=1 python -m pytest tests/training/test_golden.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prefine.recipe import StageRecipe
from tests.training import tiny

GOLDEN = Path(__file__).with_name("golden.json")
RECORDED = (
    *("loss", "grad_norm", "margin", "logp_chosen", "logp_rejected", "perplexity"),
    *("score_chosen", "score_rejected", "learning_rate"),
)


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_twenty_steps(stage: str, make: Callable[..., StageRecipe]) -> None:
    changes = {"lora.dropout": 0.0, "training.epochs": 4, "training.evaluate_every_steps": 10}
    if stage != "reward":
        changes["report.samples"] = 0
    made = make(stage, changes=changes)
    tiny.train(made)
    rows = [
        {"kind": row["kind"], "step": row["step"], **{name: row[name] for name in RECORDED if name in row}}
        for row in tiny.metrics(Path(made.run))
    ]
    assert rows[-1]["step"] == 20
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("PREFINE_RECORD_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden | {stage: rows}, indent=1) + "\n")
        return
    assert len(rows) == len(golden[stage])
    for row, recorded in zip(rows, golden[stage], strict=True):
        assert row.pop("kind") == recorded.pop("kind")
        assert row == pytest.approx(recorded, rel=1e-4, abs=1e-5), f"step {row['step']}"
