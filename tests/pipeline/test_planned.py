"""A pipeline's plan: what is cached costs nothing; the stages to run have their time, memory and disk, and a sum."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefine.errors import ModelError
from prefine.pipeline import planned as module
from prefine.pipeline.planned import plan_json, plan_lines, plan_pipeline
from tests.pipeline.fake import Desk

GB = 10**9


@pytest.fixture
def parents(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Method -> the parents whose results its plan was given. A reward model cannot be planned."""
    seen: dict[str, list[str]] = {}

    def plan(recipe: Any, *, method: str, parents: dict[str, str]) -> Any:
        seen[method] = list(parents)
        if method == "reward":
            raise ModelError("its architecture is not known", "Name another.")
        size = {"sft": 1, "dpo": 3, "ppo": 2}[method]
        return SimpleNamespace(
            result=method,
            seconds=60.0 * size,
            peak_bytes=size * GB,
            disk_bytes=GB,
            memory_limit=2 * GB,
            fits=lambda limit: size * GB <= limit,
            as_json=lambda: {"peak_bytes": size * GB},
        )

    monkeypatch.setattr(module, "plan_stage", plan)
    return seen


def shown(desk: Desk, *overrides: str) -> list[str]:
    """The lines, with plain spaces."""
    return [line.replace("\u202f", " ") for line in plan_lines(plan_pipeline(desk.pipeline(*overrides)))]


def test_time_memory_and_disk_of_what_is_to_run(desk: Desk, parents: dict[str, list[str]]) -> None:
    lines = shown(desk)
    assert lines[0] == "sft     sft       to run     it has not run yet"
    assert parents == {"sft": [], "reward": ["sft"], "dpo": ["sft"], "ppo": ["sft", "dpo"]}
    assert "reward  not planned: its architecture is not known" in lines
    dpo = next(line for line in lines if line.startswith("dpo ") and "peak" in line)
    assert "peak 3.00 GB, more than the 2.00 GB of this machine, disk 1.00 GB" in dpo
    assert lines[-1].startswith("7 stages to run: 6 min")
    assert lines[-1].endswith("peak 3.00 GB, disk 3.00 GB (without the 4 stages not planned)")


def test_what_is_cached_costs_nothing(desk: Desk, parents: dict[str, list[str]]) -> None:
    desk.run()
    assert shown(desk)[-1] == "nothing is to run"
    lines = shown(desk, "stages.ppo.kl.coefficient=0.3")
    assert lines[-1].startswith("2 stages to run: 2 min") and "peak 2.00 GB, disk 1.00 GB" in lines[-1]
    found = {each["stage"]: each for each in plan_json(plan_pipeline(desk.pipeline()))}
    assert (found["dpo"]["state"], found["dpo"]["plan"]) == ("cached", {"peak_bytes": 3 * GB})
    assert found["reward"]["plan"] is None
