"""The readiness report of a finished reward run follows its thresholds, without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefine.recipe.reward import RewardRecipe
from prefine.runs.atomic import write_json
from prefine.training.stages import readiness as readiness_module
from tests.training import tiny

ACCURACY, PAIRS = "held-out accuracy", "held-out pairs"


@pytest.fixture
def run(reward_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(reward_run, tmp_path / "run")


def resumed(run: Path, manifest: dict[str, Any] | None = None, **readiness: Any) -> str:
    """Resume it with other thresholds; returns what it said.

    Args:
        manifest: whose recipe it is resumed with; None: the run's own.
    """
    values = (manifest or tiny.manifest(run))["recipe"]
    values["run"] = str(run)
    values["readiness"] |= readiness
    return tiny.train(RewardRecipe.model_validate(values), resume=True)


def level(run: Path, name: str) -> str:
    """That of a finding."""
    findings = json.loads((run / "readiness.json").read_text())["findings"]
    return next(each["level"] for each in findings if each["name"] == name)


def files_of_model(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*(run / "model").iterdir(), run / "evaluation.json"]}


def test_other_thresholds_give_another_report_and_the_same_model(run: Path) -> None:
    model, metrics = files_of_model(run), (run / "metrics.jsonl").read_bytes()
    assert level(run, PAIRS) == "caution"
    said = resumed(run, min_pairs=2)
    assert "readiness for PPO: " in said and "is finished already" in said and "step" not in said
    assert level(run, PAIRS) == "go"
    assert files_of_model(run) == model and (run / "metrics.jsonl").read_bytes() == metrics
    manifest = tiny.manifest(run)
    assert manifest["status"] == "finished" and manifest["recipe"]["readiness"]["min_pairs"] == 2
    assert manifest["readiness"] == json.loads((run / "readiness.json").read_text())["verdict"]
    assert not any(each.startswith(f"{PAIRS}: ") for each in manifest["warnings"])
    assert "min_pairs: 2" in (run / "recipe.yaml").read_text()
    assert (run / "report.html").exists()
    resumed(run, min_pairs=1000)
    warnings = [each for each in tiny.manifest(run)["warnings"] if each.startswith(f"{PAIRS}: ")]
    assert level(run, PAIRS) == "caution" and len(warnings) == 1


def test_the_same_thresholds_change_nothing(run: Path) -> None:
    before = (run / "readiness.json").read_bytes()
    assert "readiness for PPO" not in resumed(run)
    assert (run / "readiness.json").read_bytes() == before


@pytest.mark.parametrize("then", [2, 50])
def test_a_kill_before_the_thresholds_are_written_leaves_it_to_the_next_call(
    run: Path, monkeypatch: pytest.MonkeyPatch, then: int
) -> None:
    """The report on the disk is of the other thresholds, also where the earlier ones (50) are set back."""
    before = tiny.manifest(run)

    def killed(path: Path, value: Any) -> None:
        if "readiness" in value["recipe"]:
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(readiness_module, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            resumed(run, min_pairs=2)
    assert level(run, PAIRS) == "go"
    assert "readiness for PPO" in resumed(run, before, min_pairs=then)
    assert tiny.manifest(run)["recipe"]["readiness"]["min_pairs"] == then
    assert level(run, PAIRS) == ("go" if then == 2 else "caution")
    write_json(run / "readiness.json", {})  # what a user does to it is his
    assert "readiness for PPO" not in resumed(run, min_pairs=then)
