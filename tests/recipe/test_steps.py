"""How many steps a run has."""

from __future__ import annotations

import pytest

from prefine.recipe.steps import steps_per_epoch


@pytest.mark.parametrize(("rows", "per_step", "steps"), [(8, 4, 2), (9, 4, 3), (1, 4, 1), (0, 4, 0)])
def test_the_ragged_last_step_counts(rows: int, per_step: int, steps: int) -> None:
    assert steps_per_epoch(rows, per_step) == steps
