"""The quickstart's own recipes, end to end on the embedded model, at a size that a test can afford."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from prefine.cli.app import main

PIPELINE = Path(__file__).parent.parent / "prefine" / "recipes" / "pipelines" / "quickstart.yaml"


def small(stage: str, steps: int, **changes: object) -> list[str]:
    """Overrides that make a stage small."""
    fields: dict[str, object] = {
        "data.limit": 60,
        "data.heldout_fraction": 0.25,
        "training.max_steps": steps,
        "training.batch_size": 4,
        "training.evaluate_every_steps": "null",
        "training.save_every_steps": "null",
        **({} if stage == "reward" else {"report.samples": 2, "report.max_new_tokens": 12}),
        **changes,
    }
    return [word for name, value in fields.items() for word in ("--set", f"stages.{stage}.{name}={value}")]


@pytest.mark.slow
@pytest.mark.timeout(1500)  # in float32 on one core
@pytest.mark.usefixtures("embedded_model")
def test_quickstart_ends_with_models_that_prefer_what_people_prefer(tmp_path: Path) -> None:
    sft, dpo, reward, ppo = (tmp_path / name for name in ("sft", "dpo", "reward", "ppo"))
    answers = {"rollout.max_new_tokens": 24, "rollout.heldout_prompts": 4, "rollout.heldout_samples": 2}
    with pytest.raises(SystemExit) as left:
        main(
            [
                *("run", str(PIPELINE), "--set", f"folder={tmp_path}"),
                *small("sft", 5),
                *small("dpo", 8, **{"training.learning_rate": "2.0e-4"}),
                *small("reward", 10, **{"training.learning_rate": "4.0e-4", "readiness.trained_pairs": 10}),
                *small("ppo", 2, **answers, force="true"),
                *("--set", "stages.better.limit=4", "--set", "stages.better.max_new_tokens=12"),
            ]
        )
    assert left.value.code in (0, None)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "All 7 stages are done" in page and 'href="ppo/report.html"' in page
    report = json.loads((tmp_path / "better" / "report.json").read_text())
    assert report["verdict"]["decided_by"] == str(reward) and report["prompts"]["asked"] == 4
    assert json.loads((tmp_path / "served" / "adapter" / "export.json").read_text())["proven"] is True
    assert (tmp_path / "page" / "report.html").stat().st_size > 10_000
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
