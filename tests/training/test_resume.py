"""A resumed run equals one that was never stopped, bit for bit, wherever it was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import Stopped
from prefine.recipe import StageRecipe
from prefine.training.loop import Loop
from tests.training import tiny

Make = Callable[..., StageRecipe]


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs begun now are asked to stop once `step` is done, as by Ctrl-C."""
    real = Loop.__post_init__

    def asked(loop: Loop) -> None:
        real(loop)
        loop.stop_requested = lambda: loop.position.step == step

    monkeypatch.setattr(Loop, "__post_init__", asked)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_stopped_after_any_step_and_resumed_is_the_same_run(
    stage: str, make: Make, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    """Dropout on, mid-epoch, ragged last steps; the reference cache is deleted in between."""
    whole = make(stage, "whole", {"training.epochs": 1.5})
    tiny.train(whole)
    steps = max(row["step"] for row in tiny.metrics(Path(whole.run)))
    assert steps == 8
    for stopped_at in range(1, steps):
        with monkeypatch.context() as patched:
            stop_after(stopped_at, patched)
            changes: dict[str, Any] = {"training.epochs": 1.5, "training.save_every_steps": None}
            cut = make(stage, f"cut-{stopped_at}", changes)
            with pytest.raises(Stopped, match=f"after step {stopped_at} of {steps}"):
                tiny.train(cut)
        assert tiny.manifest(Path(cut.run))["status"] == "stopped"
        shutil.rmtree(own_cache, ignore_errors=True)
        assert f"resuming after step {stopped_at}\n" in tiny.train(cut, resume=True)
        assert not tiny.differences(Path(whole.run), Path(cut.run))
