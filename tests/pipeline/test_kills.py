"""kill -9 at any moment of a pipeline that really trains: the same command ends with the same bytes."""

from __future__ import annotations

import os
import random
import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prefine.pipeline.records import PipelineRecords
from tests.training import tiny
from tests.training.conftest import data as data
from tests.training.conftest import draw_nothing
from tests.training.conftest import finished as finished
from tests.training.conftest import model as model

KILLS = 30


def pipeline(model: Path, data: Path) -> dict[str, Any]:
    """SFT, a reward model and DPO of a few steps, and a page."""

    def stage(method: str, name: str, **sections: Any) -> dict[str, Any]:
        training = {"max_steps": 3, "save_every_steps": 1, "evaluate_every_steps": None}
        values = tiny.recipe(method, Path("unused"), model, data).model_dump(mode="json", exclude_unset=True)
        values |= {"method": method, "training": values["training"] | training, **sections}
        values["model"]["name"] = name
        del values["run"]
        return values

    return {
        "folder": "out",
        "stages": {
            "sft": stage("sft", str(model)),
            "reward": stage("reward", "stage:sft"),
            "dpo": stage("dpo", "stage:sft"),
            "all": {"method": "report"},
        },
    }


def attempt(folder: Path, values: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    os.environ["PREFINE_CACHE"] = str(folder / "cache")
    os.chdir(folder)
    import prefine

    prefine.run_pipeline(values, display=False)


def artefacts(folder: Path) -> dict[str, dict[str, str]]:
    """Stage -> hashes of its results, as its record and its files have them."""
    records = PipelineRecords(folder / "out")
    found = {}
    for name in ("sft", "reward", "dpo", "all"):
        record = records.read(name)
        assert record is not None and record.status == "done", name
        for file, digest in record.results.items():
            assert records.digests.of_file(folder / "out" / name / file) == digest
        found[name] = record.results
    return found


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_thirty_random_moments(
    model: Path, data: Path, no_cache_outside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    monkeypatch.setattr("prefine.report.overview.page.write_overview", write_nothing)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFINE_CACHE", str(tmp_path))
    values = pipeline(model, data)
    attempt(tmp_path / "warm", values)  # imports, so that the copies need none
    before = cpu_of_children()
    assert tiny.forked(partial(attempt, tmp_path / "whole", values)) == 0
    whole_s = cpu_of_children() - before
    draw = random.Random(0)
    kills, runs = 0, 0
    while kills < KILLS:
        folder = tmp_path / f"killed-{runs}"
        going_on = partial(attempt, folder, values)
        while kills < KILLS and tiny.killed_after(draw.uniform(0, whole_s / 3), going_on):
            kills += 1
        assert tiny.forked(going_on) == 0
        runs += 1
        assert artefacts(folder) == artefacts(tmp_path / "whole")
        assert not list(folder.rglob("*.tmp"))


def write_nothing(folders: list[Path], page: Path) -> Path:
    """In place of the page, which takes as long as training."""
    page.write_text("<p>drawn elsewhere</p>")
    return page
