"""What the planner expected of a stage stands beside what came of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.pipeline import summary
from prefine.pipeline.prediction import in_words, predicted
from prefine.pipeline.records import PipelineRecords
from prefine.recipe.pipeline_stage import EvaluateRecipe
from prefine.recipe.sft import SftRecipe
from prefine.report.pipeline_page import StageFigure
from tests.pipeline.fake import Desk
from tests.training import tiny


def test_time_and_memory_of_a_stage_that_trains(tmp_path: Path) -> None:
    data = tiny.write_rows(tmp_path / "data.jsonl", [{"prompt": f"say {i}", "completion": "yes"} for i in range(20)])
    recipe = SftRecipe.model_validate(
        {"model": {"name": str(tiny.save_model(tmp_path / "model"))}, "data": {"train": str(data)}}
    )
    found = predicted(recipe, "sft")
    assert found["seconds"] > 1
    assert 1e8 < found["peak_bytes"] < 2e9  # mostly the process


def test_what_cannot_be_planned_has_no_figures(tmp_path: Path) -> None:
    assert predicted(SftRecipe.model_validate({"model": {"name": str(tmp_path / "none")}}), "sft") == {}
    evaluation = EvaluateRecipe.model_validate({"candidate": "stage:a", "against": "stage:b"})
    assert predicted(evaluation, "evaluate") == {}


def test_in_words() -> None:
    found = {name: text.replace("\u202f", " ") for name, text in in_words({"seconds": 60, "peak_bytes": 2e9}).items()}
    assert found == {"Time": "planned 1 min 0 s", "Peak memory": "planned 2.00 GB"}
    assert in_words({}) == {}


def test_the_page_has_both(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "_result", lambda stage: ("", [StageFigure("Time", "50 s"), StageFigure("Loss", "1")]))
    desk.run()
    record = PipelineRecords(Path("out")).read("sft")
    assert record is not None
    assert record.planned == {"seconds": 60.0}
    page = Path("out/report.html").read_text().replace("\u202f", " ")
    assert "<dd>50 s<span>planned 1 min 0 s</span></dd>" in page
    assert "<dd>1</dd>" in page
