"""The code of a stage: its own modules and those that they need, without those that only show things."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.pipeline import code_version
from prefine.pipeline.code_version import code_digest, root_of
from prefine.recipe.pipeline_stage import METHODS


def modules(method: str) -> set[str]:
    return set(code_version._modules(root_of(method), code_version._SHOWS))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_module_that_runs_it(method: str) -> None:
    assert root_of(method).startswith("prefine.")
    assert len(code_digest(method)) == 64


def test_a_stage_has_its_own_objective_and_not_that_of_others() -> None:
    assert "prefine.objectives.dpo" in modules("dpo")
    assert "prefine.objectives.dpo" not in modules("sft")
    assert "prefine.objectives.ppo" in modules("ppo")
    assert "prefine.objectives.ppo" not in modules("reward")


def test_a_training_stage_needs_the_loop_the_data_and_the_models_but_no_pages() -> None:
    found = modules("sft")
    assert {"prefine.training.loop.loop", "prefine.data.prepare", "prefine.models.forward.packed"} <= found
    assert not [name for name in found if name.startswith(("prefine.report", "prefine.cli", "prefine.watching"))]


def test_names_of_modules_in_texts_count() -> None:
    """Export formats are imported by name."""
    assert "prefine.export.gguf" in modules("export")


def test_the_regression_set_counts_where_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"facts.jsonl", "refusals.jsonl"} <= {path.name for path in code_version._data_of("evaluate")}
    item = tmp_path / "facts.jsonl"
    monkeypatch.setattr(code_version, "_data_of", lambda method: [item] if method == "evaluate" else [])
    found = []
    for text in ("{}", '{"id": 1}'):
        item.write_text(text)
        found.append([code_digest.__wrapped__(method) for method in ("evaluate", "export")])
    assert found[0][0] != found[1][0] and found[0][1] == found[1][1]
