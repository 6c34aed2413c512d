"""Each stage has a report of its own, and nothing but the registry asks which stage it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from prefine.recipe.registry import RECIPES
from prefine.report.facts import RunFacts, read_run
from prefine.report.stages.registry import STAGE_REPORTS, stage_report, stage_title

EMPTY = RunFacts(name="run", manifest={}, train=[], heldout=[], evaluation={}, samples=[])


def test_every_stage_has_a_report() -> None:
    assert STAGE_REPORTS.keys() == RECIPES.keys()
    assert all(report.title for report in STAGE_REPORTS.values())


@pytest.mark.parametrize("stage", STAGE_REPORTS)
def test_a_run_without_results_has_nothing_to_add(stage: str) -> None:
    facts, report = dataclasses.replace(EMPTY, manifest={"stage": stage}), STAGE_REPORTS[stage]
    assert stage_report(facts) is report
    assert (report.headline(facts), report.scales(facts), report.tiles(facts)) == (None, [], [])
    assert (report.charts(facts), list(report.cautions(facts))) == ([], [])
    assert not any(report.sections(facts).values())


def test_a_run_of_an_unknown_stage_is_read_by_its_figures(dpo_run: Path, sft_run: Path) -> None:
    dpo, sft = (dataclasses.replace(read_run(run), manifest={"stage": "novel"}) for run in (dpo_run, sft_run))
    assert stage_title(dpo) == "novel" and stage_title(read_run(dpo_run)) == "Direct preference optimisation"
    assert stage_report(dpo) is STAGE_REPORTS["dpo"]
    ppo = dataclasses.replace(EMPTY, rollouts=[{"step": 1}])
    assert stage_report(ppo) is STAGE_REPORTS["ppo"]
    plain = stage_report(sft)
    assert plain not in STAGE_REPORTS.values()
    found = plain.headline(sft)
    assert found is not None and "perplexity of 36 held-out answers" in found.sentence
    assert [chart.title.partition(":")[0] for chart in plain.charts(sft)] == ["Loss", "Gradient norm", "Learning rate"]
