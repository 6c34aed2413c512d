"""prefine.run_pipeline does what prefine run does."""

from __future__ import annotations

from typing import Any

import pytest

import prefine
from prefine.errors import RecipeError
from tests.pipeline.fake import STAGES, Desk


def test_a_mapping_or_a_file_with_changes_by_keyword(desk: Desk) -> None:
    desk.pipeline()
    first = prefine.run_pipeline("p.yaml", display=False)
    assert first.ran == STAGES
    again = prefine.run_pipeline(desk.values, display=False)
    assert (again.ran, again.cached) == ((), STAGES)
    changes: dict[str, Any] = {"stages.dpo": {"dpo": {"beta": 0.3}}}
    assert prefine.run_pipeline(desk.values, only="dpo", display=False, **changes).ran == ("dpo",)
    assert desk.values["stages"]["dpo"].get("dpo") is None  # the caller's values stay


def test_mistakes_name_the_keyword(desk: Desk) -> None:
    with pytest.raises(RecipeError, match=r"keyword stages: dpo\.betta is not a field"):
        prefine.run_pipeline(desk.values, **{"stages.dpo.dpo.betta": 0.3})
