"""What `prefine watch` reads from the files of a run that is going."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from prefine.recipe.stage import StageRecipe
from prefine.training.display import Callbacks, Display
from prefine.training.run.run_stage import run_stage
from prefine.watching.reading import RunFiles, Snapshot
from tests.training import tiny


def test_a_run_is_seen_while_it_is_going_and_when_it_has_ended(make: Callable[..., StageRecipe]) -> None:
    made = make("sft", changes={"training.max_steps": 4, "training.save_every_steps": None, "report.samples": 0})
    files = RunFiles(Path(made.run))
    seen: list[Snapshot] = []
    display = Display(
        Console(file=io.StringIO()), callbacks=Callbacks(on_step=lambda step, row: seen.append(files.read()))
    )
    run_stage(tiny.stage_of(made), False, display)
    assert [(now.step, now.total, now.status, now.ended) for now in seen] == [
        (step, 4, "running", False) for step in (1, 2, 3, 4)
    ]
    assert all(now.alive is not False and now.seconds_left is not None for now in seen)
    now = files.read()
    assert (now.step, now.total, now.status, now.ended) == (4, 4, "finished", True)
    assert not now.alive
