"""The quickstart's own recipes, end to end on the embedded model, at a size that a test can afford."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from prefine.cli.app import main

RECIPES = Path(__file__).parent.parent / "prefine" / "recipes"


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code in (0, None)


def small(run_folder: Path, limit: int, steps: int, writes: bool = True) -> list[str]:
    changes: dict[str, object] = {
        "run": run_folder,
        "data.limit": limit,
        "data.heldout_fraction": 0.25,
        "training.max_steps": steps,
        "training.batch_size": 4,
        "training.evaluate_every_steps": "null",
        "training.save_every_steps": "null",
    }
    if writes:
        changes |= {"report.samples": 2, "report.max_new_tokens": 12}
    return [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.slow
@pytest.mark.timeout(1500)  # in float32 on one core
@pytest.mark.usefixtures("embedded_model")
def test_quickstart_ends_with_models_that_prefer_what_people_prefer(tmp_path: Path) -> None:
    sft, dpo, reward = tmp_path / "sft", tmp_path / "dpo", tmp_path / "reward"
    run("sft", str(RECIPES / "quickstart-sft.yaml"), *small(sft, 60, 5))
    changes = ["--set", f"model.name={sft}", "--set", "training.learning_rate=2.0e-4"]
    run("dpo", str(RECIPES / "quickstart-dpo.yaml"), *small(dpo, 60, 8), *changes)

    changes = ["--set", f"model.name={sft}", "--set", "training.learning_rate=4.0e-4"]
    changes += ["--set", "readiness.trained_pairs=10"]
    run("reward", str(RECIPES / "quickstart-reward.yaml"), *small(reward, 60, 10, writes=False), *changes)

    ppo = tmp_path / "ppo"
    changes = ["--set", f"model.name={sft}", "--set", f"reward.name={reward}", "--set", "rollout.max_new_tokens=24"]
    changes += ["--set", "rollout.heldout_prompts=4", "--set", "rollout.heldout_samples=2", "--force"]
    run("ppo", str(RECIPES / "quickstart-ppo.yaml"), *small(ppo, 60, 2), *changes)
    told = json.loads((ppo / "evaluation.json").read_text())["heldout"]
    assert told["before"]["kl_k3"] < 1e-3
    assert 0 < told["after"]["kl_k3"] < 0.2
    assert (told["count"], len(told["responses"])) == (4, 8)
    assert json.loads((ppo / "manifest.json").read_text())["status"] == "finished"

    told = json.loads((reward / "evaluation.json").read_text())["heldout"]
    assert told["after"]["loss"] < min(told["before"]["loss"], math.log(2))
    assert told["after"]["accuracy"] > 0.6
    assert json.loads((reward / "readiness.json").read_text())["looked_at"] <= 100
    assert (reward / "readiness.html").stat().st_size > 10_000
    told = json.loads((sft / "evaluation.json").read_text())["heldout"]
    assert told["after"]["loss"] < told["before"]["loss"]
    told = json.loads((dpo / "evaluation.json").read_text())["heldout"]
    assert told["count"] >= 15
    assert told["before"]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert told["after"]["loss"] < math.log(2)
    assert told["after"]["accuracy"] > 0.6
    assert told["after"]["policy_accuracy"] >= told["before"]["policy_accuracy"]
    manifest = json.loads((dpo / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["model"]["forward"] == "packed"
    assert all(check["passed"] for check in manifest["self_checks"])
    samples = [json.loads(line) for line in (dpo / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    assert all(sample["before_tokens"] and sample["after_tokens"] for sample in samples)
    assert (dpo / "report.html").stat().st_size > 10_000
