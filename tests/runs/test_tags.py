"""Tags are words that are added to a run and taken away again."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.errors import CheckpointError, RecipeError
from prefine.runs.tags import change_tags, tags_of
from tests.history.runs import a_run


def test_tags_are_added_once_and_removed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert tags_of(run) == []
    assert change_tags(run, ["best", "v2", "best"], []) == ["best", "v2"]
    assert change_tags(run, ["v3"], ["v2"]) == tags_of(run) == ["best", "v3"]


def test_what_cannot_be_a_tag_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    with pytest.raises(RecipeError, match="'two words' cannot be a tag"):
        change_tags(run, ["two words"], [])
    with pytest.raises(RecipeError, match=r"--remove: .* has no tag 'old'\. Its tags: none\."):
        change_tags(run, [], ["old"])
    with pytest.raises(CheckpointError, match="holds no run"):
        change_tags(tmp_path, ["best"], [])


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (run / "tags.json").write_text("{")
    assert tags_of(run) == []
