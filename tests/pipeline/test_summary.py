"""The page of a pipeline says what stands now, not what once ran."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from prefine.pipeline import summary
from prefine.report.pipeline_page import StageLine
from tests.pipeline.fake import Desk


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> dict[str, StageLine]:
    """The stages of the page that was written last, by name."""
    found: dict[str, StageLine] = {}

    def write(name: str, lines: Sequence[StageLine], page: Path) -> Path:
        found.update({each.name: each for each in lines})
        return page

    monkeypatch.setattr(summary, "write_pipeline_page", write)
    return found


def test_stages_whose_inputs_have_changed_are_out_of_date(desk: Desk, lines: dict[str, StageLine]) -> None:
    desk.run()
    assert {each.state for each in lines.values()} == {"done"}
    desk.run("stages.sft.training.seed=4", only="sft")
    assert (lines["sft"].state, lines["dpo"].state) == ("done", "out of date")
    assert lines["dpo"].why == "the result of stage sft has changed"
    assert lines["better"].state == lines["served"].state == "out of date"


def test_a_blocked_export_shows_nothing_of_an_earlier_one(desk: Desk, lines: dict[str, StageLine]) -> None:
    desk.run()
    page = Path("out/served/merged/README.md")
    page.write_text("mine")
    (page.parent / "export.json").write_text('{"proven": true}')
    desk.run()
    assert lines["served"].links and lines["served"].figures
    desk.gates["better"] = False
    desk.run("stages.better.samples=2")
    served = lines["served"]
    assert (served.state, served.why, served.links, served.figures) == (
        *("not run", "the gate of better is not passed"),
        *([], []),
    )
    assert lines["better"].state == "gate not passed"
