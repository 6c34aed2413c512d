"""Stages that read the same data alike count them once in a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefine.planning import row_counts
from prefine.planning.plan import plan_stage
from prefine.planning.row_counts import RowCounts
from prefine.planning.workload import counted_rows
from tests.planning.test_plan import CPU
from tests.training import tiny


def test_the_same_data_are_counted_once_for_each_kind_of_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = (tiny.save_model(tmp_path / name) for name in ("model", "other"))
    data = tiny.write_rows(tmp_path / "pairs.jsonl", tiny.pairs(30))
    counted: list[str] = []

    def counting(kind: Any, section: Any, template: Any) -> Any:
        counted.append(kind.__name__)
        return counted_rows(kind, section, template)

    monkeypatch.setattr(row_counts, "counted_rows", counting)
    counts = RowCounts()

    def rows(method: str, values: dict[str, Any] | None = None, base: Path = model) -> int | None:
        recipe = tiny.recipe(method, tmp_path / "run", base, data, values or {})
        return plan_stage(recipe, method=method, machine=CPU, counts=counts).workload.rows

    first = rows("dpo")
    assert first is not None and first == rows("reward") == rows("dpo", {"data.max_length_tokens": 100})
    assert counted == ["Preference"]
    assert rows("sft") is not None and counted == ["Preference", "Demonstration"]
    assert rows("dpo", {"data.limit": 10}) != first
    assert rows("dpo", base=other) == first
    assert counted == ["Preference", "Demonstration", "Preference", "Preference"]
