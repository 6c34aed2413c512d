"""Several runs on one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import CheckpointError
from prefine.report.overview.page import MOST_RUNS, short_names, write_overview
from tests.report.test_page import HOSTILE, Page


def change_manifest(run: Path, **changed: Any) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changed}), encoding="utf-8")


@pytest.fixture
def other(dpo_run: Path) -> Path:
    """A second DPO run: another beta, other held-out rows, and a guard that acted."""
    path = dpo_run.parent / "other"
    shutil.copytree(dpo_run, path)
    recipe = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["recipe"]
    change_manifest(dpo_run, prepared={"digests": {"heldout": "a"}})
    change_manifest(path, recipe={**recipe, "dpo": {"beta": 0.3}}, prepared={"digests": {"heldout": "b"}})
    event = {"kind": "guard", "step": 60, "at_step": 60, "action": "warn", "words": "the KL was above 0.2"}
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
    return path


def test_figures_curves_events_and_differences(dpo_run: Path, other: Path, sft_run: Path, tmp_path: Path) -> None:
    page = write_overview([dpo_run, other, sft_run], tmp_path / "all.html")
    html = page.read_text(encoding="utf-8")
    found = Page(html)
    found.assert_harmless()
    text = found.text
    assert "3 runs compared" in text and "The runs are of several stages." in text
    assert "different held-out data (dpo; other)" in text
    assert "Moved towards the preferred answer by training 84 % 95 % interval 68–93 % 84 %" in text
    assert "Preferred answer ranked first 66 % before 53 %" in text
    assert "dpo: 0.693 → 0.541 other: 0.693 → 0.541" in text and "sft: 2.650 → 1.969" in text
    assert "Loss, dpo" in text and "Loss, sft" in text
    assert "other, 60 the KL was above 0.2 warned" in text
    assert "dpo.beta 0.1 0.3 0.1" in text and "dpo.loss sigmoid not set sigmoid" in text
    assert '<td class="differs">0.3</td>' in html and '<td class="differs">0.1</td>' not in html
    assert "run runs/dpo" not in text.split("same in all")[0]  # each run has another folder


def test_hostile_text_stays_text(dpo_run: Path, other: Path, tmp_path: Path) -> None:
    said = " ".join(HOSTILE)
    change_manifest(other, stage=said, status=said, recipe={said: said}, model={"name": said}, warnings=[said])
    page = Page(write_overview([dpo_run, other], tmp_path / "all.html").read_text(encoding="utf-8"))
    page.assert_harmless()
    assert HOSTILE[0] in page.text


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    assert short_names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert short_names([Path("x/a"), Path("y/a"), Path("y/b")]) == ["x/a", "y/a", "y/b"]
    with pytest.raises(CheckpointError, match="runs/a is named twice"):
        short_names([Path("runs/a"), Path("runs/../runs/a")])


def test_what_cannot_be_shown_or_written_is_refused(dpo_run: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run to report on"):
        write_overview([dpo_run, tmp_path / "none"], tmp_path / "all.html")
    with pytest.raises(CheckpointError, match=f"{MOST_RUNS + 1} runs are more than the {MOST_RUNS}"):
        write_overview([Path(str(number)) for number in range(MOST_RUNS + 1)], tmp_path / "all.html")
    with pytest.raises(CheckpointError, match="is a folder"):
        write_overview([dpo_run, other], tmp_path)
    manifest = dpo_run / "manifest.json"
    before = manifest.read_bytes()
    with pytest.raises(CheckpointError, match="was not written by prefine"):
        write_overview([dpo_run, other], manifest)
    assert manifest.read_bytes() == before


def test_more_runs_than_colours_are_dashed(dpo_run: Path, tmp_path: Path) -> None:
    """The ninth run has the first colour again, with another line."""
    runs = []
    for number in range(9):
        runs.append(tmp_path / f"run-{number}")
        runs[-1].mkdir()
        shutil.copy(dpo_run / "manifest.json", runs[-1])
    html = write_overview(runs, tmp_path / "all.html").read_text(encoding="utf-8")
    assert html.count('stroke-dasharray="5 2.5"') == 2  # in the list of runs, and in the table of figures
