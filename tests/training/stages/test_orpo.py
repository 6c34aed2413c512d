"""Runs of ORPO: without a reference, with both losses in the metrics, and with what a pair's results need."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prefine
from prefine.errors import DataError
from prefine.recipe.stage import StageRecipe
from prefine.report.facts import read_run
from prefine.report.stages.registry import stage_report
from tests.training import tiny

Make = Callable[..., StageRecipe]
QUICK: dict[str, Any] = {"training.max_steps": 2, "report.samples": 0, "training.save_every_steps": None}


def test_a_run_learns_chosen_answers_and_their_odds(make: Make) -> None:
    """The loss is the sum of its two terms; the margin is the log odds ratio; there is no reference pass."""
    made = make("orpo", changes={"training.epochs": 6, "training.learning_rate": 3e-3, "orpo.beta": 0.5})
    assert "reference" not in tiny.train(made)
    rows = tiny.metrics(Path(made.run))
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_nll"] + 0.5 * row["loss_odds_ratio"], abs=1e-5)
        assert "chosen_fall" not in row
    first, last = ([row for row in rows if row["kind"] == "heldout"][place] for place in (0, -1))
    assert last["loss_nll"] < first["loss_nll"] - 0.1
    assert last["loss_odds_ratio"] < first["loss_odds_ratio"]
    assert last["margin"] > first["margin"]
    assert last["logp_chosen"] > first["logp_chosen"]
    pairs = json.loads((Path(made.run) / "evaluation.json").read_text())["heldout"]["pairs"]
    assert [pair["after_ranked"] for pair in pairs] == [float(pair["after_margin"] > 0) for pair in pairs]


def test_its_report_shows_both_losses_and_speaks_of_its_own_fields(make: Make) -> None:
    run = prefine.orpo(make("orpo", changes=QUICK), display=False)
    assert (run.stage, run.status) == ("orpo", "finished")
    facts = read_run(run.path)
    report = stage_report(facts)
    titles = [chart.title.partition(":")[0] for chart in report.charts(facts)]
    assert titles[-2:] == ["Supervised loss", "Odds-ratio loss"]
    assert not report.scales(facts)[0].label.startswith("Moved")
    assert "orpo.beta" in report.loss_unit(facts)


def test_ties_are_left_out_and_votes_refused(make: Make, votes: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q {number}", "response_1": f"a {number}", "response_2": f"b {number}", "preferred": number % 3}
        for number in range(24)
    ]
    changes = {**QUICK, "data.train": str(tiny.write_rows(tmp_path / "ties.jsonl", rows))}
    made = make("orpo", changes=changes)
    tiny.train(made)
    counts = tiny.manifest(Path(made.run))["data"]
    assert sum(part["dropped_unusable"] for part in counts.values()) == 8
    with pytest.raises(DataError, match="prefine kto"):
        tiny.train(make("orpo", "votes", {**QUICK, "data.train": str(votes)}))
