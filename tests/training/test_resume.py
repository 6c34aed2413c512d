"""A resumed run equals one that was never stopped, bit for bit, wherever it was stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import Stopped
from prefine.recipe.stage import StageRecipe
from prefine.training.loop.loop import Loop
from tests.training import tiny

Make = Callable[..., StageRecipe]


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs begun now are asked to stop once `step` is done, as by Ctrl-C."""
    real = Loop.__post_init__

    def asked(loop: Loop) -> None:
        real(loop)
        loop.stop_requested = lambda: loop.position.step == step

    monkeypatch.setattr(Loop, "__post_init__", asked)


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "orpo", "reward"])
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
        (state,) = (Path(cut.run) / "checkpoints").glob("step-*/state.json")
        before_s = json.loads(state.read_text())["wall_seconds"]
        shutil.rmtree(own_cache, ignore_errors=True)
        resumed_at = time.perf_counter()
        assert f"resuming after step {stopped_at}\n" in tiny.train(cut, resume=True)
        after_s = time.perf_counter() - resumed_at
        seconds = tiny.manifest(Path(cut.run))["seconds"]  # to one digit
        assert 0 < before_s < seconds + 0.1 <= before_s + after_s + 0.2
        assert not tiny.differences(Path(whole.run), Path(cut.run))


KINDS: dict[str, dict[str, Any]] = {
    "all weights": {"lora": None},
    "bf16": {"model.dtype": "bfloat16"},
    "rank-stabilised dora": {"lora.rslora": True, "lora.dora": True},
    "principal components": {"lora.init": "pissa_niter_4", "lora.dropout": 0.0},
    "padded rows": {"model.attn_implementation": "sdpa"},
    "recomputed layers": {"model.gradient_checkpointing": True},
    "nf4": {"model.quantization": "nf4"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_runs_resume_as_exactly(kind: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = make("dpo", "whole", KINDS[kind]), make("dpo", "cut", KINDS[kind])
    tiny.train(whole)
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        with pytest.raises(Stopped):
            tiny.train(cut)
    tiny.train(cut, resume=True)
    assert not tiny.differences(Path(whole.run), Path(cut.run))


def test_a_run_on_an_adapter_resumes_with_the_adapter_as_its_reference(
    make: Make, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    """Not with the checkpoint's: the reference is made before the checkpoint is put back."""
    sft = make("sft", "sft", {"training.max_steps": 3})
    tiny.train(sft)
    whole, cut = make("dpo", "whole", {"model.name": sft.run}), make("dpo", "cut", {"model.name": sft.run})
    tiny.train(whole)
    with monkeypatch.context() as patched:
        stop_after(4, patched)
        with pytest.raises(Stopped):
            tiny.train(cut)
    shutil.rmtree(own_cache)
    tiny.train(cut, resume=True)
    assert not tiny.differences(Path(whole.run), Path(cut.run))
