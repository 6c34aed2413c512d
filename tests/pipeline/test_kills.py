"""kill -9 at any moment of a pipeline from SFT to export that really trains: the same command leaves the same bytes."""

from __future__ import annotations

import json
import os
import random
import re
import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prefine.pipeline.digests import files_below
from prefine.pipeline.records import PipelineRecords
from prefine.runs.atomic import sha256_of_file
from tests.export.here import reload_here
from tests.training import tiny
from tests.training.conftest import data as data
from tests.training.conftest import draw_nothing
from tests.training.conftest import finished as finished
from tests.training.conftest import model as model

KILLS = 30
STAGES = ("sft", "reward", "dpo", "ppo", "better", "served", "all")
# Dates, times and what else is measured of the machine, and a run's id, which is random.
LEFT_OUT = tiny.TIMING | {
    *("started", "finished_at", "made_at", "assessed_at", "created", "load_s", "run_id"),
    *("training_seconds", "reference_seconds"),
}
_DATE = re.compile(r"\d{4}-\d\d-\d\dT[\d:+]+")


def pipeline(model: Path, data: Path) -> dict[str, Any]:
    """SFT, a reward model, DPO and PPO of a few steps, an evaluation with a gate, an export, and a page."""

    def stage(method: str, name: str, **sections: Any) -> dict[str, Any]:
        training = {"max_steps": 3, "save_every_steps": 1, "evaluate_every_steps": None}
        values = tiny.recipe(method, Path("unused"), model, data).model_dump(mode="json", exclude_unset=True)
        values |= {"method": method, "training": values["training"] | training}
        for section, fields in sections.items():
            values[section] = {**values.get(section, {}), **fields} if isinstance(fields, dict) else fields
        values["model"]["name"] = name
        del values["run"]
        return values

    Path("gate.yaml").write_text("verdict: any\nregressions_allowed: 30\nregression_set: optional\n")
    return {
        "folder": "out",
        "stages": {
            "sft": stage("sft", str(model)),
            "reward": stage("reward", "stage:sft"),
            "dpo": stage("dpo", "stage:sft"),
            "ppo": stage(
                *("ppo", "stage:sft"),
                force=True,  # so few held-out pairs show nothing of a reward model
                reward={"name": "stage:reward"},
                training={"max_steps": 2, "save_every_steps": 1, "evaluate_every_steps": None},
            ),
            "better": {
                **{"method": "evaluate", "candidate": "stage:ppo", "against": "stage:sft", "reward": "stage:reward"},
                **{"prompts": str(data), "limit": 4, "max_new_tokens": 4, "slots": 1, "regression": False},
                **{"gate": str(Path("gate.yaml").absolute()), "device": "cpu", "dtype": "float32"},
            },
            "served": {"method": "export", "model": "stage:ppo"},
            "all": {"method": "report"},
        },
    }


def attempt(folder: Path, values: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    os.environ["PREFINE_CACHE"] = str(folder / "cache")
    os.chdir(folder)
    import prefine

    prefine.run_pipeline(values, display=False)


def artefacts(folder: Path) -> dict[str, Any]:
    """The contents of all files of all stages, which are done, without what is measured."""
    records = PipelineRecords(folder / "out")
    found: dict[str, Any] = {}
    for name in STAGES:
        record = records.read(name)
        assert record is not None and record.status == "done", name
        assert record.gate is (True if name == "better" else None)
        for file, path in files_below(folder / "out" / name).items():
            if not file.startswith("checkpoints/"):  # they are for going on, and hold seconds
                found[f"{name}/{file}"] = content(path)
    return found


def content(path: Path) -> Any:
    """What a file holds, without what is measured; of a file of weights or tokens its hash."""
    if path.suffix == ".json":
        return without_measured(json.loads(path.read_text()))
    if path.name == "README.md":  # of an export
        return _DATE.sub("", path.read_text())
    if path.suffix == ".jsonl":
        return [without_measured(json.loads(line)) for line in path.read_text().splitlines()]
    return sha256_of_file(path)


def without_measured(value: Any) -> Any:
    if isinstance(value, dict):
        if "created" in value:  # an export in its run's manifest, with the hash of a file that holds this date
            value = {name: inner for name, inner in value.items() if name != "sha256"}
        return {name: without_measured(inner) for name, inner in value.items() if name not in LEFT_OUT}
    return [without_measured(each) for each in value] if isinstance(value, list) else value


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two values differ, each place with both values; [] if they are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys([*one, *other])
        return [text for name in names for text in differences(one.get(name), other.get(name), f"{where} {name}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [text for place, (mine, theirs) in pairs for text in differences(mine, theirs, f"{where} {place}")]
    if isinstance(one, list) and isinstance(other, list):
        one, other = [each for each in one if each not in other], [each for each in other if each not in one]
        return [f"{where}: only {one!r:.200} and only {other!r:.200}"]
    return [] if one == other else [f"{where}: {one!r:.200} and {other!r:.200}"]


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_thirty_random_moments(
    model: Path, data: Path, no_cache_outside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    reload_here(monkeypatch)
    monkeypatch.setattr("prefine.report.overview.page.write_overview", write_nothing)
    monkeypatch.setattr("prefine.evaluation.comparing.evaluate.write_comparison", write_no_comparison)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFINE_CACHE", str(tmp_path))
    values = pipeline(model, data)
    attempt(tmp_path / "warm", values)  # imports, so that the copies need none
    before = cpu_of_children()
    assert tiny.forked(partial(attempt, tmp_path / "whole", values)) == 0
    whole_s = cpu_of_children() - before
    whole = artefacts(tmp_path / "whole")
    draw = random.Random(0)
    kills, runs = 0, 0
    while kills < KILLS:
        folder = tmp_path / f"killed-{runs}"
        going_on = partial(attempt, folder, values)
        while kills < KILLS and tiny.killed_after(draw.uniform(0, whole_s / 3), going_on):
            kills += 1
        assert tiny.forked(going_on) == 0
        runs += 1
        assert "\n".join(differences(artefacts(folder), whole)) == ""
        assert not list(folder.rglob("*.tmp"))


def write_nothing(folders: list[Path], page: Path) -> Path:
    """In place of the page, which takes as long as training."""
    page.write_text("<p>drawn elsewhere</p>")
    return page


def write_no_comparison(folder: Path) -> Path:
    """In place of the page of a comparison, which shows its report.json."""
    return write_nothing([], folder / "report.html")
