"""What a run records of each held-out row, before and after: the figures are their means, and the page counts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.recipe.stage import StageRecipe
from prefine.report.facts import read_run
from prefine.report.loss import loss_change
from prefine.report.stages.pair_charts import shift_points
from tests.training import tiny

Make = Callable[..., StageRecipe]
QUICK = {"training.evaluate_every_steps": None, "training.save_every_steps": None, "report.samples": 0}


def heldout(made: StageRecipe) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(made.run) / "evaluation.json").read_text())["heldout"]
    return found


def test_sft_records_each_answers_loss(make: Make) -> None:
    """Weighed by their tokens they are the run's loss, and their change has an interval."""
    made = make("sft", changes={**QUICK, "training.epochs": 1})
    tiny.train(made)
    told = heldout(made)
    assert len(told["rows"]) == told["count"] > 3
    tokens = [row["tokens"] for row in told["rows"]]
    for when in ("before", "after"):
        sums = [row[f"{when}_loss"] * row["tokens"] for row in told["rows"]]
        assert sum(sums) / sum(tokens) == pytest.approx(told[when]["loss"], rel=1e-6)
    assert len({row["before_loss"] for row in told["rows"]}) > 3
    change = loss_change(read_run(Path(made.run)))
    assert change is not None and change.interval is not None
    assert change.value == pytest.approx(told["after"]["loss"] - told["before"]["loss"], abs=1e-6)


def test_answers_of_before_outlive_a_resumed_run(make: Make) -> None:
    """Also where it is resumed after its last step, when no step of its own evaluates."""
    whole, broken = make("sft", "whole"), make("sft", "broken")
    tiny.train(whole)
    tiny.train(broken)
    for name in ("evaluation.json", "report.html"):
        (Path(broken.run) / name).unlink(missing_ok=True)
    manifest = tiny.manifest(Path(broken.run))
    (Path(broken.run) / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    tiny.train(broken, resume=True)
    assert not tiny.differences(Path(whole.run), Path(broken.run))


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_a_dpo_runs_chart_counts_what_its_accuracy_counts(make: Make, loss: str) -> None:
    made = make("dpo", changes={**QUICK, "dpo.loss": loss, "training.learning_rate": 3e-2})
    tiny.train(made)
    told, facts = heldout(made), read_run(Path(made.run))
    points = shift_points(facts)
    assert len(points) == told["count"]
    assert sum(chosen > rejected for chosen, rejected in points) / len(points) == pytest.approx(
        told["after"]["accuracy"]
    )
    for when in ("before", "after"):
        ranked = [pair[f"{when}_ranked"] for pair in told["pairs"]]
        assert sum(ranked) / len(ranked) == pytest.approx(told[when]["policy_accuracy"])
