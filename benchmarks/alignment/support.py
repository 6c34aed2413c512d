"""The support-desk path: SFT, a reward model, DPO and PPO, each evaluated against the model that it began with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.alignment.steps import evaluated, require_settings, trained

BASE = "embedded:smollm2-135m"
PROMPTS = "sample:support_desk/prompts"


def run(folder: Path, seeds: Sequence[int], dtype: str) -> None:
    """Train the quickstart's runs with each seed, and evaluate them."""
    require_settings(folder, model=BASE, dtype=dtype)
    for seed in seeds:
        own = folder / f"seed-{seed}"
        common = (f"training.seed={seed}", f"model.dtype={dtype}")
        sft = trained("sft", _recipe("sft"), own / "sft", *common)
        reward = trained("reward", _recipe("reward"), own / "reward", f"model.name={sft}", *common)
        dpo = trained("dpo", _recipe("dpo"), own / "dpo", f"model.name={sft}", *common)
        ppo = trained("ppo", _recipe("ppo"), own / "ppo", f"model.name={sft}", f"reward.name={reward}", *common)
        asked = ("--prompts", PROMPTS, "--reward", str(reward))
        for candidate, baseline in ((sft, BASE), (dpo, str(sft)), (ppo, str(sft))):
            found = evaluated(candidate, baseline, own / "evaluations" / candidate.name, *asked)
            print(f"seed {seed}, {candidate.name}: {found['verdict']['sentence']}", flush=True)


def _recipe(stage: str) -> str:
    return f"prefine/recipes/quickstart-{stage}.yaml"
