"""Early stopping and the best weights, by hand and in whole runs that are stopped and resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prefine.errors import Stopped
from prefine.recipe.sections import TrainingSection
from prefine.recipe.stage import StageRecipe
from prefine.training.loop.early_stopping import EarlyStopping
from tests.training import tiny
from tests.training.test_resume import stop_after

Make = Callable[..., StageRecipe]
# At this rate T overshoots and its held-out loss rises again after a few steps.
OVERFITTING = {
    "training.learning_rate": 0.1,
    "training.epochs": 6,
    "training.evaluate_every_steps": 2,
    "training.early_stopping_patience": 2,
    "training.keep_best": True,
    "training.schedule": "constant",
}


def watch(patience: int | None, keep: bool = True) -> EarlyStopping:
    return EarlyStopping(TrainingSection(keep_best=keep, early_stopping_patience=patience))


def test_patience_counts_evaluations_without_a_lower_loss() -> None:
    seen = watch(2)
    weight = {"w": nn.Parameter(torch.zeros(1))}
    exhausted = []
    for step, loss in enumerate([1.0, 0.9, 0.9, 0.8, 0.85, 0.81]):
        seen.update(step, loss, weight)
        exhausted.append(seen.exhausted)
    assert exhausted == [False, False, False, False, False, True]
    assert (seen.best_step, seen.best_loss, seen.worse) == (3, 0.8, 2)


def test_without_patience_it_never_stops_and_without_keeping_holds_no_weights() -> None:
    seen = watch(None, keep=False)
    weight = {"w": nn.Parameter(torch.zeros(1))}
    for step in range(50):
        seen.update(step, 1.0 + step, weight)
    assert not seen.exhausted
    assert not seen.best_weights
    assert not seen.load_best(49, weight)


def test_the_best_weights_come_back_from_a_copy_and_through_a_checkpoint() -> None:
    seen, weight = watch(None), {"w": nn.Parameter(torch.tensor([1.0, 2.0]))}
    seen.update(1, 0.5, weight)
    with torch.no_grad():
        weight["w"].mul_(10)
    seen.update(2, 0.7, weight)
    again = watch(None)
    again.load_state(copy.deepcopy(seen.state()))
    for each in (seen, again):
        with torch.no_grad():
            weight["w"].fill_(9)
        assert each.load_best(2, weight)
        assert weight["w"].tolist() == [1.0, 2.0]
    assert not seen.load_best(1, weight), "they are the best step's own"


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_a_run_stops_early_and_ends_with_its_best_weights(stage: str, make: Make) -> None:
    """The result is the checkpoint of the best evaluation, and what is told of it was measured with it."""
    made = make(stage, changes={**OVERFITTING, "training.keep_checkpoints": 100})
    said = tiny.train(made)
    run = Path(made.run)
    heldout = [row for row in tiny.metrics(run) if row["kind"] == "heldout"]
    best = min(heldout, key=lambda row: row["loss"])
    assert best["step"] == heldout[-3]["step"] < heldout[-1]["step"] < 36
    assert f"stopped early after step {heldout[-1]['step']}" in said
    assert tiny.manifest(run)["kept_step"] == best["step"]
    told = tiny.json.loads((run / "evaluation.json").read_text())["heldout"]
    assert told["after"]["loss"] == best["loss"]
    if stage == "dpo":
        assert sum(pair["after_margin"] for pair in told["pairs"]) / told["count"] == pytest.approx(best["margin"])
    saved = tiny.weights(run)
    kept = load_file(run / "checkpoints" / f"step-{best['step']:08d}" / "weights.safetensors")
    assert saved
    for name, tensor in saved.items():
        (match,) = [w for n, w in kept.items() if n.replace(".default", "").replace("modules_to_save.", "") == name]
        assert torch.equal(tensor, match)


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_stopped_and_resumed_it_stops_early_at_the_same_step_with_the_same_weights(
    stage: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the best step lies before the stop, so that its weights come from the checkpoint."""
    whole = make(stage, "whole", OVERFITTING)
    tiny.train(whole)
    last = max(row["step"] for row in tiny.metrics(Path(whole.run)))
    best = tiny.manifest(Path(whole.run))["kept_step"]
    assert best < last - 2
    for stopped_at in range(1, last):
        cut = make(stage, f"cut-{stopped_at}", {**OVERFITTING, "training.save_every_steps": None})
        with monkeypatch.context() as patched:
            stop_after(stopped_at, patched)
            with pytest.raises(Stopped):
                tiny.train(cut)
        tiny.train(cut, resume=True)
        assert not tiny.differences(Path(whole.run), Path(cut.run)), stopped_at
