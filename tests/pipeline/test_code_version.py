"""The code of a stage: its own modules and those that they need, without those that only show things."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.pipeline import code_version
from prefine.pipeline.code_version import code_digest, data_of, modules_of, root_of
from prefine.recipe.pipeline_stage import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_module_that_runs_it(method: str) -> None:
    assert root_of(method).startswith("prefine.")
    assert len(code_digest(method)) == 64


def test_a_stage_has_its_own_objective_and_not_that_of_others() -> None:
    assert "prefine.objectives.dpo" in modules_of("dpo")
    assert "prefine.objectives.dpo" not in modules_of("sft")
    assert "prefine.objectives.ppo" in modules_of("ppo")
    assert "prefine.objectives.ppo" not in modules_of("reward")


def test_a_training_stage_needs_the_loop_the_data_and_the_models_but_no_pages() -> None:
    found = set(modules_of("sft"))
    assert {"prefine.training.loop.loop", "prefine.data.prepare", "prefine.models.forward.packed"} <= found
    assert not [name for name in found if name.startswith(("prefine.report", "prefine.cli", "prefine.watching"))]


def test_names_of_modules_in_texts_count() -> None:
    """Export formats are imported by name."""
    assert "prefine.export.gguf" in modules_of("export")


@pytest.mark.parametrize(
    ("method", "files"),
    [
        ("evaluate", {"facts.jsonl", "refusals.jsonl", "pairwise.txt"}),
        ("report", {"overview.html.j2", "overview.css"}),
        ("sft", set()),
        ("ppo", set()),
        ("export", set()),
    ],
)
def test_files_of_the_package_count_where_they_are_read(method: str, files: set[str]) -> None:
    found = {path.name for path in data_of(modules_of(method))}
    assert files <= found and bool(files) == bool(found)


def test_every_file_that_a_deciding_module_reads_counts() -> None:
    """Modules that open files next to themselves, by how they name them: those of pages show things, and recipes and
    samples are in a stage's recipe and data."""
    reading = {
        name
        for method in METHODS
        for name, path in modules_of(method).items()
        if "Path(__file__)" in (text := path.read_text("utf-8")) or 'files("prefine' in text
    }
    others = {"prefine.recipe.shipped", "prefine.data.reading.source_names"}
    assert reading - others == set(code_version._DATA)


def test_a_changed_file_of_the_package_changes_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = tmp_path / "pairwise.txt"
    monkeypatch.setattr(code_version, "data_of", lambda names: [item] if "prefine.judges.template" in names else [])
    found = []
    for text in ("Which is better?", "Which is worse?"):
        item.write_text(text)
        found.append([code_digest.__wrapped__(method) for method in ("evaluate", "export")])
    assert found[0][0] != found[1][0] and found[0][1] == found[1][1]
