"""Twenty recorded steps of each stage on T: whatever changes them changes what users' runs compute.

If that is meant, record them again and say why in the commit:

    PREFINE_RECORD_GOLDEN=1 python -m pytest tests/training/test_golden.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.recipe.stage import StageRecipe
from tests.training import tiny

GOLDEN = Path(__file__).with_name("golden.json")
RECORDED = (
    *("loss", "grad_norm", "margin", "logp_chosen", "logp_rejected", "perplexity"),
    *("score_chosen", "score_rejected", "learning_rate"),
    *("kl_baseline", "reward_up", "reward_down", "logp_up", "logp_down"),
    *("loss_nll", "loss_odds_ratio"),
    *("policy_loss", "value_loss", "approx_kl", "clip_fraction", "explained_variance"),
    *("score", "reward", "kl_k1", "kl_k3", "kl_coefficient", "entropy", "response_tokens", "ended"),
)
# So that it shows more of what an update does: a steered pull, a running scale, two answers to a prompt.
OF_PPO = {**tiny.UNGUARDED, "training.learning_rate": 3e-3, "rollout.samples_per_prompt": 2, "rollout.temperature": 0.7}
OF_PPO |= {"kl.controller": "adaptive", "kl.horizon": 40, "kl.target": 0.01, "reward.scale": "running"}


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "orpo", "reward", "ppo"])
def test_twenty_steps(stage: str, make: Callable[..., StageRecipe]) -> None:
    changes: dict[str, Any] = {"lora.dropout": 0.0, "training.epochs": 4, "training.evaluate_every_steps": 10}
    changes |= OF_PPO if stage == "ppo" else {}
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
